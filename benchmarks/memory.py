"""Claim: memory does not grow with the points or, streamed, with the batches; Lanczos takes what it says beforehand.

    python benchmarks/memory.py [--quick]

Growth of the resident set (the peak, started anew after compiling, less what was in use), each number in a process of
its own: planes of an MLP of 10,000 points, 10 and 100 times as many; a plane and Hessian products of a stream of 10
batches, 10 and 100 times as many; the bytes that ``eigenpairs`` and ``spectrum`` state before they begin, on a basis of
at least 1 GB (a diagonal operator), against what they took; what the recipes of ``trace``, ``diagonal``,
``frobenius_norm`` and ``per_layer`` state for networks and a diagonal operator of 8 and 30 million parameters.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from cases import gpt2, large, planes
from harness import measure

SIDES, NUM_BATCHES = (100, 316, 1000), (10, 100, 1000)
SIZE, VECTORS = 8_000_000, 40  # a basis of 1.28 GB in float32
ROWS = 512
PARAMETERS = (8_000_000, 30_000_000)
BASIS = 16  # vectors of Lanczos
MIB = 2**20


def points(side: int) -> dict[str, Any]:
    """A plane of side x side points of the MLP: its seconds and memory."""
    import lla_jax as lla

    loss, params, data, _ = planes.mlp()
    axes = planes.axes_of(params)
    lla.evaluate(loss, params, data, axes, lla.grid(points=50))  # compile before the memory is read
    found, plane = measure.growth_mib(lambda: lla.evaluate(loss, params, data, axes, lla.grid(extent=0.5, points=side)))
    arrays = [*plane.values.values(), *plane.stderr.values()]
    return found | {
        "points": side**2,
        "ms_per_point": 1e3 * found["seconds"] / side**2,
        "result_mib": sum(a.nbytes for a in arrays) / MIB,
    }


def batches(num: int) -> dict[str, Any]:
    """A plane of 3 x 3 points and two Hessian products over a stream, whose batches are made as they are read."""
    import jax

    import lla_jax as lla

    loss, params, (x, y), _ = planes.mlp()

    def stream(count: int) -> Any:
        def made() -> Iterator[Any]:
            for i in range(count):
                rows = np.random.default_rng(i).integers(0, len(y), ROWS)
                yield x[rows], y[rows]

        return lla.stream(made)

    axes, key = planes.axes_of(params), jax.random.key(0)

    def work(count: int) -> None:
        lla.evaluate(loss, params, stream(count), axes, lla.grid(extent=0.5, points=3))
        H = lla.hessian(loss, params, stream(count))
        v = H.random(key)
        for _ in range(2):
            jax.block_until_ready(H.mv(v))

    work(3)  # compile before the memory is read
    found, _ = measure.growth_mib(lambda: work(num))
    data_mib = num * ROWS * (x[0].nbytes + y[0].nbytes) / MIB
    return found | {"batches": num, "data_mib": data_mib}


def lanczos(what: str, size: int, vectors: int) -> dict[str, Any]:
    """``eigenpairs`` or ``spectrum`` of a diagonal operator: bytes as stated before, and as taken."""
    import lla_jax as lla

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("lla_jax")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    H, small = large.diagonal(size), large.diagonal(1000)

    def run(operator: Any) -> Any:  # eigenpairs that never converge, so that the basis fills and is restarted once
        if what == "spectrum":
            return lla.spectrum(operator, _key(), steps=vectors, probes=1)
        return lla.eigenpairs(operator, _key(), k=2, tol=1e-7, max_vectors=vectors, max_products=vectors + vectors // 4)

    run(small)  # what every process loads once is not the basis
    said.clear()
    found, result = measure.growth_mib(lambda: run(H))
    stated = result.recipe.get("memory")
    row = found | {"what": what, "size": size, "basis_gb": 4 * size * vectors / 1e9, "said": said[:1]}
    if not stated:
        return row | {"error": 'recipe["memory"] is not there: nothing was stated'}
    stated_mib = stated["bytes"] / MIB
    return row | {
        "vectors": stated["vectors"],
        "stated_mib": stated_mib,
        "taken_over_stated": found["growth_mib"] / stated_mib,
    }


def verb(name: str, parameters: int, kind: str = "mlp") -> dict[str, Any]:
    """A verb on an operator of so many parameters: the bytes of its recipe, and as taken.

    Args:
      name: of ``VERBS``.
      parameters: about so many.
      kind: of the operator, as in ``cases.large``.
    """
    import lla_jax as lla

    call, of_operator = VERBS[name]

    def case(size: int) -> tuple[Any, ...]:
        return (large.operator(kind, size),) if of_operator else large.mlp_of(size)

    def run(given: tuple[Any, ...]) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the draws are fewer than their errors ask for
            return call(lla, *given)

    run(case(large.SMALL))  # what every process loads once is not the verb's
    given = case(parameters)
    found, result = measure.growth_mib(lambda: run(given))
    recipe = result[0].trace.recipe if name == "per_layer" else result.recipe
    return {
        "verb": name,
        "method": recipe.get("method"),
        "operator": kind,
        "parameters": parameters,
        "vectors": recipe["memory"]["vectors"],
        **compared(found, recipe),
    }


def compared(found: dict[str, float], recipe: dict[str, Any]) -> dict[str, float]:
    """The memory that a recipe states, beside what was taken."""
    stated_mib = recipe["memory"]["bytes"] / MIB
    return {
        "stated_mib": stated_mib,
        "taken_mib": found["growth_mib"],
        "taken_over_stated": found["growth_mib"] / stated_mib,
        "seconds": found["seconds"],
    }


def _trace(method: str, products: int) -> Any:
    return lambda lla, H: lla.trace(H, _key(), method=method, rtol=0, max_products=products)


def _key() -> Any:
    import jax

    return jax.random.key(0)


VERBS: dict[str, tuple[Any, bool]] = {
    "trace hutchinson": (_trace("hutchinson", 16), True),
    "trace hutch++": (_trace("hutch++", 48), True),
    "trace xtrace": (_trace("xtrace", 32), True),
    "diagonal": (lambda lla, H: lla.diagonal(H, _key(), rtol=0, max_products=16), True),
    "frobenius_norm": (lambda lla, H: lla.frobenius_norm(H, _key(), rtol=0, max_products=16), True),
    "spectrum": (lambda lla, H: lla.spectrum(H, _key(), steps=BASIS, probes=2), True),
    "eigenpairs": (  # which never converge, so that the basis fills and is restarted
        lambda lla, H: lla.eigenpairs(H, _key(), k=2, tol=1e-7, max_vectors=BASIS, max_products=BASIS + 6),
        True,
    ),
    "per_layer": (lambda lla, *problem: lla.per_layer(*problem, _key(), rtol=1e9, max_products=16), False),
}
"""Calls by name, and whether they take an operator or the problem."""


def default_trace(size: str) -> dict[str, Any]:
    """The default trace of a GPT-2, "small" with 124,439,808 parameters; see ``cases.gpt2``."""
    import lla_jax as lla

    loss, params, data = gpt2.problem(size)
    H = lla.hessian(loss, params, data)
    del params
    found, trace = measure.growth_mib(lambda: lla.trace(H, _key()))
    return {
        "verb": "trace",
        "method": trace.recipe["method"],
        "operator": f"GPT-2 {size}",
        "parameters": H.shape[0],
        **compared(found, trace.recipe),
        "products": trace.recipe["products"],
        "converged": trace.recipe["converged"],
    }


def worker(job: dict[str, Any]) -> None:
    measure.start_jax(job["threads"] if job["part"] == "points" else 1)
    if job["part"] == "lanczos":
        measure.tell(lanczos(job["what"], job["size"], job["vectors"]))
    elif job["part"] == "verbs":
        measure.tell(verb(job["name"], job["parameters"], job["kind"]))
    elif job["part"] == "gpt2":
        measure.tell(default_trace(job["size"]))
    else:
        measure.tell((points if job["part"] == "points" else batches)(job["num"]))


def main() -> None:
    parser = measure.parser(__doc__, minutes=40)
    parser.add_argument(
        "--gpt2", action="store_true", help="the default trace of GPT-2 small too: needs 24 GB for itself"
    )
    options = parser.parse_args()
    if options.worker:
        worker(json.loads(options.worker))
        return
    path, left = measure.place(options, "memory"), measure.clock(options.minutes)
    result: dict[str, Any] = measure.begun(__doc__, options.threads) | {"targets": []}

    def ask(into: str, **job: Any) -> dict[str, Any] | None:
        if left() < 0:
            print(f"  {into} {job}: the time is over, skipped")
            return None
        row = measure.child(__file__, {"part": into, "threads": options.threads} | job)
        print(f"  {into}: {row}", flush=True)
        result.setdefault(into, []).append(row)
        measure.keep(path, result)
        return row

    size, vectors = (200_000, 20) if options.quick else (SIZE, VECTORS)
    for what in ("eigenpairs", "spectrum"):
        row = ask("lanczos", what=what, size=size, vectors=vectors)
        if row and "taken_over_stated" in row:
            away = abs(row["taken_over_stated"] - 1)
            result["targets"].append(measure.against(f"{what}, memory taken / stated - 1", away, 0.15, least=False))
    kinds = {name: ("mlp", "diagonal") if of_operator else ("mlp",) for name, (_, of_operator) in VERBS.items()}
    for name, kind in ((name, kind) for name, every in kinds.items() for kind in every):
        for parameters in PARAMETERS[:1] if options.quick else PARAMETERS:
            row = ask("verbs", name=name, parameters=parameters, kind=kind)
            if row and "taken_over_stated" in row:
                what, away = f"{name}, {kind}, {parameters:.0e}", abs(row["taken_over_stated"] - 1)
                text = f"{what} parameters: memory taken / stated - 1"
                result["targets"].append(measure.against(text, away, 0.10, least=False))
    if options.gpt2:
        row = ask("gpt2", size="small")
        if row and "taken_over_stated" in row:
            text = "GPT-2 small, default trace: memory taken / stated"
            result["targets"].append(measure.against(text, row["taken_over_stated"], 1.1, least=False))
    for num in NUM_BATCHES[:2] if options.quick else NUM_BATCHES:
        ask("batches", num=num)
    for side in SIDES[:2] if options.quick else SIDES:
        ask("points", num=side)
    for name, label in (("points", "points"), ("batches", "batches")):
        rows = [row for row in result.get(name, []) if "growth_mib" in row]
        if len(rows) > 1:
            beyond = rows[-1]["growth_mib"] - rows[0]["growth_mib"] - rows[-1].get("result_mib", 0.0)
            times = rows[-1][name] / rows[0][name]
            what = f"MiB more for {times:.0f} times the {label}, besides the result"
            result["targets"].append(measure.against(what, beyond, 16.0, least=False))
    print(f"written: {measure.keep(path, result)}")


if __name__ == "__main__":
    main()
