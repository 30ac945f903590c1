"""Defines the types that all rooms share: losses, problems, directions, and the options of execution.

Nothing here computes; the functions are in the rooms ``directions``, ``landscape``, ``curvature`` and ``measures``, and
what they return, but for directions, is in ``results``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NoReturn, Protocol

import jax
import numpy as np

from lla_jax.core.arguments import Misuse, check_flag, misuse, show_value
from lla_jax.core.foreign import advise_params, library_of
from lla_jax.core.refusals import AS_ARRAY, no_array
from lla_jax.core.signatures import MisusedCall, explained
from lla_jax.core.static import function_of, static, takes_exactly
from lla_jax.core.text import name_of

PyTree = Any
Recipe = dict[str, Any]
Batch = Any
Path = str
FilterAxis = int | Callable[[Path, Any], int | tuple[int, ...] | None]
Select = str | Sequence[str] | Callable[[Path, Any], bool] | Any
"""A glob (``"**/kernel"``), compiled regular expression, predicate ``(path, leaf) -> bool``, or a sequence of these."""

SAVED = {"save": 'lla.save(result, "result.npz")'}

_SIGNATURES = {
    "apply": "apply(params, state, batch, train) -> (outputs, new_state)",
    "criterion": "criterion(outputs, batch) -> losses (B,), such as lambda outputs, batch: "
    "optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1])",
    "penalty": "penalty(params) -> scalar, such as lambda params: 1e-4 * optax.global_norm(params) ** 2, or None",
}


@explained
@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Loss:
    """A loss over a data set: the mean of per-example losses, plus an optional penalty on the parameters.

        L(theta) = sum_i w_i l_i(theta) / sum_i w_i  +  penalty(theta)

    A ``Loss`` is a pytree whose leaves are ``state`` and ``key``; everything else is static and compared by value, so
    two adapters of one architecture share compiled code. What functions reach (attributes, dicts, arrays, modules) is
    looked at when a ``Loss`` is made or given to a function of this library, and other content compiles anew. An
    operator keeps what it traced, as under ``jax.jit``: after changing an object that its loss reads, make another one.

    Args:
      apply: ``apply(params, state, batch, train) -> (outputs, new_state)``, pure. ``train`` is a Python bool and
        selects batch statistics in normalization layers. If ``key`` is set, a fifth argument is passed: per-example
        keys ``(B,)``.
      criterion: ``criterion(outputs, batch) -> losses`` with leading axis B (each entry of further axes, such as a
        token, counts with weight 1), or ``(losses, weights)`` of equal shapes. With ``per_example=False`` it returns a
        scalar.
      state: non-trained variables (BatchNorm statistics), a pytree or None.
      key: a ``jax.random`` key for losses that draw noise; folded with each example's index, so that the draw depends
        neither on the batching nor on the point of the landscape.
      penalty: ``penalty(params) -> scalar`` added to the mean, e.g. weight decay.
      per_example: False for losses that couple the examples of a batch (contrastive, batch-normalised scores). Then a
        batch is never cut or padded, the data set's value is the size-weighted mean over batches, and no standard error
        is given.
      filter_axis: which axes of a weight tensor index its filters: an int, or ``(path, leaf) -> axes`` where None says
        that the tensor is one-dimensional. None lets ``directions.normalize`` decide from the kind of parameter tree.
      precision: the types in which the network gets weights that have fewer than 32 bits: "float32", or "params" for
        the types of the parameters, to which every point is then rounded. Points are computed in float32 in both cases.
    """

    apply: Callable[..., tuple[Any, PyTree]] = field(metadata={"static": True})
    criterion: Callable[[Any, Batch], Any] = field(metadata={"static": True})
    state: PyTree = None
    key: Any = None
    penalty: Callable[[PyTree], Any] | None = field(default=None, metadata={"static": True})
    per_example: bool = field(default=True, metadata={"static": True})
    filter_axis: FilterAxis | None = field(default=None, metadata={"static": True})
    precision: Literal["float32", "params"] = field(default="float32", metadata={"static": True})

    def __call__(self, *args: Any, **options: Any) -> NoReturn:
        """Raise the error for a loss that is taken for a function of parameters and batch."""
        raise MisusedCall(
            "loss",
            f"{self!r} is not called itself; its losses of a batch are loss.criterion(loss.apply(params, loss.state, "
            "batch, False)[0], batch), and lla.evaluate computes their mean at points",
        )

    def __repr__(self) -> str:
        parts = [name_of(self.apply), name_of(self.criterion), "per example" if self.per_example else "per batch"]
        if state := len(jax.tree.leaves(self.state)):
            parts.append(f"{state} state arrays")
        parts += [name for name in ("key", "penalty") if getattr(self, name) is not None]
        return f"Loss({', '.join(parts)})"

    def __post_init__(self) -> None:
        object.__setattr__(self, "per_example", check_flag("per_example", self.per_example))
        for name in ("apply", "criterion", "penalty", "filter_axis"):
            object.__setattr__(self, name, static(getattr(self, name)))
        owner = getattr(function_of(self.apply), "__self__", function_of(self.apply))
        if library_of(owner) == "lla_torch" and hasattr(owner, "variables"):
            raise Misuse("apply", "a network of lla_torch given, which makes its loss itself: net.loss(criterion)")
        for name, signature in _SIGNATURES.items():
            f = getattr(self, name)
            if not callable(f) and not (name == "penalty" and f is None):
                raise misuse(name, f, f"a function, {signature}")
        if takes_exactly(self.apply, 2) and takes_exactly(self.criterion, 4):
            raise Misuse(
                "apply",
                "it takes 2 arguments, and the criterion 4; they must be apply(params, state, batch, train) and "
                "criterion(outputs, batch): swap them, lla.Loss(apply, criterion)",
            )


@explained
@no_array("holds its parts by name; take problem.loss, problem.params and problem.data")
@dataclass(frozen=True)
class Problem:
    """The problem that a factory gives to the command line: ``lla-jax landscape --problem module:factory``.

    Args:
      loss: a ``Loss`` or a plain ``f(params, batch) -> scalar``.
      params: the trained parameters, a pytree of floating arrays.
      data: one data set (array pytree with leading axis N), ``lla.stream(...)``, or ``lla.whole(...)`` of one example
        that is never cut; None if the loss takes no data.
      opt_state: optax state, needed for Adam axes.
      metrics: ``{name: f(outputs, batch) -> (B,)}``.
      extra_data: ``{name: data set}`` evaluated at the same points, e.g. ``{"test": ...}``.
      checkpoints: other parameter trees of the same structure, for lines and planes between solutions: for ``lla-jax
        path`` those of the training in their order, before ``params``; for ``lla-jax connect`` the second solution. A
        path of ``lla.paths``, which has its own states, may take the place of the list.
      states: the state of the loss (BatchNorm statistics) of each checkpoint; that of ``params`` is ``loss.state``.
      read: ``read(files) -> path of lla.paths``: how the files that ``--checkpoints`` names are read, such as torch's.
        None for ``lla.paths.from_checkpoints``.
    """

    loss: Any
    params: PyTree
    data: Any = None
    opt_state: Any = None
    metrics: Mapping[str, Callable[[Any, Batch], Any]] = field(default_factory=dict)
    extra_data: Mapping[str, Any] = field(default_factory=dict)
    checkpoints: Sequence[PyTree] = ()
    states: Sequence[PyTree] = ()
    read: Callable[[Any], Any] | None = None

    def __repr__(self) -> str:
        loss = self.loss if isinstance(self.loss, Loss) else name_of(self.loss)
        parts = [f"{loss}", f"params: {_describe_arrays(self.params)}", f"data: {_describe_arrays(self.data)}"]
        parts += ["opt_state"] if self.opt_state is not None else []
        parts += [f"{name}: {', '.join(x)}" for name in ("metrics", "extra_data") if (x := getattr(self, name))]
        parts += [f"{len(self.checkpoints)} checkpoints"] if len(self.checkpoints) else []
        return f"Problem({'; '.join(parts)})"

    def __post_init__(self) -> None:
        model = isinstance(self.loss, type) or library_of(self.loss) in ("torch", "flax.linen", "flax.nnx")
        if model or not (callable(self.loss) or isinstance(self.loss, Loss)):
            rule = "an lla.Loss or a function f(params, batch) -> scalar, first of Problem(loss, params, data)"
            raise misuse("loss", self.loss, rule)
        if not jax.tree.leaves(self.params) or library_of(self.params) in ("torch", "flax.linen", "lla_jax"):
            advice = advise_params(self.params) or "pass the tree of trained parameters"
            raise misuse("params", self.params, f"a tree of arrays; {advice}")
        for name in ("metrics", "extra_data"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, {})
            elif not isinstance(getattr(self, name), Mapping):
                raise misuse(name, getattr(self, name), f"a dict by name, such as {name}={{'test': ...}}")
        for name, rule in (("checkpoints", "parameter trees, such as [early, late]"), ("states", _STATES)):
            given: Any = getattr(self, name)
            if given is None:
                object.__setattr__(self, name, ())
            elif not (isinstance(given, list | tuple) or (name == "checkpoints" and is_path(given))):
                raise misuse(name, given, f"a list of {rule}")
        if self.states and is_path(self.checkpoints):
            raise Misuse("states", "given with a path as checkpoints, which has its own; leave states out")
        if self.states and len(self.states) != len(self.checkpoints):
            counts = f"{len(self.states)} given for {len(self.checkpoints)} checkpoints"
            raise Misuse("states", f"{counts}; it must be one for each of them; that of params is loss.state")
        if not (self.read is None or callable(self.read)):
            raise misuse("read", self.read, "None, or a function of a list of files that returns a path of lla.paths")


_STATES = "the loss's states, one for each checkpoint, such as their BatchNorm statistics"


def is_path(value: Any) -> bool:
    """Whether a value is a path of ``lla.paths``: a sequence of parameter trees that reads them and has states."""
    return hasattr(value, "has_states") and hasattr(value, "__getitem__") and callable(getattr(value, "state", None))


@explained
@no_array(
    "is a tree of arrays; take axes.tree, whose leaves have a leading axis; 2 * axes is jax.tree.map("
    "lambda x: 2 * x, axes)",
    AS_ARRAY,
)
@dataclass(frozen=True, eq=False, repr=False)
class Directions:
    """Directions in parameter space, the axes of a landscape.

    Args:
      tree: a tree of the parameters' structure, with a leading axis k on every leaf, one entry per direction.
      recipe: how they were made, JSON-able: ``{"kind": ..., ..., "normalize": [...]}``. Directions are a pytree whose
        recipe is static, and marked "transformed" in every copy that jax makes; a jitted function compiles anew for
        every recipe unless it is given ``tree`` only.
    """

    _meant: ClassVar[dict[str, str]] = {
        **SAVED,
        "normalize": "lla.directions.normalize(axes, params)",
        "shape": "num, the number of directions",
        "names": 'recipe["names"]',
    }

    tree: PyTree
    recipe: Recipe

    def __post_init__(self) -> None:
        if not isinstance(self.recipe, Mapping):
            raise misuse("recipe", self.recipe, "a dict, such as {}; of trees make directions by lla.directions.given")
        if isinstance(self.tree, Directions):
            raise misuse("tree", self.tree, "a tree with a leading axis on every leaf, such as axes.tree")

    @property
    def num(self) -> int:
        """Number of directions k."""
        leaves = jax.tree.leaves(self.tree)
        if not leaves:
            raise Misuse("directions", "have no leaves; make them by lla.directions.given(*trees) or .random")
        if not getattr(leaves[0], "shape", ()):
            raise Misuse(
                "directions", "their leaves have no leading axis; of trees make them by lla.directions.given(*trees)"
            )
        return int(leaves[0].shape[0])

    def __repr__(self) -> str:
        shapes = [getattr(leaf, "shape", ()) for leaf in jax.tree.leaves(self.tree)]
        num = shapes[0][0] if shapes and shapes[0] else "?"  # of trees that evaluate will refuse
        steps = self.recipe.get("normalize") or ()
        names = [f"{step['by']}-normalized" for step in steps if isinstance(step, Mapping) and "by" in step]
        made = [str(self.recipe["kind"])] if self.recipe.get("kind") else []
        size = sum(int(np.prod(shape[1:])) for shape in shapes)
        return f"Directions({', '.join([f'{num} x {size:,} parameters', *made, *names])})"

    def __len__(self) -> int:
        return self.num

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, index: int | slice | Sequence[int]) -> Directions:
        """Some of the directions: ``axes[0]``, ``axes[:2]``, ``axes[[3, 0]]``; an int keeps a leading axis (k = 1)."""
        picked = pick(index, self.num, "directions")
        try:
            recipe = self._recipe_of(picked)
        except (IndexError, TypeError, ValueError) as error:
            text = f"its entries chosen, names or marks do not fit the {self.num} directions; correct them, or leave"
            raise Misuse("recipe", f"{text} them out") from error
        return Directions(jax.tree.map(lambda leaf: leaf[picked], self.tree), recipe)

    def _recipe_of(self, picked: np.ndarray) -> Recipe:
        recipe = Recipe(self.recipe)
        recipe["chosen"] = [int(i) for i in np.asarray(recipe.get("chosen", range(self.num)))[picked]]
        if "names" in recipe:
            recipe["names"] = [recipe["names"][i] for i in picked]
        if "marks" in recipe:  # a marked point that lies outside of the chosen directions is dropped
            left_out = sorted(set(range(self.num)) - {int(i) for i in picked})
            recipe["marks"] = [
                [name, [at[i] for i in picked]] for name, at in recipe["marks"] if not np.any(np.asarray(at)[left_out])
            ]
        return recipe


def _describe_arrays(tree: PyTree) -> str:
    """Data or parameters in a few words: the shapes of up to four arrays, the number of more, or the repr."""
    leaves = jax.tree.leaves(tree)
    if tree is None or type(tree).__module__.startswith("lla_jax."):
        return repr(tree)
    if not leaves or not all(hasattr(leaf, "shape") for leaf in leaves):
        return name_of(tree)
    if len(leaves) <= 4:
        return " ".join(str(tuple(leaf.shape)) for leaf in leaves)
    return f"{sum(int(np.prod(leaf.shape)) for leaf in leaves):,} numbers in {len(leaves)} arrays"


def pick(index: Any, num: int, what: str) -> np.ndarray:
    """The chosen ones of ``num`` indices, as an array; an IndexError, which also ends a loop, if there are none."""
    try:
        picked = np.atleast_1d(np.arange(num)[index])
        if picked.ndim == 1 and picked.size:
            return picked
    except (IndexError, TypeError, ValueError):
        pass
    rule = f"there are {num} {what}; it must be an integer from {-num} to {num - 1}, a slice, or a list such as [0, 1]"
    raise IndexError(f"index: {show_value(index)} given, and {rule}") from None


def _rebuild(recipe: str, children: Any) -> Directions:
    """Directions whose recipe says "transformed", because jax may have changed the entries."""
    return Directions(next(iter(children)), json.loads(recipe) | {"transformed": True})


jax.tree_util.register_pytree_with_keys(
    Directions,
    lambda d: (((jax.tree_util.GetAttrKey("tree"), d.tree),), json.dumps(d.recipe, default=repr, sort_keys=True)),
    _rebuild,
)


class UpdateRule(Protocol):
    """``rule(params, directions, coord) -> params``: the parameters at a point; ``directions`` is the stacked tree."""

    def __call__(self, params: PyTree, directions: PyTree, coord: Any, /) -> PyTree: ...


@explained
@dataclass(frozen=True)
class Execution:
    """How a call is executed. But for ``precision``, the values depend on it only by rounding.

    A landscape (``evaluate``, ``sweep``, ``all_modes``) reads all fields except ``linearize``, ``remat`` and
    ``processes``, and times the choices for "auto" fields on the first chunk. An operator (``hessian``, ``ggn``,
    ``fisher``), and so ``per_layer`` and ``convexity``, reads ``devices``, ``precision``, ``linearize``, ``remat`` and
    ``processes``. A call refuses a field that it does not read, unless the field has its default. ``convexity`` uses
    one process for every value of ``processes``, and if it is resumed, it keeps primal values if and only if it did at
    its start.

    Args:
      chunk: points evaluated per call and device.
      microbatch: examples per block; without effect for batch-coupled losses and ``batch_stats="batch"``, whose batches
        are not cut.
      loop: "vmap" batches the points of a chunk, "map" loops over them on the device. With ``chunk=1`` it has no
        effect: the host calls a program of one point.
      share: compute values that are affine in the coordinates (the first layer) once per block, not once per point.
      scan: loop over many blocks of data within one call on the device (True), or one call per block (False).
      devices: "all" local devices, their number, or a sequence of ``jax.Device``. They share the points of a landscape,
        and the examples of an operator; for an operator on a CPU "all" is one device, which has all cores.
      data_shards: number of devices over which the examples are split, a divisor of the number of devices; the points
        are split over the rest. "auto": 1, or more if there are fewer points than devices or if the data take more than
        half of a device's free memory; always 1 if batches must not be cut.
      linearize: keep the primal values between an operator's products (True), compute them for every product (False),
        or keep them if they take at most a quarter of the free memory ("auto").
      remat: of an operator, compute values inside of segments of the network again where derivatives need them, instead
        of holding them (True), never (False), or where a product of one example, or of a batch that must not be cut,
        would work in more than half of the free memory ("auto"). It takes up to a half more time.
      processes: in a group of processes (``lla.hosts.start``, ``jax.distributed``): with "all", an operator's data are
        this process's part of the examples, and the operator is the mean over all parts; with "own", the operator
        belongs to this process alone.
      precision: of the matrix products and convolutions of float32 numbers, wherever your functions do not name one
        themselves. "highest": float32. "high": three passes of bfloat16 on a TPU (16 significant bits), TensorFloat-32
        on a GPU (11 bits). "default": one pass of bfloat16 on a TPU (8 bits), TensorFloat-32 on a GPU. It takes the
        place of ``jax_default_matmul_precision``. On a CPU, and for float64, it changes nothing. The gradient of
        ``lla.directions.gradient`` and all checks are at "highest".
    """

    chunk: int | Literal["auto"] = "auto"
    microbatch: int | Literal["auto"] = "auto"
    loop: Literal["auto", "vmap", "map"] = "auto"
    share: bool | Literal["auto"] = "auto"
    scan: bool | Literal["auto"] = "auto"
    devices: int | Literal["all"] | Sequence[Any] = "all"
    data_shards: int | Literal["auto"] = "auto"
    linearize: bool | Literal["auto"] = "auto"
    remat: bool | Literal["auto"] = "auto"
    processes: Literal["all", "own"] = "all"
    precision: Literal["highest", "high", "default"] = "highest"
