"""Claim: no loss that a user brings gives a wrong number in silence, and none is refused without need.

    python benchmarks/trust.py [--quick]

2,000 situations are drawn: networks whose examples see each other or not, criteria that broadcast or not, weights,
auxiliary values, forms, cuts of the data and precisions. For each, a line of three points or (every fourth) the
curvature along a direction is compared with the float64 value of the same functions in numpy. An answer is right, wrong
in silence, refused with one of our errors, warned of, or broken by another error.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from cases import situations
from harness import measure

COUNT, QUICK, PART = 2000, 40, 100
WORTH_SAYING = ("wrong", "broken")


def judge(numbered: list[tuple[int, situations.Situation]]) -> list[situations.Verdict]:
    """The verdicts of some situations; every fourth is judged by its curvature."""
    return [situations.judge(situation, curvature=i % 4 == 3) for i, situation in numbered]


def judged(count: int, left: Callable[[], float]) -> dict[str, Any]:
    """How many of the situations came out in which way, and those that came out as they must not.

    A process judges a part of them only: Linux limits the memory maps that compiled programs take.
    """
    rng = np.random.default_rng(0)
    drawn = list(
        enumerate(situations.draw(lambda options: list(options)[rng.integers(len(options))]) for _ in range(count))
    )
    parts = [drawn[i : i + PART] for i in range(0, count, PART)]
    ways: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    failures = []
    context = multiprocessing.get_context("spawn")
    with context.Pool(measure.THREADS, maxtasksperchild=1) as pool:
        for part, verdicts in zip(parts, pool.imap(judge, parts), strict=True):
            for (_, situation), verdict in zip(part, verdicts, strict=True):
                ways[situation.posed][verdict.outcome] += 1
                if verdict.outcome in WORTH_SAYING or (situation.posed and verdict.outcome != "right"):
                    failures.append({**dataclasses.asdict(situation), **dataclasses.asdict(verdict)})
                    print(f"  {failures[-1]}", flush=True)
            print(f"  {sum(map(sum, (way.values() for way in ways.values())))} of {count}", flush=True)
            if left() < 0:
                break
    posed = ways[True]
    return {
        "situations": sum(map(sum, (way.values() for way in ways.values()))),
        "well_posed": dict(posed),
        "ill_posed": dict(ways[False]),
        "silent_wrong": sum(way["wrong"] for way in ways.values()),
        "right_of_well_posed": posed["right"] / max(1, sum(posed.values())),
        "failures": failures,
    }


def main() -> None:
    """Draw and judge all situations, and write how many came out in each way."""
    options = measure.parser(__doc__, 60).parse_args()
    count = QUICK if options.quick else COUNT
    result = measure.begun(__doc__, options.threads) | judged(count, measure.clock(options.minutes))
    result["targets"] = [
        measure.against("situations", result["situations"], count),
        measure.against("wrong numbers in silence", result["silent_wrong"], 0, least=False),
        measure.against("right answers to well-posed situations", result["right_of_well_posed"], 0.98),
    ]
    print(f"written: {measure.keep(measure.place(options, 'trust'), result)}")


if __name__ == "__main__":
    main()
