"""Claim: products of a network with 50,257 classes take at most half of the memory that all scores at once would take.

    python benchmarks/vocabulary.py [--quick]

A GPT with tied weights (4 layers, 64 tokens, batch 8), each number in a process of its own: the bytes of the compiled
program (new results and temporary values) and of kept primal values, which the targets are about, the largest resident
set of the process, and the seconds of a product, with the head in chunks of tokens and at once; the difference of both
products; then a deep MLP with rematerialisation and without.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import tempfile
from typing import Any

import numpy as np
from cases import gpt2
from harness import measure

WIDTH, DEPTH, ROWS, TOKENS = 128, 4, 8, 64
LAYERS, HIDDEN, EXAMPLES = 48, 64, 8192
MIB = 2**20


def gpt(rows: int) -> Any:
    import optax

    import lla_jax as lla

    gpt2.SIZES["vocabulary"] = (WIDTH, DEPTH)
    _, params, data = gpt2.problem("vocabulary", rows=rows, tokens=TOKENS)

    def apply(params: Any, state: Any, batch: Any, train: bool) -> Any:
        return gpt2.scores_of(params, batch[0]), state

    def criterion(outputs: Any, batch: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1])

    return lla.Loss(apply, criterion), params, data


def deep(rows: int) -> Any:
    """The mean square of a deep residual MLP: a plain function, whose batch is never cut."""
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    params = [rng.standard_normal((HIDDEN, HIDDEN), np.float32) / HIDDEN for _ in range(LAYERS)]

    def loss(params: Any, x: Any) -> Any:
        for w in params:
            x = x + jnp.tanh(x @ w)
        return (x**2).mean()

    return loss, params, rng.standard_normal((rows, HIDDEN), np.float32)


def product(what: str, kind: str, linearize: Any, spare: bool, rows: int, keep: str) -> dict[str, Any]:
    """The memory and seconds of a product; ``spare``: with chunks or rematerialisation."""
    import jax

    import lla_jax as lla
    from lla_jax.curvature import room
    from lla_jax.execution import heads

    if what == "gpt" and not spare:
        heads.CHUNK_BYTES.update({True: 2**40, False: 2**40})
    execution = lla.Execution(linearize=linearize, remat=spare and what == "deep")
    H = getattr(lla, kind)(*(gpt if what == "gpt" else deep)(rows), execution=execution)
    v = H.random(jax.random.key(0))
    program = room.product_bytes(H)
    y = jax.block_until_ready(H.product(v))
    peak = measure.status_mib("VmHWM")
    taken = min(measure.seconds(lambda: jax.block_until_ready(H.product(v))) for _ in range(3))
    np.save(keep, np.concatenate([np.ravel(x) for x in jax.tree.leaves(y)]))
    return {
        "what": what,
        "kind": kind,
        "linearize": linearize,
        "spare": spare,
        "seconds": taken,
        "peak_mib": peak,
        "program_mib": program / MIB,
        "kept_mib": H.recipe["plan"]["bytes"] / MIB,
        "heads": H.recipe["plan"].get("heads"),
    }


def main() -> None:
    options = measure.parser(__doc__, minutes=30).parse_args()
    if options.worker:
        measure.start_jax(1)
        measure.tell(product(**json.loads(options.worker)))
        return
    path, left = measure.place(options, "vocabulary"), measure.clock(options.minutes)
    result: dict[str, Any] = measure.begun(__doc__, options.threads) | {"targets": [], "rows": []}
    cases = [*itertools.product(("gpt",), ("hessian", "ggn"), (False, True, "auto")), ("deep", "hessian", False)]
    for what, kind, linearize in cases[:1] if options.quick else cases:
        if left() < 0:
            print("the time is over")
            break
        pair, vectors = [], []
        for spare in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                keep = str(pathlib.Path(folder, "product.npy"))
                rows = {"gpt": ROWS, "deep": EXAMPLES}[what]
                job = {"what": what, "kind": kind, "linearize": linearize, "spare": spare, "rows": rows, "keep": keep}
                row = measure.child(__file__, job, limit=1800)
                print(f"  {row}", flush=True)
                pair.append(row)
                vectors.append(np.load(keep) if "error" not in row else None)
        result["rows"] += pair
        if all(v is not None for v in vectors):
            name, (one, two) = f"{what}, {kind}, linearize={linearize}", vectors
            share = (pair[1]["program_mib"] + pair[1]["kept_mib"]) / (pair[0]["program_mib"] + pair[0]["kept_mib"])
            away = float(np.linalg.norm(one - two) / np.linalg.norm(one))
            result["targets"] += [
                measure.against(f"{name}: memory / that of all scores at once", share, 0.5, least=False),
                measure.against(f"{name}: relative difference", away, 1e-6, least=False),
            ]
        measure.keep(path, result)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
