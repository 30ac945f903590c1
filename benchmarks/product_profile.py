"""Where the time of one curvature product goes, on lla_jax's side; a part of ``hessian.py``."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any

from cases import curvature
from harness import measure

STEPS = 100


def block_pass(problem: tuple, what: str, rows: int, rewritten: bool) -> Callable[[], Any]:
    """One pass of the model over all data, "forward" or "gradient", laid out as the products are.

    Blocks of ``rows`` examples on every device, called from the host; with ``rewritten``, the
    model goes through ``rewriting.rewrite_for_derivatives``.
    """
    import jax
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    from lla_jax.execution import rewriting as lowering

    loss, params, (x, y) = problem
    mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(AxisType.Auto,))
    whole, split = PartitionSpec(), PartitionSpec("rows")

    def total(params: Any, state: Any, x: Any, y: Any) -> Any:
        def scores(p: Any) -> Any:
            return loss.apply(p, state, (x, y), False)[0]

        return loss.criterion(
            (lowering.rewrite_for_derivatives(scores, params) if rewritten else scores)(params), (x, y)
        ).sum()

    def each(*args: Any) -> Any:  # a leading axis of devices: no collectives, which may deadlock between CPU devices
        found = (jax.grad(total) if what == "gradient" else total)(*args)
        return jax.tree.map(lambda x: x[None], found)

    step = jax.jit(
        jax.shard_map(each, mesh=mesh, in_specs=(whole, whole, split, split), out_specs=split, check_vma=False)
    )
    plus = jax.jit(lambda a, b: jax.tree.map(jax.numpy.add, a, b))
    size = next(n for n in range(min(rows * mesh.size, len(y)), 0, -1) if len(y) % n == 0 and n % mesh.size == 0)
    blocks = [
        jax.device_put((x[i : i + size], np.asarray(y[i : i + size])), NamedSharding(mesh, split))
        for i in range(0, len(y), size)
    ]
    params, state = jax.device_put((params, loss.state), NamedSharding(mesh, whole))

    def once() -> Any:
        return jax.block_until_ready(functools.reduce(plus, [step(params, state, *block) for block in blocks]))

    return once


def where(path: pathlib.Path, repeats: int) -> dict[str, Any]:
    """Milliseconds of the parts of a product, and what keeping the primal values costs."""
    import jax

    import lla_jax as lla
    from lla_jax.execution import rewriting as lowering

    problem = curvature.jax_problem(path)
    keep, repeat = (lla.Execution(linearize=choice) for choice in (True, False))
    kept, anew = (lla.hessian(*problem, execution=how) for how in (keep, repeat))
    v = kept.random(jax.random.key(0))
    rows = kept.recipe["plan"]["rows"]

    def product(H: Any) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(H.product(v))

    calls = {
        "forward": block_pass(problem, "forward", rows, True),
        "forward and backward (gradient)": block_pass(problem, "gradient", rows, True),
        "forward, model as written": block_pass(problem, "forward", rows, False),
        "gradient, model as written": block_pass(problem, "gradient", rows, False),
        "product, primal values kept": product(kept),
        "product, primal values recomputed": product(anew),
        "keeping them (once)": lambda: jax.block_until_ready(lla.hessian(*problem, execution=keep).blocks),
        "making the operator without": lambda: lla.hessian(*problem, execution=repeat),
        "re-orthogonalisation, 100 vectors": update(kept),
    }
    if "conv2" in problem[1]:
        for pool, name in (("none", "without pooling"), ("reshape", "pooling written as a maximum over reshaped axes")):
            H = lla.hessian(*curvature.jax_problem(path, pool), execution=keep)
            calls[f"product, {name}"] = product(H)
    found = measure.alternate(calls, dict.fromkeys(calls, 1), repeats)
    result: dict[str, Any] = {name: row["min_ms"] for name, row in found.items()}
    lowering.rewrite_for_derivatives = lambda f, params: f
    jax.clear_caches()
    plain = product(lla.hessian(*problem, execution=keep))
    name = "product, model as written"
    result[name] = measure.alternate({name: plain}, {name: 1}, repeats)[name]["min_ms"]
    return {"ms": result, "plan": kept.recipe["plan"] | {"devices": jax.device_count()}}


def update(H: Any) -> Callable[[], Any]:
    """One update of Lanczos against a full basis, as the host loop calls it."""
    import jax

    import lla_jax as lla

    basis = lla.lanczos.lanczos(H, jax.random.key(1), 2).basis
    held = [jax.tree.map(lambda q: jax.numpy.tile(q, (STEPS // 2, *[1] * (q.ndim - 1))), basis)]
    product = H.random(jax.random.key(2))
    step = jax.jit(lla.lanczos.lanczos_step, donate_argnums=0)

    def once() -> None:
        held[0] = jax.block_until_ready(step(held[0], product, STEPS - 1)).basis

    return once
