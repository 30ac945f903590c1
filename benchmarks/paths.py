"""Claim: curves between solutions, recordings and films cost less here than with the programs made for each of them.

    python benchmarks/paths.py [--connectivity PATH] [--anim PATH [--packages PATH]] [--only curve,record] [--quick]

PATH is a checkout: of dnn-mode-connectivity, of loss-landscape-anim; --packages is a folder with what the latter needs
and this environment lacks. Each number comes from a process of its own, with as many threads on both sides.

    curve     a Bezier curve between two small networks on the digits, without BatchNorm and with it: the same ends, the
              same start on the straight line, steps, batches, learning rates and weight decay; seconds, and the losses
              at 61 points. The same curve is evaluated by both, to compare the values
    record    an MLP trained, every step recorded: seconds per step more than without, and growth of memory with T
    pca       its principal components, ours from disk and theirs from memory; of 200 checkpoints scikit-learn's
              full decomposition in float64 is the truth
    grid      50 x 50 losses about the end of the path, on the same axes
    plane     1,002,001 points of the small MLP, about its descent
    film      60 frames at 1920 x 1080 of that descent
"""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from typing import Any

import numpy as np
from cases import planes, solutions
from harness import measure

CURVES, ANIM = "dnn-mode-connectivity", "loss-landscape-anim"
PARTS = ("curve", "record", "pca", "grid", "plane", "film")
EPOCHS, RUNS, POINTS = 40, 2, 61
STEPS, MLP = (200, 1000), {"width": 256, "layers": 2, "batch": 128}
SIDE, MILLION, FRAMES, SIZE = 50, 1001, 60, (1920, 1080)


# -- curves ------------------------------------------------------------------------------------------------------------


def curve(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds and losses of some trainings; the first one compiles."""
    import jax
    import lla_torch
    import optax
    import torch

    import lla_jax as lla

    folder, name = pathlib.Path(job["folder"]), job["name"]
    data, test = solutions.digits()
    ends = [solutions.load(folder, name, seed) for seed in (0, 1)]
    a, b = (lla_torch.convert(end, solutions.tensors(data)[0][:8], train=True) for end in ends)
    loss, state_b = a.loss(torch.nn.CrossEntropyLoss()), b.loss(torch.nn.CrossEntropyLoss()).state
    state_b = state_b if solutions.SETTINGS[name] else None
    pair, steps = (a.variables["params"], b.variables["params"]), len(data[1]) // solutions.BATCH
    compiling = measure.compiling()

    def rate(step: Any) -> Any:  # of the step's epoch
        share = step // steps / job["epochs"]
        return solutions.RATE * jax.numpy.interp(share, jax.numpy.array([0.5, 0.9]), jax.numpy.array([1.0, 0.01]))

    optimizer = optax.sgd(rate, momentum=solutions.MOMENTUM)

    def train(seed: int) -> Any:
        return lla.paths.connect(
            loss, *pair, data, key=jax.random.key(seed), state_b=state_b, steps=job["epochs"] * steps,
            optimizer=optimizer, batch_size=solutions.BATCH, displacement=0.0, weight_decay=solutions.DECAY,
        )  # fmt: skip

    def evaluate(made: Any) -> Any:
        return lla.paths.evaluate(
            made, loss, data, points=job["points"], extra_data={"test": test}, batch_size=solutions.BATCH
        )

    seconds, losses = [], []
    for seed in range(job["runs"]):
        trained, made = measure.timed(lambda seed=seed: train(seed))
        evaluated, found = measure.timed(lambda made=made: evaluate(made))
        seconds.append({"train": trained, "evaluate": evaluated})
        losses.append(_losses(found))
    states = (loss.state, state_b) if state_b is not None else ()
    more = {"line": _losses(evaluate(lla.paths.line(*pair, *states)))}
    if (folder / f"{name}-middle.pt").exists():  # the rival's
        net = solutions.load(folder, name, "middle")
        middle = lla_torch.convert(net, solutions.tensors(data)[0][:8], train=True).variables["params"]
        more["same"] = _losses(evaluate(lla.paths.bezier([pair[0], middle, pair[1]], *states)))
    return more | {"seconds": seconds, "losses": losses, "compile_s": sum(compiling)}


def _losses(found: Any) -> dict[str, list[float]]:
    test = next(name for name in found.values if name != "loss" and "loss" in name)
    return {"loss": found.values["loss"].tolist(), "test": found.values[test].tolist()}


def along(losses: dict[str, list[float]]) -> dict[str, float]:
    """What is said of the losses along a curve."""
    train, test = (np.array(losses[name]) for name in ("loss", "test"))
    return {
        "mean": train.mean(),
        "max": train.max(),
        "ends": [train[0], train[-1]],
        "test_mean": test.mean(),
        "test_max": test.max(),
    }


def side_of_a_curve(told: dict[str, Any]) -> dict[str, Any]:
    """A worker's row in short: seconds of the first run and the least of the others, losses of each run."""
    if "error" in told:
        return told
    first, *others = told["seconds"]
    least = {f"{what}_s": min((row[what] for row in others), default=first[what]) for what in first}
    every = [along(losses) for losses in told["losses"]]
    row = {"first_s": first, **least, "compile_s": told.get("compile_s", 0.0)}
    row |= {name: [each[name] for each in every] for name in ("mean", "max", "test_mean", "test_max")}
    return row | {"ends": every[0]["ends"]}


# -- recordings, components, grids -------------------------------------------------------------------------------------


def mlp(job: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    """(loss, params, data, module): an MLP on the digits, such as loss-landscape-anim has one."""
    import flax.linen as nn
    import jax

    import lla_jax as lla

    layers = [layer for _ in range(job["layers"]) for layer in (nn.Dense(job["width"]), nn.relu)]
    module, data = nn.Sequential([*layers, nn.Dense(10)]), (np.load(job["x"]), np.load(job["y"]))
    variables = module.init(jax.random.key(0), data[0][:1])
    return lla.from_linen(module, variables, planes.cross_entropy), variables["params"], data, module


def record(job: dict[str, Any]) -> dict[str, Any]:
    """Train an MLP without recording and with it; memory and seconds per step."""
    import jax
    import optax

    import lla_jax as lla

    _, start, (x, y), module = mlp(job)
    optimizer = optax.sgd(0.01)

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> Any:
        def value(params: Any) -> Any:
            return planes.cross_entropy(module.apply({"params": params}, batch[0]), batch).mean()

        loss, gradient = jax.value_and_grad(value)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    def train(steps: int, folder: Any = None) -> None:
        track = None if folder is None else lla.paths.record(folder, every=1)
        params, state, batches = start, optimizer.init(start), np.random.default_rng(0)
        for i in range(steps):
            rows = batches.integers(0, len(y), job["batch"])
            if track is not None:
                track(params, i)
            params, state, loss = step(params, state, (x[rows], y[rows]))
        jax.block_until_ready(loss)

    with tempfile.TemporaryDirectory() as other:
        train(20, pathlib.Path(other) / "warm")
    train(20)
    plain = measure.seconds(lambda: train(job["steps"]))
    found, _ = measure.growth_mib(lambda: train(job["steps"], job["recording"]))
    size = sum(file.stat().st_size for file in pathlib.Path(job["recording"]).iterdir())
    return found | {
        "plain_s": plain,
        "device_mib": sum(x.nbytes for x in jax.live_arrays()) / 2**20,
        "disk_mib": size / 2**20,
    }


def components(job: dict[str, Any]) -> dict[str, Any]:
    """The principal components of a recording; what the other side and the grids need is written, not timed."""
    import lla_jax as lla

    lla.paths.pca(lla.paths.load(job["recording"])[:3])  # what every process loads once is not the part's
    found, (axes, _) = measure.growth_mib(lambda: lla.paths.pca(lla.paths.load(job["recording"])))
    again = measure.seconds(lambda: lla.paths.pca(lla.paths.load(job["recording"])))
    path = lla.paths.load(job["recording"])
    np.save(job["flat"], np.stack([flat(params) for params in path]))
    np.save(
        job["axes"],
        np.stack([flat({k: {n: x[i] for n, x in v.items()} for k, v in axes.tree.items()}) for i in (0, 1)]),
    )
    return found | {"again_s": again, "shares": axes.recipe["explained_variance"]}


def flat(tree: Any) -> np.ndarray:
    """A Flax tree as one vector in torch's order."""
    return np.concatenate([x.ravel() for x in planes.plain_to_torch(tree)])


def grid(job: dict[str, Any]) -> dict[str, Any]:
    """The losses at the points of the other side's grid, or at as many."""
    import lla_jax as lla

    loss, _, data, _ = mlp(job)
    path = lla.paths.load(job["recording"])
    axes, _ = lla.paths.pca(path)
    coords = [np.array(c) for c in job["coords"]] if job["coords"] else lla.grid(extent=1.0, points=job["side"])
    taken, plane = measure.timed(lambda: lla.evaluate(loss, path[-1], data, axes, coords))
    again = measure.seconds(lambda: lla.evaluate(loss, path[-1], data, axes, coords))
    return {"seconds": taken, "again_s": again, "values": plane.values["loss"].tolist(), "plan": plane.recipe["plan"]}


# -- films -------------------------------------------------------------------------------------------------------------


def plane(job: dict[str, Any]) -> dict[str, Any]:
    """A recorded descent of the small MLP and the plane about it, both kept for the films."""
    import jax
    import optax

    import lla_jax as lla

    loss, params, data, _ = planes.mlp()
    optimizer, folder = optax.adam(1e-2), pathlib.Path(job["folder"])
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        def mean(params: Any) -> Any:
            return planes.cross_entropy(loss.apply(params, loss.state, data, False)[0], data).mean()

        updates, state = optimizer.update(jax.grad(mean)(params), state)
        return optax.apply_updates(params, updates), state

    track = lla.paths.record(folder / "descent", every=1)
    for i in range(job["frames"]):
        track(params, i)
        params, state = step(params, state)
    path = lla.paths.load(folder / "descent")
    axes, _ = lla.paths.pca(path)
    seen = lla.paths.project(path, axes, loss=loss, data=data)
    coords = lla.paths.grid_around(seen, points=job["side"])
    found, made = measure.growth_mib(lambda: lla.evaluate(loss, path[-1], data, axes, coords))
    lla.save(made, folder / "plane.npz")
    np.savez(job["plane"], values=made.values["loss"], x=coords[0], y=coords[1])
    np.save(job["seen"], seen.coords)
    np.save(job["losses"], seen.loss)
    return found | {"points": made.values["loss"].size, "examples": len(data[1])}


def film(job: dict[str, Any]) -> dict[str, Any]:
    """A film of the descent."""
    import lla_jax as lla

    folder = pathlib.Path(job["folder"])
    made, path = lla.load(folder / "plane.npz"), lla.paths.load(folder / "descent")
    loss, _, data, _ = planes.mlp()
    seen = lla.paths.project(path, lla.paths.pca(path)[0], loss=loss, data=data)
    film, target = lla.plotting.film, folder / f"{job['kind']}.gif"
    found, _ = measure.growth_mib(
        lambda: film(made, seen, target, kind=job["kind"], frames=job["frames"], size=tuple(job["size"]))
    )
    return found | {"frames": job["frames"], "bytes": target.stat().st_size}


# -- all of it ---------------------------------------------------------------------------------------------------------


def worker(job: dict[str, Any]) -> None:
    os.environ["OMP_NUM_THREADS"] = str(job["threads"])
    theirs = job["side_of"] != "lla_jax"
    if theirs or job["part"] == "curve":
        import torch

        torch.set_num_threads(job["threads"])
    if theirs:
        from rivals import of_curves, of_descents

        os.chdir(job["folder"])  # where a film may lie
        parts = {"curve": of_curves.curve, "record": of_descents.record, "pca": of_descents.components}
        parts |= {"grid": of_descents.grid, "film": of_descents.film}
    else:
        measure.start_jax(job["threads"])
        parts = {"curve": curve, "record": record, "pca": components, "grid": grid, "plane": plane, "film": film}
    measure.tell(parts[job["part"]](job))


def main() -> None:
    parser = measure.parser(__doc__, minutes=8)
    parser.add_argument("--connectivity", type=pathlib.Path, help=f"checkout of {CURVES}")
    parser.add_argument("--anim", type=pathlib.Path, help=f"checkout of {ANIM}")
    parser.add_argument("--packages", type=pathlib.Path, help="folder with its requirements, if they are not installed")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, by commas; the others stay as they are")
    options = parser.parse_args()
    if options.worker:
        worker(json.loads(options.worker))
        return
    if not set(options.only.split(",")) <= set(PARTS):
        parser.error(f"--only: {options.only} given; it must be some of {','.join(PARTS)}")
    blank = measure.begun(__doc__, options.threads)
    path = measure.place(options, "paths")
    result = blank if options.quick else measure.resumed(path, blank)
    for name, given in ((CURVES, options.connectivity), (ANIM, options.anim)):
        if given is None:
            print(f"  {name}: no checkout given, skipped")
    with tempfile.TemporaryDirectory() as folder:
        Run(options, pathlib.Path(folder), path, result).all(options.only.split(","))
    result["targets"] = targets(result)
    print(f"written: {measure.keep(path, result)}")


class Run:
    """All parts, one after another, and what one leaves for the next."""

    def __init__(self, options: Any, folder: pathlib.Path, path: pathlib.Path, result: dict[str, Any]):
        self.options, self.folder, self.path, self.result = options, folder, path, result
        self.left, self.quick = measure.clock(options.minutes), options.quick
        here = {name: str(folder / f"{name}.npy") for name in ("x", "y", "axes", "seen", "losses")}
        self.job = here | {"folder": str(folder), "plane": str(folder / "raw.npz"), "threads": options.threads}
        self.job |= {name: str(getattr(options, name) or "") for name in ("connectivity", "anim", "packages")}
        self.steps = (5, 10) if self.quick else STEPS

    def all(self, only: list[str]) -> None:
        (x, y), _ = solutions.digits()
        np.save(self.job["x"], x.reshape(len(x), -1))
        np.save(self.job["y"], y)
        for part in PARTS:
            needed = part in only or (part == "record" and {"pca", "grid"} & set(only))
            needed = needed or (part, "film" in only) == ("plane", True) or (part == "pca" and "grid" in only)
            if not needed:
                continue
            if self.left() < 0:
                print(f"  {part}: the time is over, skipped")
                continue
            load = os.getloadavg()[0]
            self.result[part] = getattr(self, part)()
            self.result.setdefault("load", {})[part] = load
            measure.keep(self.path, self.result)

    def ask(self, side: str, part: str, /, **job: Any) -> dict[str, Any]:
        row = measure.child(__file__, self.job | job | {"side_of": side, "part": part})
        shown = {key: value for key, value in row.items() if not isinstance(value, list | dict)}
        print(f"  {part}, {side}: {shown or row.get('seconds')}", flush=True)
        return row

    def sides(self, theirs: str) -> list[str]:
        """The rival, if its checkout was given, and then ours."""
        given = {CURVES: self.options.connectivity, ANIM: self.options.anim}[theirs]
        return [theirs, "lla_jax"] if given else ["lla_jax"]

    def curve(self) -> dict[str, Any]:
        epochs, runs, points = (2, 2, 5) if self.quick else (EPOCHS, RUNS, POINTS)
        solutions.prepare(self.folder, 2 if self.quick else solutions.EPOCHS)
        data = solutions.digits()[0]
        found: dict[str, Any] = {"epochs": epochs, "points": points, "examples": len(data[1]), "networks": {}}
        found["steps"] = epochs * (len(data[1]) // solutions.BATCH)
        for name in solutions.SETTINGS:
            told: dict[str, Any] = {}
            for side in self.sides(CURVES):
                told[side] = self.ask(side, "curve", name=name, epochs=epochs, runs=runs, points=points)
            row: dict[str, Any] = {"sides": {side: side_of_a_curve(each) for side, each in told.items()}}
            ours = told["lla_jax"]
            if "line" in ours:
                row["line"] = along(ours["line"])
            if "same" in ours:
                theirs = told[CURVES]["losses"][-1]
                row["largest_relative_difference"] = max(
                    float(np.max(np.abs(np.array(ours["same"][k]) / np.array(theirs[k]) - 1))) for k in theirs
                )
            found["networks"][name] = row
        return found

    def record(self) -> dict[str, Any]:
        rows: dict[str, Any] = {"every": 1, **MLP}
        for side in self.sides(ANIM):
            rows[side] = []
            for steps in self.steps:
                row = self.ask(side, "record", steps=steps, recording=str(self.folder / f"trajectory-{steps}"), **MLP)
                if "plain_s" in row:
                    row["ms_per_step_more"] = 1e3 * (row["seconds"] - row["plain_s"]) / steps
                rows[side].append(row | {"steps": steps})
        return rows

    def pca(self) -> dict[str, Any]:
        rows: dict[str, Any] = {side: [] for side in ("lla_jax", *self.sides(ANIM)[:-1])}
        for steps in self.steps:
            more = {name: str(self.folder / f"{name}-{steps}") for name in ("trajectory", "flat", "axes")}
            more = {"recording": more["trajectory"], "flat": more["flat"] + ".npy", "axes": more["axes"] + ".npy"}
            for side in rows:
                rows[side].append(self.ask(side, "pca", steps=steps, **more) | {"steps": steps})
            truth = np.array(rows[ANIM][-1].get("truth", [])) if ANIM in rows else np.array([])
            for side in rows:
                shares = np.array(rows[side][-1].pop("shares", []))
                if truth.size and shares.size:
                    rows[side][-1]["error"] = float(np.abs(shares[: truth.size] - truth[: shares.size]).max())
                rows[side][-1]["shares"] = shares[:3].tolist()
                rows[side][-1]["number"] = len(shares)
            for side in rows:
                rows[side][-1].pop("truth", None)
        return rows

    def grid(self) -> dict[str, Any]:
        steps, side = self.steps[0], 6 if self.quick else SIDE
        files = {name: str(self.folder / f"{name}-{steps}.npy") for name in ("flat", "axes")}
        told: dict[str, Any] = {"lla_jax": {}}
        coords = None
        for name in self.sides(ANIM):
            told[name] = self.ask(
                name,
                "grid",
                side=side,
                recording=str(self.folder / f"trajectory-{steps}"),
                coords=coords,
                **MLP,
                **files,
            )
            coords = told[name].get("coords")
        found = {"points": side**2, "sides": {}}
        values = {name: np.array(row.pop("values")) for name, row in told.items() if "values" in row}
        if len(values) == 2:
            found["largest_relative_difference"] = float(np.abs(values["lla_jax"] / values[ANIM] - 1).max())
        for row in told.values():
            row.pop("coords", None)
        return found | {"sides": told}

    def plane(self) -> dict[str, Any]:
        side, frames = (31, 6) if self.quick else (MILLION, FRAMES)
        return self.ask("lla_jax", "plane", side=side, frames=frames)

    def film(self) -> dict[str, Any]:
        size, frames = ((192, 108), 6) if self.quick else (SIZE, FRAMES)
        found: dict[str, Any] = {"frames": frames, "size": list(size), "sides": {}}
        for kind in ("surface", "contour"):
            found["sides"][f"lla_jax, {kind}"] = self.ask("lla_jax", "film", kind=kind, size=size, frames=frames)
        for side in self.sides(ANIM)[:-1]:
            found["sides"][f"{side}, contour"] = self.ask(side, "film", size=size, frames=frames)
        return found


def targets(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What was asked for, as far as it was measured."""
    found = []
    for name, row in result.get("curve", {}).get("networks", {}).items():
        ours, theirs = (row["sides"].get(side, {}) for side in ("lla_jax", CURVES))
        if "train_s" in ours and "train_s" in theirs:
            for what, words in (("train_s", "training"), ("evaluate_s", "61 points")):
                text = f"curve, {name}, {words}: {CURVES} / lla_jax"
                found.append(measure.against(text, theirs[what] / ours[what], 1.0))
        if "largest_relative_difference" in row:
            text = f"curve, {name}: largest relative difference of the losses of one curve"
            found.append(measure.against(text, row["largest_relative_difference"], 1e-4, least=False))
    rows = [row for row in result.get("record", {}).get("lla_jax", []) if "growth_mib" in row]
    if len(rows) > 1:
        more, times = rows[-1]["growth_mib"] - rows[0]["growth_mib"], rows[-1]["steps"] / rows[0]["steps"]
        found.append(measure.against(f"recording, MiB more for {times:.0f} times the steps", more, 16.0, least=False))
    for row in result.get("pca", {}).get("lla_jax", []):
        if "error" in row:
            text = f"shares of {row['steps']} checkpoints: largest difference from scikit-learn's"
            found.append(measure.against(text, row["error"], 1e-6, least=False))
    for ours, theirs in zip(*(result.get("pca", {}).get(side, []) for side in ("lla_jax", ANIM))):
        if "seconds" in ours and "seconds" in theirs:
            text = f"2 components of {ours['steps']} checkpoints: {ANIM} / lla_jax"
            found.append(measure.against(text, theirs["seconds"] / ours["seconds"], 1.0))
    if "seconds" in result.get("plane", {}):
        found.append(measure.against("seconds of 1001 x 1001 points", result["plane"]["seconds"], 60.0, least=False))
    sides = result.get("film", {}).get("sides", {})
    both = [sides.get(f"{side}, contour", {}) for side in (ANIM, "lla_jax")]
    if all("seconds" in row for row in both):
        text = f"film, contours: {ANIM} / lla_jax"
        found.append(measure.against(text, both[0]["seconds"] / both[1]["seconds"], 1.0))
    return found


if __name__ == "__main__":
    main()
