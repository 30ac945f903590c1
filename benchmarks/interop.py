"""What a converted torch network costs against the same network written in Flax, and against torch itself.

    python benchmarks/interop.py --data shared/data

Loss, gradient and Hessian product over one batch, whole and compiled once, in turns; the product and a point of a
landscape as lla_jax drives them; seconds of a conversion; compilations for a second checkpoint (none).
"""

from __future__ import annotations

import argparse
import copy
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from cases import curvature
from harness import measure

REPEATS = 7


def functions(loss: Any) -> dict[str, Callable[..., Any]]:
    """The loss over one batch and its derivatives, compiled, as functions of (params, v, state, data)."""
    import jax

    def value(params: Any, state: Any, data: Any) -> Any:
        losses = loss.criterion(loss.apply(params, state, data, False)[0], data)
        return losses.mean() if not isinstance(losses, tuple) else (losses[0] * losses[1]).sum() / losses[1].sum()

    def product(params: Any, v: Any, state: Any, data: Any) -> Any:
        return jax.jvp(lambda p: jax.grad(value)(p, state, data), (params,), (v,))[1]

    return {
        "loss": jax.jit(lambda params, v, state, data: value(params, state, data)),
        "gradient": jax.jit(lambda params, v, state, data: jax.grad(value)(params, state, data)),
        "Hessian product": jax.jit(product),
    }


def driven(loss: Any, params: Any, data: Any) -> dict[str, Callable[[], Any]]:
    """The same work as lla_jax does it: products of an operator, points of a plane."""
    import jax

    import lla_jax as lla

    H = lla.hessian(loss, params, data)
    v = H.random(jax.random.key(0))
    axes = lla.directions.normalize(
        lla.directions.random(jax.random.key(1), params, 2), params, by="filter", filter_axis=loss
    )
    grid = lla.grid(points=4, dims=2)
    return {
        "lla.hessian product": lambda: jax.block_until_ready(H.product(v)),
        "lla.evaluate point": lambda: lla.evaluate(loss, params, data, axes, grid),
    }


def torch_calls(net: Any, x: Any, y: Any) -> dict[str, Callable[[], Any]]:
    """torch in eager mode; the product by double backward from scratch."""
    import torch

    params = list(net.parameters())
    v = [torch.randn_like(p) for p in params]

    def loss() -> Any:
        return torch.nn.functional.cross_entropy(net(x), y)

    def product() -> Any:
        slope = torch.autograd.grad(loss(), params, create_graph=True)
        return torch.autograd.grad(slope, params, v)

    def forward() -> Any:
        with torch.no_grad():
            return loss()

    return {"loss": forward, "gradient": lambda: torch.autograd.grad(loss(), params), "Hessian product": product}


def compilations(call: Callable[[], Any]) -> int:
    """Programs that the backend compiles during a call."""
    import jax

    seen: list[str] = []

    def listen(event: str, *_: Any, **__: Any) -> None:
        if event.endswith("backend_compile_duration"):
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    call()
    return len(seen)


def network(name: str, source: pathlib.Path, batch: int, repeats: int) -> dict[str, Any]:
    """All rows of one network."""
    import jax
    import lla_torch
    import torch

    import lla_jax as lla

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / f"{name}.npz"
        about = curvature.prepare(name, source, batch, path)
        net_torch, x, y = curvature.torch_problem(path)
        native = curvature.jax_problem(path)
    first = measure.seconds(lambda: lla_torch.convert(net_torch, x[:8]))
    nets: list[Any] = []
    again = measure.seconds(lambda: nets.append(lla_torch.convert(net_torch, x[:8])))
    net = nets[0]
    loss, data = net.loss(torch.nn.CrossEntropyLoss()), (x.numpy(), y.numpy().astype("int32"))
    sides = {"converted": (loss, net.variables["params"], data), "native Flax": native}
    ms: dict[str, Any] = {}
    plain = {}
    for side, (side_loss, params, side_data) in sides.items():
        v = jax.tree.map(lambda p: jax.numpy.ones_like(p), params)
        args = jax.device_put((params, v, side_loss.state, side_data))
        for what, f in functions(side_loss).items():
            plain[what, side] = lambda f=f, args=args: jax.block_until_ready(f(*args))
    eager = torch_calls(net_torch, x, y)
    held = {side: driven(*problem) for side, problem in sides.items()}
    for what in (*eager, *held["converted"]):
        if what in eager:
            calls = {side: plain[what, side] for side in sides} | {"torch": eager[what]}
        else:
            calls = {side: held[side][what] for side in sides}
        units = dict.fromkeys(calls, 16 if "point" in what else 1)
        rows = measure.alternate(calls, units, repeats)
        ms[what] = {side: row["min_ms"] for side, row in rows.items()}
        ms[what] |= {"times native": ms[what]["converted"] / ms[what]["native Flax"]}
    other = copy.deepcopy(net_torch)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.1)
    second = lla_torch.convert(other, x[:8])
    args = (second.variables["params"], data)
    anew = second.loss(torch.nn.CrossEntropyLoss())

    def work() -> None:
        H = lla.hessian(anew, *args)
        H.product(H.random(jax.random.key(0)))

    certificate = lla_torch.certify(net_torch, net, (x[:64], y[:64]), torch.nn.CrossEntropyLoss())
    return {
        "parameters": sum(p.numel() for p in net_torch.parameters()),
        "batch": batch,
        "data": about,
        "ms": ms,
        "conversion_s": {"first": first, "again": again},
        "compilations_of_a_second_checkpoint": compilations(work),
        "certificate": {f"{r.quantity}, {r.dtype}": r.error for r in certificate.rows},
        "certified": certificate.ok,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder with the two checkpoints")
    parser.add_argument("--only", choices=curvature.NAMES, help="one network")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--batch", type=int, help="another batch size")
    options = parser.parse_args()
    measure.start_jax(1)
    import torch

    torch.set_num_threads(measure.THREADS)
    torch.manual_seed(0)
    found = {}
    for name in [options.only] if options.only else curvature.NAMES:
        found[name] = network(name, options.data, options.batch or curvature.BATCH[name], options.repeats)
        for what, row in found[name]["ms"].items():
            print(name, what, {side: round(value, 3) for side, value in row.items()}, flush=True)
    result = {"environment": measure.environment(measure.THREADS), "networks": found}
    print(measure.keep(measure.RESULTS / "interop.json", result))


if __name__ == "__main__":
    main()
