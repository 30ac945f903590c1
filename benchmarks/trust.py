"""Claim: no loss that a user brings gives a wrong number in silence, and none is refused without need.

    python benchmarks/trust.py [--quick]

2,000 situations are drawn: networks whose examples see each other or not, criteria that broadcast or not, weights,
auxiliary values, forms, cuts of the data and precisions. For each, a line of three points or (every fourth) the
curvature along a direction is compared with the float64 value of the same functions in numpy. An answer is right, wrong
in silence, refused with one of our errors, warned of, or broken by another error.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
from cases import situations
from harness import measure

COUNT, QUICK = 2000, 40
WORTH_SAYING = ("wrong", "broken")


def judged(count: int, left: Any) -> dict[str, Any]:
    """How many of the situations came out in which way, and those that came out as they must not."""
    rng = np.random.default_rng(0)
    ways: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    failures = []
    for i in range(count):
        if left() < 0:
            break
        situation = situations.draw(lambda options: list(options)[rng.integers(len(options))])
        verdict = situations.judge(situation, curvature=i % 4 == 3)
        ways[situation.posed][verdict.outcome] += 1
        if verdict.outcome in WORTH_SAYING or (situation.posed and verdict.outcome != "right"):
            failures.append({**dataclasses.asdict(situation), **dataclasses.asdict(verdict)})
            print(f"  {failures[-1]}", flush=True)
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
