"""No silent wrong number: generated losses, right and wrong ones, give the float64 value or one of our messages."""

import pathlib
import sys

import hypothesis
import hypothesis.strategies as st
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "benchmarks"))

from cases import situations


@st.composite
def generated(draw: st.DrawFn) -> situations.Situation:
    return situations.draw(lambda options: draw(st.sampled_from(list(options))))


@pytest.mark.slow
@pytest.mark.parametrize("curvature", [False, True], ids=["line", "curvature"])
def test_no_situation_gives_a_wrong_number_in_silence(curvature):
    outcomes: list[tuple[bool, str]] = []

    @hypothesis.settings(max_examples=100, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(generated())
    def each(s):
        verdict = situations.judge(s, curvature)
        outcomes.append((s.posed, verdict.outcome))
        assert verdict.outcome not in ("wrong", "broken"), verdict
        assert not s.posed or verdict.outcome == "right", verdict

    each()
    assert len(outcomes) >= 100
    assert sum(posed for posed, _ in outcomes) >= 25  # refusing is no way out
