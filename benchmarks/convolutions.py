"""Claim: on a CPU, XLA's convolutions are the limit of convolutional networks, and joined pixels take off part of it.

    python benchmarks/convolutions.py [--quick]

Operations per second, on one core, of every shape of convolution in ResNet-20 and LeNet: forward, the gradient of the
images, and that of the kernel with as many examples in a block as the products take and with 128, as XLA does them,
and with pixels joined as ``rewriting`` does it; beside them torch (oneDNN), with torch's layout. Seconds are those of
the processor, so that other processes count little; a form that does more work is not credited with it.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable
from typing import Any

from harness import measure

# side, input channels, output channels, width of the kernel, stride, padding
SHAPES = {
    "ResNet-20, first layer": (32, 3, 16, 3, 1, 1),
    "ResNet-20, 32 x 32": (32, 16, 16, 3, 1, 1),
    "ResNet-20, 32 to 16": (32, 16, 32, 3, 2, 1),
    "ResNet-20, 16 x 16": (16, 32, 32, 3, 1, 1),
    "ResNet-20, 16 to 8": (16, 32, 64, 3, 2, 1),
    "ResNet-20, 8 x 8": (8, 64, 64, 3, 1, 1),
    "LeNet, first layer": (28, 1, 6, 5, 1, 2),
    "LeNet, second layer": (14, 6, 16, 5, 1, 0),
}
EXAMPLES, MANY = 16, 128


def rate(operations: float, call: Callable[[], Any], repeats: int) -> float:
    """Billions of operations per second of the processor, in the best of several calls."""
    call()
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return operations / best / 1e9


def row(shape: tuple[int, ...], repeats: int) -> dict[str, float]:
    """The rates of one shape."""
    import jax
    import numpy as np
    import torch

    from lla_jax.execution import rewriting

    side, inside, outside, width, stride, padding = shape
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((width, width, inside, outside), np.float32)

    def conv(x: Any, w: Any) -> Any:
        pads, numbers = ((padding, padding),) * 2, ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (stride, stride), pads, dimension_numbers=numbers)

    def images_gradient(x: Any, w: Any, slope: Any) -> Any:
        return jax.vjp(lambda x: conv(x, w), x)[1](slope)[0]

    def kernel_gradient(x: Any, w: Any, slope: Any) -> Any:
        return jax.vjp(lambda w: conv(x, w), w)[1](slope)[0]

    def rates(examples: int, parts: tuple[str, ...]) -> dict[str, float]:
        images = rng.standard_normal((examples, side, side, inside), np.float32)
        slope = rng.standard_normal(jax.eval_shape(conv, images, kernel).shape, np.float32)
        arrays = jax.device_put((images, kernel, slope))
        x, w, s = (torch.tensor(np.ascontiguousarray(a)) for a in channels_first(images, kernel, slope))
        jobs = {"forward": (conv, arrays[:2]), "images": (images_gradient, arrays), "kernel": (kernel_gradient, arrays)}
        found: dict[str, float] = {}

        def ours(f: Callable[..., Any], args: Any) -> Callable[[], Any]:
            step = jax.jit(f)
            return lambda: jax.block_until_ready(step(*args))

        def torch_call(part: str) -> Any:
            if part == "forward":
                return torch.nn.functional.conv2d(x, w, None, stride, padding)
            options = (None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1)
            return torch.ops.aten.convolution_backward(s, x, w, *options, [part == "images", part == "kernel", False])

        for part in parts:
            f, args = jobs[part]
            calls = {
                "": ours(f, args),
                ", joined": ours(rewriting.rewrite_products(f), args),
                ", torch": functools.partial(torch_call, part),
            }
            for form, call in calls.items():
                found[part + form] = rate(2 * slope.size * kernel.size / outside, call, repeats)
        return found

    many = rates(MANY, ("kernel",))
    renamed = {name.replace("kernel", f"kernel, {MANY} examples"): value for name, value in many.items()}
    return rates(EXAMPLES, ("forward", "images", "kernel")) | renamed


def channels_first(images: Any, kernel: Any, slope: Any) -> tuple[Any, Any, Any]:
    return images.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1), slope.transpose(0, 3, 1, 2)


def worker(job: dict[str, Any]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    measure.start_jax(1)
    import torch

    torch.set_num_threads(1)
    with torch.inference_mode():
        measure.tell({name: row(shape, job["repeats"]) for name, shape in SHAPES.items()})


def table(rows: dict[str, dict[str, float]]) -> str:
    """The rates as Markdown: as XLA does them, joined where that is another form, and torch's."""
    parts = ("forward", "images", "kernel", f"kernel, {MANY} examples")
    lines = [f"| GFLOP/s of a core: XLA / joined / torch | {' | '.join(parts)} |", "|---" * 5 + "|"]
    for name, row in rows.items():
        cells = (" / ".join(f"{row[part + form]:.0f}" for form in ("", ", joined", ", torch")) for part in parts)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    options = measure.parser(__doc__, minutes=3).parse_args()
    if options.worker:
        worker(json.loads(options.worker))
        return
    result = measure.begun(__doc__, 1)
    result["rows"] = measure.child(__file__, {"repeats": 2 if options.quick else 20})
    if "error" not in result["rows"]:
        print(table(result["rows"]))
    print(f"written: {measure.keep(measure.place(options, 'convolutions'), result)}")


if __name__ == "__main__":
    main()
