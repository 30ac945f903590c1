"""Claim: what the TPU's compiler says of our programs: memory, operations, bytes, time, and which plan is the fastest.

    python benchmarks/tpu.py [--only TEXT] [--list] [--minutes 60]

No TPU is needed: libtpu (``pip install "jax[tpu]"``) compiles for a slice that is not there, and nothing is run. One
step of a landscape of the MLP, LeNet, ResNet-20, ViT and GPT under every plan that is tried on accelerators and some
more, a Hessian product whose primal values are kept, a step of Lanczos, and a product whose parameters are sharded over
the chips. Loops count as often as they turn. Each program is compiled in a process of its own and takes a second to
minutes; its row is written at once, and a later call goes on with those that are missing.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from typing import Any

from harness import measure

POINTS = 41 * 41
BASIS = 51  # rows of the basis that a step of Lanczos is orthogonal to, of which one is new
LIMIT_S = 1800.0  # for one program
SLICES = ("tpu-v5e-1", "tpu-v5e-4", "tpu-v5e-16", "tpu-v5p-4", "tpu-v6e-1")
NETWORKS = ("mlp", "lenet", "vit", "gpt", "resnet")  # in the order of the time that compiling takes
VMAP, LOOP = "vmap", "map"
CHUNK = {"mlp": 241, "lenet": 13, "resnet": 15, "vit": 63, "gpt": 63}  # points of a batch, as plans.candidates cuts it


def jobs() -> Iterator[dict[str, Any]]:
    """All rows, the cheapest and most wanted first. A plan is (loop, points a call, share)."""

    def planes(name: str, place: str, plan: str, share: bool, precision: str = "highest") -> dict[str, Any]:
        chunk = 1 if plan == "one" else CHUNK[name] if plan == VMAP else 64
        about = {"program": "plane", "network": name, "slice": place, "precision": precision}
        return about | {"loop": VMAP if plan == VMAP else LOOP, "chunk": chunk, "share": share}

    here = SLICES[0]
    best = {"mlp": (VMAP, True), "lenet": (LOOP, False), "resnet": (LOOP, False), "vit": (LOOP, False)}
    best["gpt"] = best["vit"]
    for name in NETWORKS:
        yield planes(name, here, *best[name])
        yield {"program": "product", "network": name, "slice": here}
    for name in NETWORKS:  # the plans beside
        for plan, share in ((LOOP, True), (LOOP, False), (VMAP, True), (VMAP, False), ("one", False)):
            if (plan, share) != best[name]:
                yield planes(name, here, plan, share)
    for name in ("mlp", "lenet"):
        yield {"program": "lanczos", "network": name, "slice": here}
    for place in SLICES[1:]:
        yield {"program": "sharded", "network": "gpt", "slice": place}
        for name in NETWORKS:
            yield planes(name, place, *best[name])
            yield {"program": "product", "network": name, "slice": place}
    for name in NETWORKS:
        yield planes(name, here, *best[name], precision="default")


def name_of(job: dict[str, Any]) -> str:
    """The row's name, by which it is found again."""
    named = [job["program"], job["network"], job["slice"]]
    if job["program"] == "plane":
        named += [job["loop"], str(job["chunk"]), "shared" if job["share"] else "whole", job["precision"]]
    return " ".join(named)


# -- in a process of its own -------------------------------------------------------------------------------------------


def compiled(job: dict[str, Any]) -> dict[str, Any]:
    """The row of a program."""
    from lla_jax.execution import topologies

    place = topologies.slice_named(job["slice"])
    step, args, static = _MAKERS[job["program"]](job, topologies.devices_of(place))
    found = topologies.compile_program(step, *args, on=place, name=name_of(job), trips={"while": 1}, **static)
    row = {name: value for name, value in found._asdict().items() if name not in ("name", "slice")}
    row["collectives"] = {kind: [each.calls, each.nbytes] for kind, each in found.collectives.items()}
    row |= {"share_of_roofline": found.share, "fits": found.fits}
    if found.seconds is not None and job["program"] == "plane":
        row["us_per_point"] = 1e6 * found.seconds / (job["chunk"] * found.chips)
    return row


def _on(tree: Any, sharding: Any) -> Any:
    """Shapes and types in place of arrays, as they would lie on the devices."""
    import jax
    import numpy as np

    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding), tree)


def _plane(job: dict[str, Any], devices: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A step of a landscape: ``chunk`` points on each chip, over all examples."""
    import numpy as np
    from cases import plain
    from jax.sharding import NamedSharding, PartitionSpec

    from lla_jax.core.static import static
    from lla_jax.execution import devices as _devices
    from lla_jax.execution.plans import Plan
    from lla_jax.landscape import kernels
    from lla_jax.landscape.rules import add

    loss, params, data = plain.problem(job["network"])
    mesh = _devices.mesh_of(devices)
    everywhere, split = _devices.replicated(mesh), _devices.replicated(mesh)
    if mesh.size > 1:
        split = NamedSharding(mesh, PartitionSpec(_devices.GRID))
    coords = _on(np.zeros((job["chunk"] * mesh.size, 2), np.float32), split)
    points = kernels.Points(_on(params, everywhere), _on(plain.axes(params), everywhere), coords)
    rows = len(data[1])
    blocks = kernels.Blocks(_on(data, everywhere), *(_on(np.zeros(n, np.int32), everywhere) for n in ((1,), (), ())))
    plan = Plan(job["chunk"], rows, job["loop"], job["share"], True)
    formula = kernels.Formula(static(add), False, (), job["precision"])
    arguments = _on(loss, everywhere), points, blocks
    return kernels.block_sums, arguments, {"formula": formula, "plan": plan, "mesh": mesh}


def _operator(job: dict[str, Any], devices: Any, params_mesh: Any = None) -> tuple[Any, Any, Any]:
    """(multiplier, common, space) of a Hessian over the chips, of shapes alone."""
    import jax
    import numpy as np
    from cases import plain
    from jax.sharding import NamedSharding, PartitionSpec

    from lla_jax.curvature import blocks
    from lla_jax.curvature.matrices import Matrix
    from lla_jax.curvature.products import Common
    from lla_jax.curvature.space import Space
    from lla_jax.execution import devices as _devices

    loss, params, data = plain.problem(job["network"])
    mesh = _devices.mesh_of(devices[:1] if params_mesh is not None else devices)
    convolves = {"conv_general_dilated"} if job["network"] in ("lenet", "resnet") else set()
    mask = (True,) * len(jax.tree.leaves(params))
    settings = blocks.Settings(Matrix("hessian", mask), mesh, params_mesh, False, None, False, False, "highest")
    by = blocks._multiplier(settings, mesh, convolves, params_mesh)
    everywhere = _devices.replicated(params_mesh or mesh)
    split = everywhere if mesh.size == 1 else NamedSharding(mesh, PartitionSpec(_devices.GRID))
    rows = -(-len(data[1]) // mesh.size) * mesh.size
    data = jax.tree.map(lambda x: np.resize(x, (rows, *x.shape[1:])), data)
    shards = None
    if params_mesh is None:
        params = _on(params, everywhere)
    else:  # every leaf along its last axis
        (axis,) = params_mesh.axis_names
        leaves, treedef = jax.tree.flatten(params)
        fits = [x.shape[-1] % params_mesh.size == 0 for x in leaves]
        specs = [PartitionSpec(*[None] * (x.ndim - 1), axis if fit else None) for x, fit in zip(leaves, fits)]
        shards = tuple(NamedSharding(params_mesh, spec) for spec in specs)
        params = jax.tree.unflatten(treedef, [_on(x, at) for x, at in zip(leaves, shards, strict=True)])
    number = _on(np.int32(0), everywhere)
    common = Common(_on(loss, everywhere), params, _on(data, split), number, number, None)
    leaves, treedef = jax.tree.flatten(params)
    return by, common, Space(treedef, tuple((x.shape, x.dtype) for x in leaves), shards)


def _kept(by: Any, common: Any) -> Any:
    """The linear maps whose primal values are kept, as shapes."""
    import jax
    import numpy as np

    from lla_jax.curvature import products

    rows = len(common.data[1]) // by.mesh.size
    starts = np.zeros(1, np.int32)
    return jax.eval_shape(functools.partial(products.linearize, by=by, size=rows), common, starts)


def _placed(maps: Any, by: Any) -> Any:
    from jax.sharding import NamedSharding, PartitionSpec

    from lla_jax.execution import devices as _devices

    split = NamedSharding(by.mesh, PartitionSpec(_devices.GRID)) if by.mesh.size > 1 else _devices.replicated(by.mesh)
    return _on(maps, split)


def _product(job: dict[str, Any], devices: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A Hessian product with kept primal values, each chip with its part of the examples."""
    from lla_jax.curvature import products
    from lla_jax.execution import devices as _devices

    by, common, space = _operator(job, devices)
    maps = _placed(_kept(by, common), by)
    vector = _on(space.structure, _devices.replicated(by.mesh))
    return products.sums_step, (common._replace(data=None), space, maps, vector), {"by": by}


def _lanczos(job: dict[str, Any], devices: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """One step of Lanczos: a product, and the remainder made orthogonal to a basis."""
    import jax
    import numpy as np

    from lla_jax.curvature import lanczos
    from lla_jax.curvature.linear_operator import LinearOperator
    from lla_jax.execution import devices as _devices

    by, common, space = _operator(job, devices)
    H = LinearOperator(by, space, common._replace(data=None), (_placed(_kept(by, common), by),))
    at = _devices.replicated(by.mesh)
    basis = jax.tree.map(lambda x: jax.ShapeDtypeStruct((BASIS, *x.shape), x.dtype, sharding=at), space.structure)
    numbers = [np.int32(0), np.int32(1), np.int32(1), np.float32(0), np.float32(0)]
    start = lanczos._Start(*(_on(number, at) for number in numbers))
    return lanczos._on_device, (H, basis, start), {"window": False, "batched": False}


def _sharded(job: dict[str, Any], devices: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A Hessian product, computed anew, with parameters that lie in parts on all chips."""
    import jax
    import numpy as np
    from jax.sharding import AxisType, Mesh

    from lla_jax.curvature import products
    from lla_jax.curvature.products import Rows

    mesh = Mesh(np.array(devices), ("model",), axis_types=(AxisType.Auto,))
    by, common, space = _operator(job, devices, mesh)
    vector = jax.tree.map(_on, space.structure, space.tree(space.shards))
    block = Rows(_on(np.zeros(1, np.int32), common.count.sharding), len(common.data[1]))
    return products.sums_step, (common, space, block, vector), {"by": by}


_MAKERS = {"plane": _plane, "product": _product, "lanczos": _lanczos, "sharded": _sharded}


# -- all rows ----------------------------------------------------------------------------------------------------------


def main() -> None:
    made = measure.parser(__doc__, minutes=60)
    made.add_argument("--only", default="", help="rows whose name has this text, such as 'plane lenet tpu-v5e-1'")
    made.add_argument("--list", action="store_true", help="the names of all rows, and nothing more")
    options = made.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # another process may compile beside
    if options.worker:
        measure.tell(compiled(json.loads(options.worker)))
        return
    wanted = [job for job in jobs() if options.only in name_of(job)]
    if options.list:
        print("\n".join(map(name_of, wanted)))
        return
    from lla_jax.execution import topologies

    if not topologies.has_compiler():
        raise SystemExit('libtpu, the compiler for TPUs, is not installed: pip install "jax[tpu]" (no TPU is needed)')
    path, left = measure.place(options, "tpu"), measure.clock(options.minutes)
    result = measure.resumed(path, measure.begun(__doc__, 0) | {"rows": {}}) | {"wanted": len(list(jobs()))}
    for job in wanted[:2] if options.quick else wanted:
        name = name_of(job)
        if "chips" in result["rows"].get(name, {}):
            continue
        if left() < 0:
            print(f"  {name}: the time is over, skipped")
            continue
        row = measure.child(__file__, job, limit=LIMIT_S)
        print(f"  {name}: {row}", flush=True)
        result["rows"][name] = job | row
        measure.keep(path, result)
    print(f"written: {measure.keep(path, result)}")


if __name__ == "__main__":
    main()
