"""Claim: every number with an error holds the truth within 2 errors in 95 of 100 cases.

    python benchmarks/calibration.py [--quick] [--only spiked,flat,indefinite,power] [--number trace] [--keys 200]

Each stochastic number of matrices whose spectrum is known (random rotations, in float32), over 200 keys: how often the
truth lies within 1, 2 and 3 of the stated errors, the root mean square of error over stated error, the largest of
these, and the stated error (the median) over the true one (root mean square). Criteria of a spectrum are compared with
those of all eigenvalues, each with the weight 1 / n. A number that is exact counts as within.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from harness import measure
from scipy import special

N, KEYS = 400, 200
WITHIN = (1, 2, 3)
LEAST = {2: 0.92, 3: 0.975}  # 95 % and 99 %, less what 200 keys leave to chance
LAYERS = ("head", "body", "tail")
Result = tuple[Any, Any, Any]
"""A value, its stated error and the truth: numbers, or arrays of them."""


def eigenvalues() -> dict[str, np.ndarray]:
    """The spectra."""
    rng = np.random.default_rng(0)
    bulk = rng.normal(0.02, 0.05, N - 10)
    return {
        "spiked": np.r_[bulk, np.linspace(1, 10, 8), -1.5, -0.7],
        "flat": np.linspace(0.5, 1.5, N),
        "indefinite": rng.uniform(-1, 2, N),
        "power law": np.arange(1.0, N + 1) ** -1.5,
    }


def rotated(values: np.ndarray) -> np.ndarray:
    """A symmetric matrix with these eigenvalues."""
    q = np.linalg.qr(np.random.default_rng(1).standard_normal((len(values), len(values))))[0]
    return (q * values) @ q.T


def numbers(values: np.ndarray) -> dict[str, Callable[[Any], Result]]:
    """The numbers of one matrix, each as a function of a key."""
    import jax
    import jax.numpy as jnp

    import lla_jax as lla

    matrix = rotated(values)
    a = jnp.asarray(matrix, jnp.float32)
    H = lla.operators.given(lambda v, a: jnp.matmul(a, v, precision="highest"), jnp.zeros(N), a)
    size, trace, norm = math.sqrt(sum(values**2)), values.sum(), np.abs(values).sum()

    def fixed(call: Callable, draws: int, truth: Any) -> Callable[[Any], Result]:
        def found(key: Any) -> Result:
            estimate = call(H, key, rtol=0, max_products=draws)
            return estimate.mean, estimate.sem, truth

        return found

    def stopped(call: Callable, rtol: float, truth: Any) -> Callable[[Any], Result]:
        def found(key: Any) -> Result:
            estimate = call(H, key, rtol=rtol, max_products=10_000)
            return estimate.mean, estimate.sem, truth

        return found

    calls: dict[str, Callable[[Any], Result]] = {}
    for method, each in (("hutchinson", 1), ("hutch++", 3), ("xtrace", 2)):
        call = functools.partial(lla.trace, method=method)
        for draws in (4, 16, 64):
            calls[f"trace, {method}, {draws} draws"] = fixed(call, draws * each, trace)
        # rtol is relative to the trace, and signs may cancel in it
        for loose in (0.1, 0.03):
            calls[f"trace, {method}, to {loose:g} |A|_1"] = stopped(call, loose * norm / abs(trace), trace)
    calls["trace, xtrace, 128 draws"] = fixed(lla.trace, 256, trace)
    for draws in (4, 16):
        calls[f"Frobenius norm, {draws} draws"] = fixed(lla.frobenius_norm, draws, size)
        calls[f"diagonal, {draws} draws"] = fixed(lla.diagonal, draws, np.diag(matrix))
    calls["Frobenius norm, to 0.1"] = stopped(lla.frobenius_norm, 0.1, size)
    calls["diagonal, to 0.3"] = stopped(lla.diagonal, 0.3, np.diag(matrix))
    calls |= criteria(H, values)
    calls["layers' traces, to 0.05"] = layers(jax, lla, matrix)
    return calls


def criteria(H: Any, values: np.ndarray) -> dict[str, Callable[[Any], Result]]:
    """The criteria of a spectrum of few and many steps and probes, and its density."""
    import lla_jax as lla

    below, above = -values[values < 0], values[values > 0]
    truth = {
        "r_e": abs(values.min() / values.max()),
        "K_H1": below.sum() / above.sum(),
        "K_H0.5": np.sqrt(below).sum() / np.sqrt(above).sum(),
        "saddle index": len(below) / len(values),
    }

    def found(key: Any, steps: int, probes: int, name: str) -> Result:
        spec = spectrum(key, steps, probes)
        if name == "density":
            density = lla.density(spec, points=40, width=0.03)
            cell = density.t[1] - density.t[0]
            edges = np.append(density.t - cell / 2, density.t[-1] + cell / 2)
            exact = np.diff(special.ndtr((edges[:, None] - values) / density.sigma), axis=0).mean(1) / cell
            return density.density, density.sem, exact
        call = {"r_e": lla.r_e, "saddle index": lla.saddle_index}.get(name)
        estimate = call(spec) if call else lla.k_hn(spec, float(name.removeprefix("K_H")))
        return estimate.mean, estimate.sem, truth[name]

    @functools.lru_cache(KEYS)
    def spectrum(key: Any, steps: int, probes: int) -> Any:
        import jax

        return lla.spectrum(H, jax.random.wrap_key_data(np.array(key, np.uint32)), steps=steps, probes=probes)

    def of(steps: int, probes: int, name: str) -> Callable[[Any], Result]:
        import jax

        return lambda key: found(tuple(jax.random.key_data(key).tolist()), steps, probes, name)

    sizes = ((20, 4), (60, 4), (60, 16), (100, 2))
    return {
        f"{name}, {steps} steps, {probes} probes": of(steps, probes, name)
        for steps, probes in sizes
        for name in (*truth, "density")
    }


def layers(jax: Any, lla: Any, matrix: np.ndarray) -> Callable[[Any], Result]:
    """The traces of three layers and of the whole, of a quadratic loss with this Hessian."""
    cuts = (0, N // 8, N // 2, N)
    params = {name: np.zeros(b - a, np.float32) for name, a, b in zip(LAYERS, cuts, cuts[1:], strict=False)}

    def loss(p: Any, batch: Any) -> Any:
        w = jax.numpy.concatenate([p[name] for name in LAYERS])
        return 0.5 * w @ (batch[0] @ w)

    truth = np.array([np.trace(matrix[a:b, a:b]) for a, b in itertools.pairwise(cuts)])

    def found(key: Any) -> Result:
        rows = lla.per_layer(loss, params, matrix[None].astype(np.float32), key, steps=1, rtol=0.05)
        by_name = {row.module: row.trace for row in rows}
        each = [by_name[name] for name in LAYERS]
        total = each[0].recipe["total"]
        return (
            np.array([*(t.mean for t in each), total["mean"]]),
            np.array([*(t.sem for t in each), total["sem"]]),
            np.append(truth, truth.sum()),
        )

    return found


def calibrate(call: Callable[[Any], Result], keys: int) -> dict[str, Any]:
    """How far the truth lies from the values, in stated errors, over keys and entries."""
    import jax

    rows = []
    for seed in range(keys):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value, stated, truth = (np.asarray(x, float) for x in call(jax.random.key(seed)))
        rows.append((np.abs(value - truth), stated + np.zeros_like(value), np.abs(truth) + np.zeros_like(value)))
    error, stated, size = (np.stack(x) for x in zip(*rows, strict=True))
    error = np.where(error <= 1e-6 * size.max(), 0.0, error)  # rounding in float32
    with np.errstate(divide="ignore", invalid="ignore"):
        away = np.where(error == 0, 0.0, error / stated)
        true = float(np.sqrt((error**2).mean()))
    return {
        "within": {str(k): float((away <= k).mean()) for k in WITHIN},
        "rms": float(np.sqrt((away**2).mean())),
        "worst": float(away.max()),
        "stated": float(np.median(stated)),
        "true": true,
        "stated_over_true": float(np.median(stated)) / true if true else None,
    }


def rows(name: str, values: np.ndarray, keys: int, left: Callable[[], float], like: str) -> Iterator[dict[str, Any]]:
    """A row for each number of one spectrum."""
    for number, call in numbers(values).items():
        if like not in number:
            continue
        if left() < 0:
            return
        start = time.perf_counter()
        row = {"spectrum": name, "number": number, "keys": keys} | calibrate(call, keys)
        told = " ".join(f"{share:.3f}" for share in row["within"].values())
        wide = row["stated_over_true"]
        print(
            f"{name:10s} {number:38s} within 1 2 3: {told}  rms {row['rms']:.2f} worst {row['worst']:.1f} "
            f"stated/true {'-' if wide is None else f'{wide:.2f}'}  {time.perf_counter() - start:.1f} s",
            flush=True,
        )
        yield row


def main() -> None:
    parser = measure.parser(__doc__, minutes=15)
    parser.add_argument("--keys", type=int, default=KEYS)
    parser.add_argument("--only", default="", help="spectra whose names begin so, by commas")
    parser.add_argument("--number", default="", help="only numbers whose names contain this")
    options = parser.parse_args()
    measure.start_jax(1)
    keys = 10 if options.quick else options.keys
    path, left = measure.place(options, "calibration"), measure.clock(options.minutes)
    result = measure.begun(__doc__, options.threads) | {"n": N, "rows": []}
    for name, values in eigenvalues().items():
        if name.startswith(tuple(options.only.split(","))):
            for row in rows(name, values, keys, left, options.number):
                result["rows"].append(row)
                measure.keep(path, result)
    least = {k: min(row["within"][str(k)] for row in result["rows"]) for k in WITHIN}
    result["targets"] = [
        measure.against(f"least share of {keys} keys within {k} stated errors", least[k], wanted)
        for k, wanted in LEAST.items()
    ]
    print(f"written: {measure.keep(path, result)}")


if __name__ == "__main__":
    main()
