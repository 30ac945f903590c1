"""Computes the table of layers: trace and extreme eigenvalues of every module's diagonal block of the Hessian."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import arguments, called, recipes, text
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, misuse, warn_caller
from lla_jax.core.interrupts import deferred_interrupts
from lla_jax.core.results import Estimate
from lla_jax.core.signatures import explained
from lla_jax.core.standard_errors import standard_error
from lla_jax.core.types import Execution, Loss, Path, PyTree, Select
from lla_jax.curvature import eigen, forecasts, operators, random_probes, room, units
from lla_jax.curvature.handing_over import handing_over
from lla_jax.curvature.linear_operator import Operator
from lla_jax.curvature.probe import describe
from lla_jax.curvature.sketches import AT_ONCE
from lla_jax.curvature.units import Unit, adapt
from lla_jax.execution.keywords import accept_old
from lla_jax.execution.progress import AskedProgress, Progress, check_on_partial, expect_total, takes_progress

LEAST = 16  # probes before a standard error is believed
COVERS = 2  # a trace within so many standard errors of zero may be zero


@explained
class Layer(NamedTuple):
    """One diagonal block H_bb of the Hessian, a row of the table.

    Args:
      module: the block's name, by default the path of the module whose parameters it holds.
      size: parameters.
      trace: tr H_bb. ``recipe`` has what all rows share: probes, and the "total" trace with its standard error.
      share: tr H_bb / sum of all rows' traces; NaN where that sum is zero within 2 standard errors. All shares sum to
        1; one may be negative.
      lambda_max: estimate of the largest eigenvalue of H_bb, which is not smaller.
      lambda_min: estimate of the smallest eigenvalue of H_bb, which is not larger.
      residual: an exact eigenvalue of H_bb lies within this distance of each of the two.
      products: Hessian products for the two eigenvalues; those for the traces, ``trace.num``, are common to all rows.
    """

    module: str
    size: int
    trace: Estimate
    share: float
    lambda_max: float
    lambda_min: float
    residual: float
    products: int

    def __repr__(self) -> str:
        ends = f"eigenvalues {self.lambda_min:.4g} .. {self.lambda_max:.4g} +- {self.residual:.2g}"
        trace = f"{self.trace:.4g}" if isinstance(self.trace, Estimate) else self.trace
        return f"Layer({self.module}: {self.size:,} parameters, trace {trace} ({self.share:.1%}), {ends})"


@accept_old("devices")
@takes_progress("products")
@deferred_interrupts()
@explained
def per_layer(
    loss: Loss | Callable[[PyTree, Any], Any],
    params: PyTree,
    data: Any,
    key: jax.Array,
    *,
    batch_size: int | None = None,
    steps: int = 20,
    rtol: float = 0.05,
    max_products: int = 1000,
    groups: Callable[[Path], str | None] | None = None,
    select: Select | None = None,
    batch_stats: str = "frozen",
    product: str = "exact",
    progress: AskedProgress = None,
    on_partial: Callable[[Estimate], None] | None = None,
    save_every: float | None = None,
    resume: Estimate | None = None,
    execution: Execution = Execution(),  # noqa: B008 (frozen)
) -> tuple[Layer, ...]:
    """The curvature of each part of a network: trace, share and extreme eigenvalues of every module's diagonal block.

        tr H_bb = E[z_b' (H z)_b],   z of independent signs

    All blocks b use the same products: the entries of z outside of b have mean zero and are independent of z_b. They
    only add to the variance, 2 sum of H_ij^2 over i != j in b + sum of H_ij^2 over i in b, j outside. The extreme
    eigenvalues come from Lanczos on each block, M_b H M_b: masks are data, so that one program serves all blocks.

    Args:
      loss: as for ``hessian``.
      params: as for ``hessian``.
      data: as for ``hessian``.
      key: draws the probes and the start vector of Lanczos.
      batch_size: as for ``hessian``.
      steps: Lanczos steps per block at most, a product each; they end once the residuals are at most 1e-3 times the
        larger magnitude of the two eigenvalues. Memory: ``steps`` + 2 vectors of the parameters' size, and the
        work of a step; there are fewer steps where the free memory does not hold them.
      rtol: probes, 16 at least, are drawn until the standard error of the total and of every block is at most ``rtol``
        times the sum of the blocks' absolute traces. (A block's own trace is no measure: a small one would take all the
        products.)
      max_products: most products for the traces. ``steps`` per block come on top.
      groups: ``path -> name`` for blocks of your own; leaves for which it gives None are left out of the Hessian, and
        of the total. By default a block is a module, the leaves with one parent; a leaf at the root is its own block.
      select: the leaves that belong to blocks, as for ``hessian``; the others are left out as with ``groups``.
      product: as for ``hessian``.
      batch_stats: as for ``hessian``.
      progress: True for a bar, or a function ``progress(done, total)``, called in products; ``total`` is None
        while traces are estimated.
      on_partial: called with an ``Estimate`` of the total trace, which has the state to continue from, if the
        computation is interrupted, as for ``trace``: with the draws so far, or all of them and the layers so far. The
        eigenvalues of the layer in progress are left out.
      save_every: as for ``trace``.
      resume: what ``on_partial`` was called with. The computation continues from it, and gives the same to the bit as
        one that was not interrupted.
      execution: as for ``hessian``.

    Returns:
      A ``Layer`` per block, in the order of the leaves; ``table`` prints them.

    Raises:
      ValueError: as for ``hessian``; ``steps``, ``rtol`` or ``max_products`` out of range; ``groups`` that give no
        block, or something else than a name or None; ``resume`` of another operator or other arguments.

    Warns:
      UserWarning: ``max_products`` were not enough for ``rtol``; products are not finite.

    References: Yao et al. 2020, arXiv 1912.07145 (traces of layers); Dong et al. 2019, arXiv 1911.03852.

    Where we differ from LLA and PyHessian: (1) all traces come from one set of products, not one set per layer. (2) The
    eigenvalues are those of the blocks, with residuals.
    """
    steps = arguments.check_integer("steps", steps, remedy="such as 20")
    arguments.check_integer("max_products", max_products, least=2, remedy="such as 1000")
    arguments.check_number("rtol", rtol, remedy="such as 0.05")
    check_on_partial(on_partial)
    key = arguments.single_key(key)
    chosen = _tree.select_leaves(select, params)
    names = _names(params, groups, chosen)
    H = operators.hessian(
        loss,
        params,
        data,
        batch_size=batch_size,
        batch_stats=batch_stats,
        product=product,
        execution=execution,
        select=select if groups is None else _Paths({p for p, name in zip(_tree.paths(params), names) if name}),
    )
    block_of = [name for name in names if name is not None]
    blocks = list(dict.fromkeys(block_of))
    keys = jax.random.split(key)
    member = np.array([[name == block for name in block_of] for block in blocks])

    recipe = {
        "kind": "per_layer",
        "blocks": recipes.digest(list(map(str, names))),
        "rtol": float(rtol),
        "max_products": int(max_products),
        "steps": int(steps),
        "key": recipes.fingerprint(key),
        "operator": describe(H),
    }
    work = _Work(recipe, on_partial, member)
    if resume is not None:
        recipes.check_resume(resume, recipe, Estimate)
        work.restore(resume)
    fit, needed = eigen.steps_that_fit(H, "per_layer", work.steps or steps)
    work.steps = work.steps or fit
    with handing_over(progress, save_every, on_partial, work.hand_over) as report:
        return _rows(work, H, needed, blocks, keys, progress, report)


def _rows(
    work: _Work,
    H: Operator,
    needed: room.Memory,
    blocks: Sequence[str],
    keys: jax.Array,
    progress: Progress | None,
    report: Progress | None,
) -> tuple[Layer, ...]:
    """The rows of ``per_layer``: what is missing of the traces, then of the layers.

    Args:
      work: what there is so far.
      H: the Hessian.
      needed: the memory of the eigenvalues of a layer.
      blocks: their names.
      keys: for the probes, and for the start vectors of Lanczos.
      progress: the user's callback.
      report: the callback that also saves.
    """
    room.say("per_layer", H, needed, f"eigenvalues of one of {len(blocks)} layers at a time")

    def compute(unit: Unit) -> tuple[list[Estimate], Estimate]:
        return _traces(work, unit, keys[0], needed, progress, report)

    start = Unit(H) if work.size is None else units.of_state(H, {"unit": np.array(work.size)})
    traces, total = adapt(start, keys[1], compute)
    leaves, structure = jax.tree.flatten(H.structure)
    for inside in work.member[len(work.ends) :]:
        mask = [np.broadcast_to(yes, x.shape) for x, yes in zip(leaves, inside, strict=True)]
        part = operators.masked(H, jax.tree.unflatten(structure, mask))
        work.ends = [*work.ends, eigen.extremes(part, keys[1], work.steps)]
        del part  # before the mask of the next one is made
        if report is not None:
            done = traces[0].num + sum(ends.products for ends in work.ends)
            report(done, traces[0].num + work.steps * len(blocks))
    not_zero = abs(total.mean) > COVERS * total.sem
    rows = []
    for block, inside, trace, ends in zip(blocks, work.member, traces, work.ends, strict=True):
        size = sum(x.size for x, yes in zip(leaves, inside, strict=True) if yes)
        share = float(trace.mean / total.mean) if not_zero else math.nan
        rows.append(Layer(block, size, trace, share, ends.largest, ends.smallest, ends.residual, ends.products))
    return tuple(rows)


@explained
def table(rows: Sequence[Layer]) -> str:
    """The rows of ``per_layer`` as text with aligned columns; below them the total trace and the products used."""
    given, rows = rows, tuple(rows) if isinstance(rows, Sequence) else ()
    if not rows or not all(isinstance(row, Layer) for row in rows):
        raise misuse("rows", given, "the rows that lla.per_layer(loss, params, data, key) returned, one at least")
    total = rows[0].trace.recipe["total"]
    body = [("module", "size", "trace", "share", "lambda_max", "lambda_min", "residual")]
    for row in rows:
        share = "-" if math.isnan(row.share) else f"{row.share:.1%}"
        ends = f"{row.lambda_max:.4g}", f"{row.lambda_min:.3g}", f"{row.residual:.1g}"
        body.append((row.module, f"{row.size:,}", text.pm(row.trace.mean, row.trace.sem), share, *ends))
    size = sum(row.size for row in rows)
    body.append(("total", f"{size:,}", text.pm(total["mean"], total["sem"]), "", "", "", ""))
    probes, lanczos = rows[0].trace.num, sum(row.products for row in rows)
    lines = [text.table(body), f"{probes} products for the traces, {lanczos} for the eigenvalues"]
    if any(math.isnan(row.share) for row in rows):
        lines.append(f"no shares: {_may_be_zero(total['mean'], total['sem'])}")
    return "\n".join(lines)


def _may_be_zero(mean: float, sem: float) -> str:
    return f"the sum of all traces, {text.pm(float(mean), float(sem))}, may be zero"


class _Paths:
    """A selection of leaves by their exact paths; a recipe calls it "groups"."""

    pattern = "groups"

    def __init__(self, paths: set[Path]):
        self.paths = paths

    def __call__(self, path: Path, leaf: Any) -> bool:
        return path in self.paths


def _names(params: PyTree, groups: Any, chosen: Sequence[bool]) -> list[str | None]:
    """The name of every leaf's block, in leaf order; None for leaves that are left out. Refuses bad groups."""
    _tree.check_real(params)
    paths = _tree.paths(params)
    if groups is None:
        return [(path.rpartition("/")[0] or path or "params") if yes else None for path, yes in zip(paths, chosen)]
    if not callable(groups):
        remedy = 'such as lambda path: path.split("/")[0]'
        raise misuse("groups", groups, f"None, or a function from a path to the name of a block, {remedy}")
    remedy = 'It must take a path, a string such as "layers/0/kernel", and return a name or None'
    ask = functools.partial(called.ask, "groups", groups, "groups(path)", slips=remedy)
    names = [ask({"path": path}) if yes else None for path, yes in zip(paths, chosen)]
    for path, name in zip(paths, names, strict=True):
        if name is not None and (not isinstance(name, str) or not name):
            text = f"gave {name!r} for {path!r}"
            raise Misuse("groups", f"{text}; it must give the name of a block, or None to leave the leaf out")
    if not any(names):
        text = f"leaves everything out; it must give a name for at least one leaf of {', '.join(paths)}"
        raise Misuse("groups", f"{text}: give names to some, or pass None")
    return names


# --- traces


@jax.jit
def _per_leaf(z: PyTree, product: PyTree) -> jax.Array:
    """z'(H z) leaf by leaf, (probes, leaves)."""
    pairs = zip(jax.tree.leaves(z), jax.tree.leaves(product), strict=True)
    return jnp.stack([(x * y).reshape(len(x), -1).sum(1) for x, y in pairs], 1)


class _Work:
    """What ``per_layer`` has so far: the probes' products, then the ends of the layers.

    Args:
      recipe: of the call.
      on_partial: as for ``per_layer``.
      member: (blocks, leaves), whether a leaf belongs to a block.
    """

    def __init__(self, recipe: dict[str, Any], on_partial: Callable[[Estimate], None] | None, member: np.ndarray):
        self.recipe, self.on_partial, self.member = recipe, on_partial, member
        self.ends: list[eigen.Extremes] = []
        self.steps = self.at_once = 0  # 0: not chosen yet
        self.size: float | None = None  # of the unit
        self.begin(None)

    def begin(self, unit: Unit | None) -> None:
        """Begin in a unit, without any draws."""
        self.forms, self.used = np.zeros((0, self.member.shape[1])), 0
        self.size = None if unit is None else unit.size

    @recipes.reading_state()
    def restore(self, resume: Estimate) -> None:
        """Take over the state of an unfinished result."""
        state = resume.state or {}
        forms, ends = np.array(state["forms"], np.float64), np.asarray(state["ends"], np.float64)
        if forms.shape[1:] != self.forms.shape[1:] or not len(forms) or not np.isfinite(forms).all():
            raise ValueError(f"draws of shape {forms.shape}")
        if ends.shape[1:] != (4,) or len(ends) > len(self.member):
            raise ValueError(f"eigenvalues of shape {ends.shape}")
        self.used, self.at_once, self.steps = map(int, state["counts"])
        if self.used < len(forms) or self.at_once < 1 or self.steps < 1:
            raise ValueError(f"counts {state['counts']}")
        self.forms, self.size = forms, float(state["unit"])
        self.ends = [eigen.Extremes(a, b, residual, int(products)) for a, b, residual, products in ends.tolist()]

    def add(self, new: np.ndarray) -> None:
        """Add the forms of new probes (k, leaves), those before the first that is not finite."""
        self.used += len(new)
        self.forms = np.concatenate([self.forms, new[np.isfinite(new).all(1).cumprod().astype(bool)]])

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """(means, standard errors) of the blocks' traces and of their sum, in the unit."""
        draws = np.concatenate([self.forms @ self.member.T, self.forms.sum(1, keepdims=True)], 1)
        return draws.mean(0), standard_error(draws)

    def hand_over(self, stopped: str) -> None:
        """Call ``on_partial`` with all that there is, if there is anything."""
        if self.on_partial is None or not len(self.forms) or self.size is None:
            return
        state = {
            "forms": self.forms,
            "counts": np.array([self.used, self.at_once, self.steps]),
            "unit": np.array(self.size),
            "ends": np.array(self.ends, np.float64).reshape(-1, 4),
        }
        mean, sem = (float(each[-1]) * self.size for each in self.means())
        more = {"complete": False, "converged": False, "stopped": stopped, "products": self.used}
        recipe = self.recipe | more | recipes.seal(state)
        self.on_partial(Estimate(mean, sem, len(self.forms), recipe, state))


def _traces(
    work: _Work,
    unit: Unit,
    key: jax.Array,
    needed: room.Memory,
    progress: Progress | None,
    report: Progress | None,
) -> tuple[list[Estimate], Estimate]:
    """(the trace of every block, the trace of all blocks together); warns if they miss ``rtol``.

    Args:
      work: what there is so far; the draws are added.
      unit: the Hessian with its unit.
      key: draws the probes.
      needed: the memory of the eigenvalues of a layer, which are computed afterwards.
      progress: is told what to expect.
      report: called with (products so far, None).
    """
    H, rtol, most = unit.H, work.recipe["rtol"], work.recipe["max_products"]
    at_once, memory = random_probes.reserve_probes(unit, "per_layer")
    work.at_once = work.at_once or at_once
    if not unit.settled or work.size != unit.size:
        work.begin(unit)
    pieces = random_probes.map_probes(_per_leaf, H, key, work.used, most, work.at_once)
    while True:
        if work.used:
            unit.check(float(np.abs(work.forms).max()) if len(work.forms) else math.nan, work.used)
            if not len(work.forms):
                raise Misuse("loss", "the first Hessian product is not finite; check that the loss is finite here")
            mean, sem = work.means()
            if report is not None:
                error = float(sem.max() / (rtol * np.abs(mean[:-1]).sum() or math.inf))
                probes = forecasts.products_of_draws(max(work.used, LEAST), error, forecasts.INDEPENDENT, most)
                expect_total(progress, probes + work.steps * len(work.member))
                report(work.used, None)
            full = len(work.forms) % AT_ONCE == 0 or len(work.forms) == most
            enough = full and len(work.forms) >= min(LEAST, most)
            reached = enough and bool(sem.max() <= rtol * np.abs(mean[:-1]).sum())
            if reached or work.used >= most or len(work.forms) < work.used:
                break
        work.add(np.asarray(next(pieces), np.float64))
    num, mean, sem = len(work.forms), mean * unit.size, sem * unit.size
    if not reached:
        shares = "" if abs(mean[-1]) > COVERS * sem[-1] else f"; shares are NaN, as {_may_be_zero(mean[-1], sem[-1])}"
        reason = f"product {num + 1} is not finite" if num < work.used else "raise max_products or rtol"
        warn_caller(
            f"trace: after {num} products the largest error is {sem.max():.2g}, and rtol={rtol:g} of the traces' sum, "
            f"{rtol * np.abs(mean[:-1]).sum():.2g}, is asked for: {reason}{shares}"
        )
    kept = H.recipe["plan"]["bytes"]  # the operator's primal values, besides
    whole = room.Memory(max(memory.vectors, needed.vectors), max(memory.bytes, needed.bytes) + kept)
    about = {
        "kind": "block trace",
        "method": "hutchinson",
        "products": work.used,
        "memory": whole.recipe(),
        "rtol": rtol,
        "converged": reached,
        "total": {"mean": float(mean[-1]), "sem": float(sem[-1])},
        "key": recipes.fingerprint(key),
        "operator": dict(H.recipe),
    }
    each = [Estimate(float(m), float(s), num, about) for m, s in zip(mean, sem, strict=True)]
    return each[:-1], each[-1]
