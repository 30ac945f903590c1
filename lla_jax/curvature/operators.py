"""Symmetric linear operators give products of the Hessian, the Gauss-Newton or the Fisher matrix with vectors.

Nothing of size n x n is ever formed. A product is the mean over all data, however they are cut, sharded or streamed.
Data in memory give a ``LinearOperator``, a pytree whose ``mv`` can be jitted; streamed data give a ``HostOperator``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import called, recipes
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import (
    Misuse,
    check_choice,
    check_flag,
    check_integer,
    check_number,
    misuse,
    single_key,
)
from lla_jax.core.copies import own
from lla_jax.core.interrupts import GRACE_S, prompt_interrupts
from lla_jax.core.signatures import complete, explained, show_options
from lla_jax.core.static import static
from lla_jax.core.types import Directions, Loss, PyTree, Select
from lla_jax.curvature import assembly, matrices, sampling
from lla_jax.curvature.assembly import DEFAULTS, Options
from lla_jax.curvature.linear_operator import HostOperator, LinearOperator, as_arrays, check_operator
from lla_jax.curvature.matrices import Matrix
from lla_jax.curvature.products import Multiplier
from lla_jax.curvature.samplers import bernoulli, categorical, gaussian, poisson
from lla_jax.curvature.space import Space
from lla_jax.execution import sharding
from lla_jax.execution.keywords import accept_old

__all__ = [
    "HostOperator",
    "LinearOperator",
    "bernoulli",
    "categorical",
    "dense",
    "fisher",
    "gaussian",
    "ggn",
    "given",
    "hessian",
    "masked",
    "poisson",
    "preconditioned",
]

DENSE_MOST = 20_000  # parameters of a matrix that ``dense`` computes


# --- the matrices


@accept_old("devices", "linearize", "processes")
@show_options(Options, DEFAULTS)
@explained
def hessian(
    loss: Loss | Callable[[PyTree, Any], Any],
    params: PyTree,
    data: Any,
    **options: Unpack[Options],
) -> LinearOperator | HostOperator:
    """The Hessian of the loss, as a product with vectors.

        H v = d/de grad L(theta + e v) at e = 0,   L = sum_i w_i l_i / sum_i w_i + penalty

    over the whole data set, however it is cut: batches may be unequal and weighted. Weights are constants: they must
    not depend on the parameters. An example of weight 0 must still have finite values, since derivatives multiply.

    Args:
      loss: a ``Loss``, or a plain ``f(params, batch) -> scalar``.
      params: theta, a pytree of real floating arrays. Weights of half precision are taken in float32; a network that
        computes in half precision all the same gives two or three digits, with a warning.
      data: one data set (a pytree of arrays with leading axis N), ``lla.stream(...)``, read once per product, or
        ``lla.whole(...)`` of one example that is never cut; None for a loss without data.
      batch_size: examples per block. For a loss per example it bounds the memory and changes nothing else; by default
        the block suits the caches or the accelerator. For a batch-coupled loss, or ``batch_stats="batch"``, it is the
        number of examples in a batch, by default all.
      select: leaves that the operator acts on, by path (glob, regular expression, predicate): a block of the matrix.
        By default all.
      batch_stats: "frozen" (running averages, the default) or "batch" (each batch's own statistics).
      execution: an ``lla.Execution``. An operator reads four of its fields. ``devices``: the examples are split over
        them; leave it out where the parameters are sharded over devices, which then do the work. ``linearize``: whether
        primal values are kept between products ("auto": if they fit into a quarter of the free memory); the choice and
        its bytes are in ``recipe["plan"]``. ``processes``: all processes of a group must call with the same arguments
        except the data (parts may be unequal; the batches of a stream and of a batch-coupled loss are each process's
        own). ``precision``: of matrix products; the bits that they leave are in ``recipe["precision"]``.
      allow_nondeterministic: accept a loss whose value changes from call to call; by default it is refused.

    Returns:
      A ``LinearOperator``, for streams and groups of processes a ``HostOperator``. Products are in float32 at least,
      at full matmul precision unless ``execution`` asks for less.

    Raises:
      ValueError: parameters that are not real, floating and finite; a selection without match; a loss that is not
        deterministic; data as for ``evaluate``; arguments that differ between the processes.

    References: Pearlmutter 1994; LLA, arXiv 2412.10146. Where we differ from LLA: (1) the mean over all data, not one
    random batch; (2) normalization layers in eval mode, and the user's model is not changed.
    """
    return _operator("hessian", loss, params, data, options)


@accept_old("devices", "linearize", "processes")
@show_options(Options, DEFAULTS)
@explained
def ggn(
    loss: Loss,
    params: PyTree,
    data: Any,
    **options: Unpack[Options],
) -> LinearOperator | HostOperator:
    """The generalized Gauss-Newton matrix of the loss, as a product with vectors.

        G = sum_i w_i J_i' (grad_f^2 l_i) J_i / sum_i w_i + grad^2 penalty,   J_i = d f(x_i) / d theta

    Positive semidefinite where the criterion is convex in the outputs; equal to the Hessian for a linear model. The
    matrix depends on where the loss is cut into outputs and criterion: cut it at the scores, before a softmax. A
    converted torch network that ends in log-softmax is cut there for a criterion that is linear behind it.

    Args:
      loss: a ``Loss``; a plain function hides the outputs. Outputs that are not floating, such as masks, are constants.
      params: as for ``hessian``.
      data: as for ``hessian``.
      options: as for ``hessian``: batch_size, select, batch_stats, execution, allow_nondeterministic.

    Returns:
      As for ``hessian``.

    Raises:
      ValueError: as for ``hessian``; a plain function as loss; complex outputs; a criterion that is linear in the
        outputs, such as that of ``lla_torch.convert_loss``, whose matrix would be zero.

    Warns:
      UserWarning: a criterion that is piecewise linear (absolute errors, margins), whose matrix is zero.

    References: Schraudolph 2002; Martens 2014, arXiv 1412.1193.
    """
    _needs_outputs("ggn", loss)
    return _operator("ggn", loss, params, data, options)


@accept_old("devices", "linearize", "processes")
@show_options(Options, DEFAULTS)
@explained
def fisher(
    loss: Loss,
    params: PyTree,
    data: Any,
    key: jax.Array | None = None,
    *,
    kind: str = "mc",
    samples: int = 1,
    sample: Callable[[Any, Any, Any], Any] | None = None,
    **options: Unpack[Options],
) -> LinearOperator | HostOperator:
    """The Fisher matrix of the model, as a product with vectors.

        F = sum_i w_i E_y [ g_i g_i' ] / sum_i w_i,   g_i = grad l(f(x_i), y)

    with y drawn from the model ("mc", whose mean is the GGN where l is a negative log-likelihood in its natural
    parameters) or from the data ("empirical"). The penalty, a prior, is no part of it. All entries (tokens) of an
    example are one observation; of an ``lla.whole``, such as a graph, each entry (node) is one. So where the loss of an
    example is one number that is a mean over n entries, and not their sum, "mc" gives the GGN divided by n. The key is
    folded with an example's number: draws do not depend on the batches. Weights are those of the data, also where they
    follow from the labels (weighted classes, ignored labels).

    Targets must be drawn from the likelihood whose negative logarithm the criterion is. It is recognised by what the
    criterion does at a few rows, whatever it is written in: categorical (any temperature and axis of classes, soft
    labels, the next token), Bernoulli, Poisson, Gaussian (any variances). For every sampler, a user's too, the mean
    slope over drawn targets must be zero, E_y[grad_f l(f, y)] = 0, within 6 standard errors. Where l is c times a
    negative log-likelihood, as the mean over an example's T tokens with c = 1/T, F is c times the GGN.

    Args:
      loss: a ``Loss`` whose criterion is a negative log-likelihood per example.
      params: as for ``hessian``.
      data: as for ``hessian``.
      key: draws the targets; needed for "mc".
      kind: "mc" or "empirical".
      samples: targets drawn per example.
      sample: ``sample(key, outputs, example) -> example`` with a target drawn from the model, for one example, such as
        ``functools.partial(operators.categorical, temperature=2.0)``; ``bernoulli``, ``gaussian`` and ``poisson`` stand
        beside it. By default that of the likelihood that is recognised, which ``recipe["likelihood"]`` names.
      options: as for ``hessian``: batch_size, select, batch_stats, execution, allow_nondeterministic.

    Returns:
      As for ``hessian``.

    Raises:
      ValueError: as for ``hessian``; a plain function or batch-coupled loss; another kind; "mc" without a key;
        arguments of "mc" given with "empirical"; a criterion of no likelihood that is recognised, such as smoothed
        labels or margins, without ``sample``; targets whose mean slope is not zero.

    References: Martens 2014, arXiv 1412.1193; Kunstner et al. 2019, arXiv 1905.12558 (how the two kinds differ).
    """
    _needs_outputs("fisher", loss)
    check_choice("kind", kind, ("mc", "empirical"))
    if not loss.per_example:
        raise Misuse(
            "loss",
            "couples the examples of a batch; use a criterion with a loss per example (for lla.whole(data), with an "
            "entry for each node or point), per_example=True",
        )
    if kind == "mc" and key is None:
        raise Misuse("key", 'needed for kind="mc", which draws targets; pass jax.random.key(0)')
    if kind == "empirical" and (key is not None or sample is not None or samples != 1):
        raise Misuse("kind", '"empirical" draws nothing; leave key, sample and samples out, or use kind="mc"')
    if kind == "mc":
        single_key(key)  # checked, and used as it came: the recipe has its fingerprint
    samples = check_integer("samples", samples, remedy="the number of targets drawn for each example")
    draw = None if kind == "empirical" else sampling.RECOGNISE if sample is None else static(sample)
    operator = _operator("fisher", loss, params, data, options, key=key, sample=draw, samples=samples)
    operator.recipe.update(kind=f"fisher ({kind})", samples=samples, targets=recipes.fingerprint(key))
    return operator


@explained
def given(product: Callable[..., PyTree], like: PyTree, *args: Any, traceable: bool = True) -> Any:
    """An operator of your own, from a symmetric product.

    Args:
      product: ``product(v, *args) -> A v``, a tree like ``v``.
      like: a vector's structure: a pytree of real floating arrays or ``jax.ShapeDtypeStruct``. Arrays that are sharded
        over devices give vectors that are sharded in the same way.
      args: arrays that the product reads, such as a matrix. They are passed on, not compiled in; those of numpy are
        copied for a traceable product.
      traceable: False for a product that jax cannot trace (numpy, a remote service): it is called on the host.

    Returns:
      A ``LinearOperator``, or a ``HostOperator`` where it is not traceable. The spectral functions check its symmetry,
      u'(A v) = v'(A u), before they use it.

    Raises:
      ValueError: ``like`` has leaves that are not floating, or none; A v is no tree like ``v``.
    """
    function: Any = product
    if not callable(function):
        made = "such as lla.operators.given(lambda v, A: A @ v, like, A) for a matrix A"
        raise misuse("product", product, f"a function v -> A v, and like a vector's structure; {made}")
    leaves, structure = jax.tree.flatten(like)
    dtypes = [_dtype_of(x) for x in leaves]
    if not leaves or not all(d is not None and jnp.issubdtype(d, jnp.floating) for d in dtypes):
        text = ", ".join(type(x).__name__ if d is None else str(d) for x, d in zip(leaves, dtypes)) or "no leaves"
        raise Misuse(
            "like",
            f"has {text}; it must be a pytree of real floating arrays whose structure vectors have, such as the "
            "parameters, or jnp.zeros(n) for vectors of n entries",
        )
    check_flag("traceable", traceable)
    wide = [jax.dtypes.canonicalize_dtype(_tree.wide(d)) for d in dtypes]
    shapes = tuple((tuple(np.shape(x)), d) for x, d in zip(leaves, wide, strict=True))
    mesh = sharding.mesh_of(like)
    shards = None if mesh is None else tuple(sharding.sharding_of(x, mesh) for x in leaves)
    by = Multiplier(None, static(product) if traceable else None, None, traceable and not shards)
    space = Space(structure, shapes, shards)
    if traceable:
        args = own(args)
        operator = LinearOperator(by, space, args, ((),), recipe={"kind": "given"})
        with _explained_product(product, operator.structure, args):
            image = jax.eval_shape(product, operator.structure, *args)
        _tree.align(image, operator.structure, "product(v)", "like")
        return operator

    def call(v: PyTree) -> tuple[PyTree, None]:
        # of results that are not finite we speak ourselves
        finite = np.errstate(over="ignore", invalid="ignore")
        with finite, _explained_product(product, v, args), prompt_interrupts(GRACE_S):
            image = product(v, *args)
        image = _tree.align(image, v, "product(v)", "like")
        return jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), image, v), None

    return HostOperator(by, space, call, like, recipe={"kind": "given"})


def _dtype_of(x: Any) -> Any:
    """The dtype of an array, a ``jax.ShapeDtypeStruct`` or a number; None for anything else."""
    try:
        return jnp.dtype(getattr(x, "dtype", None) or jnp.result_type(x))
    except TypeError:
        return None


_REMEDY = (
    "It must return A v for one vector v of the structure of like; what else it reads, such as a matrix, is given "
    "after like: lla.operators.given(product, like, A)"
)


@contextlib.contextmanager
def _explained_product(product: Any, v: PyTree, args: tuple[Any, ...]) -> Iterator[None]:
    """Explain an error of a user's product; where jax cannot trace it, say how it is called without."""
    try:
        with called.explain(product, "the product", "product(v, *args)", {"v": v, "args": args}, _REMEDY, "product"):
            yield
    except called.CallFailed as error:
        if not isinstance(error.__cause__, jax.errors.JAXTypeError):
            raise
        text = "jax could not trace it; a product in numpy, scipy or torch needs traceable=False, which calls it with"
        raise Misuse("product", f"{text} arrays: lla.operators.given(product, like, traceable=False)") from error


@explained
def masked(operator: Any, mask: PyTree) -> Any:
    """The operator restricted to the entries of a mask: M A M, with M = diag(mask).

    A mask chooses entries, and another mask compiles nothing anew. (``select`` of ``hessian`` chooses leaves, and
    another selection compiles anew.)

    Args:
      operator: an operator that is neither masked nor preconditioned.
      mask: a tree like a vector, of 0 and 1 (bool).

    Returns:
      The operator; its ``shape`` counts the entries where the mask is 1.

    Raises:
      ValueError: the operator is masked or preconditioned already, or the mask has another structure or values.
    """
    check_operator(operator, "operator")
    mask = _tree.align(mask, operator.structure, "mask", "the operator's vectors")
    entries = [np.asarray(x) for x in jax.tree.leaves(mask)]
    if not all(((x == 0) | (x == 1)).all() for x in entries) or not any(x.any() for x in entries):
        text = "has other values than 0 and 1, or no 1; it must be a tree of 0 and 1 (or bool), with a 1 somewhere"
        raise Misuse("mask", f"{text}: set the entries to keep to 1")
    return _scale(operator, mask, "mask", {"masked": recipes.fingerprint(mask)})


@explained
def preconditioned(operator: Any, second_moment: Directions | PyTree, *, eps: float = 1e-8, decay: float = 1.0) -> Any:
    """The curvature that Adam sees: P^-1/2 A P^-1/2 with P = diag(sqrt(v / decay) + eps).

    Args:
      operator: an operator that is neither masked nor preconditioned.
      second_moment: Adam's v: a tree like ``params``, or ``directions.adam_moments(opt_state, params)``, whose second
        entry is taken.
      eps: Adam's eps, at least 0.
      decay: 1 - beta2^t after t steps, the bias correction, since optax stores v uncorrected; in (0, 1]. After long
        training it is 1.

    Returns:
      The operator. Its vectors are displacements of the parameters times P^1/2: a vector u moves them by P^-1/2 u.

    Raises:
      ValueError: v negative, not finite or of another structure; moments that are normalized or not Adam's; eps or
        decay out of range; zero entries of v with eps = 0; the operator is masked or preconditioned already.

    References: Cohen et al. 2022, arXiv 2207.14484, section 2.
    """
    check_operator(operator, "operator")
    check_number("eps", eps, least=0.0, remedy="such as Adam's 1e-8")
    if check_number("decay", decay, remedy="and at most 1, such as 1 - 0.999**steps") > 1:
        raise misuse("decay", decay, "a finite number above 0, and at most 1, such as 1 - 0.999**steps")
    if isinstance(second_moment, Directions):
        recipe = second_moment.recipe
        raw = recipe.get("kind") == "adam_moments" and not recipe.get("normalize")
        if not raw or recipe.get("chosen", [0, 1]) != [0, 1]:
            rule = "Adam's moments (m, v), raw"
            raise misuse("second_moment", second_moment, f"{rule}: lla.directions.adam_moments(opt_state, params)")
        second_moment = jax.tree.map(lambda x: x[1], second_moment.tree)
    if not all(operator.leaf_mask):
        second_moment = _tree.align(second_moment, operator.centre(), "second_moment")
        second_moment = matrices.part(second_moment, operator.leaf_mask)
    second_moment = _tree.align(second_moment, operator.structure, "second_moment", "the operator's vectors")
    _tree.check_real(second_moment, "second_moment")
    if min(np.min(np.asarray(x), initial=0) for x in jax.tree.leaves(second_moment)) < 0:
        text = "has negative entries; it must be Adam's v, a mean of squares"
        raise Misuse("second_moment", f"{text}, such as lla.directions.adam_moments(opt_state, params)")
    with np.errstate(divide="ignore"):
        scale = jax.tree.map(lambda v: 1 / np.sqrt(np.sqrt(np.asarray(v, np.float64) / decay) + eps), second_moment)
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(scale)):
        raise Misuse("eps", "0 given, and second_moment has zeros; it must be above 0 then, such as Adam's 1e-8")
    recipe = {"preconditioned": {"eps": eps, "decay": decay, "moment": recipes.fingerprint(second_moment)}}
    return _scale(operator, scale, "second_moment", recipe)


@prompt_interrupts()
@explained
def dense(operator: Any) -> np.ndarray:
    """The matrix (n, n), float64, with entries in the order of the raveled leaves: for small models and for tests.

    It takes a product per column. n counts masked entries too, whose rows and columns are 0.

    Raises:
      ValueError: n above 20,000.
    """
    check_operator(operator, "operator")
    n = operator.space.size
    if n > DENSE_MOST:
        text = f"{n:,} x {n:,} is too large to be held; it must be at most {DENSE_MOST:,}"
        raise Misuse("operator", f"{text}: select fewer leaves, or use its products")
    zero = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), operator.structure)
    columns = []
    for leaf in jax.tree.leaves(zero):  # numpy leaves: written in place
        for i in range(leaf.size):
            leaf.flat[i] = 1
            column = jax.tree.leaves(operator.product(jax.tree.map(np.array, zero)))
            columns.append(np.concatenate([np.asarray(x, np.float64).ravel() for x in column]))
            leaf.flat[i] = 0
    return np.stack(columns, 1)


# --- how operators are made


def _scale(operator: Any, scale: PyTree, name: str, recipe: dict[str, Any]) -> Any:
    """The operator S A S, with ``recipe`` added to its recipe; ``name`` is the argument that messages name."""
    if operator.scale is not None:
        text = f"{operator!r} is masked or preconditioned already; it must be neither"
        raise Misuse("operator", f"{text}: pass the plain operator")
    scale = _tree.align(scale, operator.structure, name, "the operator's vectors")
    scale = jax.tree.map(lambda s, x: jnp.asarray(s, x.dtype), scale, operator.structure)
    scale = scale if operator.space.shards is None else operator.place(scale)
    return replace(
        operator, space=replace(operator.space, scale=scale), recipe=recipes.without_probe(operator.recipe) | recipe
    )


def _needs_outputs(name: str, loss: Any) -> None:
    if not isinstance(loss, Loss):
        text = f"{name} needs the model's outputs, which a plain function hides; use lla.Loss(apply, criterion) or an"
        raise Misuse("loss", f"{text} adapter such as lla.from_linen, or lla.hessian")


@prompt_interrupts()
def _operator(
    kind: str,
    loss: Any,
    params: PyTree,
    data: Any,
    options: Options,
    *,
    key: Any = None,
    sample: Any = None,
    samples: int = 1,
) -> LinearOperator | HostOperator:
    """The operator of a kind of matrix, with the options that all kinds share."""
    options = complete(kind, options, DEFAULTS)
    check_flag("allow_nondeterministic", options["allow_nondeterministic"])
    matrix, params = _matrix(kind, params, options["select"], options["batch_stats"])
    return assembly.operator(replace(matrix, sample=sample, samples=samples), loss, params, data, options, key)


def _matrix(kind: str, params: PyTree, select: Select | None, batch_stats: str) -> tuple[Matrix, PyTree]:
    """(the description of the matrix, the parameters as arrays)."""
    params = as_arrays(params)
    check_choice("batch_stats", batch_stats, ("frozen", "batch"))
    return Matrix(kind, tuple(_tree.select_leaves(select, params)), batch_stats == "batch"), params
