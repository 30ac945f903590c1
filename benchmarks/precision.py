"""Claim: near a minimum a landscape is noise at the default precision of a TPU or a GPU, and none at evaluate's own.

    python benchmarks/precision.py [--quick]

A trained network (the demo's: convolutions and BatchNorm, on the digits) along random, filter-normalized directions, at
distances from 0.001 to 1 of the minimum, each setting of ``Execution.precision`` with matrix products rounded as on a
TPU and on a GPU (``harness/emulation.py``: emulated on the CPU, not measured on one). The noise is the error of the
rise above the centre, L(c) - L(0), against the same in float64: the root of the mean square over directions. Draws
results/precision.png from the JSON.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from harness import measure

PLATFORMS = {"tpu": "TPU: bfloat16", "gpu": "GPU: TensorFloat-32"}
SETTINGS = {"default": ("#d55e00", "o-"), "high": ("#009e73", "^--"), "highest": ("#0072b2", "s-")}
"""A colour, a marker and a line for each setting: on a GPU two of them lie on each other."""

DIRECTIONS, DISTANCES, READABLE = 8, 13, 0.1  # noise of this share of the rise can be seen


def losses(problem: Any, directions: list[Any], coords: Any, **execution: Any) -> Any:
    """(D, C): the losses along each direction."""
    import numpy as np

    import lla_jax as lla

    fixed = lla.Execution(devices=1, chunk=len(coords), microbatch=256, loop="map", share=False, **execution)
    planes = lla.evaluate(*problem, directions, (coords,), execution=fixed)
    return np.stack([plane["loss"] for plane in planes])


def exact(problem: Any, directions: list[Any], coords: Any) -> Any:
    """The same in float64."""
    import jax
    import numpy as np

    import lla_jax as lla

    def wide(tree: Any) -> Any:
        return jax.tree.map(lambda x: np.asarray(x, np.float64) if x.dtype == np.float32 else np.asarray(x), tree)

    loss, params, data = problem
    with jax.enable_x64(True):
        loss = dataclasses.replace(loss, state=wide(loss.state))
        along = [lla.directions.given(jax.tree.map(lambda x: x[0], wide(axes.tree))) for axes in directions]
        return losses((loss, wide(params), wide(data)), along, coords)


def rises(values: Any) -> Any:
    """(2 D, distances): the losses above the centre at both ends of each distance."""
    import numpy as np

    middle = values.shape[1] // 2
    above = values - values[:, middle : middle + 1]
    return np.concatenate([above[:, middle + 1 :], above[:, :middle][:, ::-1]])


def curves(quick: bool) -> dict[str, Any]:
    """The rise and the noise at each distance, by platform and setting."""
    import jax
    import numpy as np
    from harness import emulation

    import lla_jax as lla
    from lla_jax import demo

    made = demo.problem()
    problem = (made.loss, made.params, jax.tree.map(lambda x: x[:256] if quick else x, made.data))
    reach = np.geomspace(1e-3, 1, 5 if quick else DISTANCES)
    coords = np.concatenate([-reach[::-1], [0.0], reach])
    keys = jax.random.split(jax.random.key(1), 2 if quick else DIRECTIONS)
    axes = [
        lla.directions.normalize(lla.directions.random(key, made.params, 1), made.params, filter_axis=made.loss)
        for key in keys
    ]
    true = rises(exact(problem, axes, coords))
    rise = np.sqrt(np.square(true).mean(0))
    noise: dict[str, Any] = {}
    for platform in PLATFORMS:
        with emulation.landscapes_on(platform):
            for setting in SETTINGS:
                found = rises(losses(problem, axes, coords, precision=setting))
                noise.setdefault(platform, {})[setting] = np.sqrt(np.square(found - true).mean(0)).tolist()
    centre = float(losses(problem, axes[:1], np.array([0.0]))[0, 0])
    return {
        "distance": reach.tolist(),
        "rise": rise.tolist(),
        "noise": noise,
        "centre": centre,
        "directions": len(axes),
    }


def readable_from(found: dict[str, Any], platform: str, setting: str) -> float | None:
    """The distance from which on the noise is below a tenth of the rise everywhere; None if it never is."""
    pairs = zip(found["distance"], found["rise"], found["noise"][platform][setting], strict=True)
    good = [(distance, noise <= READABLE * rise) for distance, rise, noise in pairs]
    bad = [i for i, (_, fine) in enumerate(good) if not fine]
    start = bad[-1] + 1 if bad else 0
    return good[start][0] if start < len(good) else None


def draw(found: dict[str, Any], path: pathlib.Path) -> None:
    """Noise against distance, one panel for each platform, beside the rise of the loss."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for panel, (platform, title) in zip(panels, PLATFORMS.items(), strict=True):
        panel.loglog(
            found["distance"], found["rise"], color="black", lw=1.5, label="rise of the loss above the minimum"
        )
        for setting, (colour, style) in SETTINGS.items():
            label = f'noise, precision="{setting}"'
            noise = found["noise"][platform][setting]
            panel.loglog(found["distance"], noise, style, color=colour, ms=4, lw=1, label=label)
        panel.set(title=f"{title} (emulated)", xlabel="distance from the trained network")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("loss")
    panels[0].legend(fontsize=8, loc="upper left")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    options = measure.parser(__doc__, 10).parse_args()
    measure.start_jax(1)
    result = measure.begun(__doc__, options.threads)
    path = measure.place(options, "precision")
    result["curves"] = found = curves(options.quick)
    result["readable_from"] = {
        platform: {setting: readable_from(found, platform, setting) for setting in SETTINGS} for platform in PLATFORMS
    }
    print(json.dumps(result["readable_from"], indent=1))
    measure.keep(path, result)
    draw(found, path.with_suffix(".png"))
    print(path)


if __name__ == "__main__":
    main()
