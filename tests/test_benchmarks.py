"""README's benchmark numbers are those of the JSON files, and the benchmark's own parts measure what they say."""

import json
import math
import pathlib
import sys

import numpy as np
import pytest

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import hessian  # noqa: E402
import networks  # noqa: E402
import rivals  # noqa: E402
import table  # noqa: E402


def test_the_readme_table_is_generated_from_the_results():
    text = table.README.read_text()
    assert table.readme(text, BENCHMARKS / "results") == text


def row(setting, **rest):
    return {"setting": setting, "seconds": 2.5, "products": 20, "peak_mib": 400.0} | rest


RESULT = {
    "environment": {"cores": 2, "threads": 2, "date": "2026-01-01", "versions": {"jax": "1", "torch": "2"}},
    "networks": {
        "lenet": {
            "facts": {"parameters": 61706, "examples": 2048, "data": "digits", "accuracy": 0.82, "loss": 0.75},
            "top2": {
                "lla_jax": [row("tol 0.001", residual=5e-3), row("tol 0.0001", residual=4e-4, seconds=3.25)],
                "LLA": [row("as shipped", residual=0.02), {"setting": "tol 0.0001", "over_s": 120.0}],
            },
            "density": {
                "lla_jax": [row("full", copies_of_the_largest=1)],
                "LLA": [row("as shipped", copies_of_the_largest=7)],
            },
            "trace": {"LLA": [{"setting": "as shipped", "error": "ValueError: no"}]},
            "where": {"lla_jax": [{"ms": {"forward": 12.0}, "plan": {"bytes": 2**20}}]},
        }
    },
}


def test_the_table_takes_the_first_good_setting_and_says_what_was_cut_failed_or_not_measured(tmp_path):
    text = f"before\n{table.BEGIN}\nold\n{table.END}\nafter"
    (tmp_path / "hessian.json").write_text(json.dumps(RESULT))
    new = table.readme(text, tmp_path)
    assert new.startswith(f"before\n{table.BEGIN}\nCurvature")
    assert new.endswith(f"{table.END}\nafter")
    assert "| lla_jax | - | 3.25 [20] | - | 2.5 [20], 1 x | - | 400 |" in new
    assert "| LLA, as shipped | - | 2.5 [20], residual 2e-02 | - | 2.5 [20], 7 x | fails | 400 |" in new
    assert "| LLA, tightened | | > 120 | - | | | |" in new
    assert (
        "Times lla_jax's seconds: top 2 LLA as shipped 0.8, top 2 LLA tightened > 36.9, density LLA as shipped 1.0."
        in new
    )
    assert "forward 12" in new
    (tmp_path / "hessian.json").unlink()
    assert table.readme(text, tmp_path) == f"before\n{table.BEGIN}\n\n{table.END}\nafter"


class Sleepless(rivals.Rival):
    """A rival whose job takes a number of products; the first one compiles."""

    def __init__(self, needed, compiles=False):
        self.needed, self.compiles, self.more, self.jobs = needed, compiles, {}, 0

    def build(self):
        self.jobs += 1
        return self.needed

    def work(self, state):
        for _ in range(state):
            self.tick()
        return rivals.Found(values=1.0, products=self.products)


def test_a_run_is_repeated_with_the_first_apart_cut_at_the_cap_and_reported_when_it_fails():
    rival = Sleepless(7, compiles=True)
    measured, found = hessian.timed(rival, rival.work, cap=60, repeats=3)
    assert (measured["repeats"], measured["products"], rival.jobs, found.products) == (3, 7, 4, 7)
    assert measured["first_s"] >= measured["seconds"]
    assert "compiling_included" not in measured
    endless = Sleepless(10**9)
    assert hessian.timed(endless, endless.work, cap=0.05, repeats=3)[1] is None
    assert hessian.timed(endless, endless.work, cap=0.05, repeats=3)[0]["over_s"] == 0.05
    broken = Sleepless(None)
    assert "TypeError" in hessian.timed(broken, broken.work, cap=60, repeats=3)[0]["error"]


def test_draws_are_taken_until_the_standard_error_is_two_percent():
    draws = iter(np.random.default_rng(0).normal(10, 3, 1000))
    found = Sleepless(0).sampled(lambda: float(next(draws)))
    assert found.sem <= 0.02 * found.values
    assert found.products == pytest.approx((3 / 0.2) ** 2, rel=0.2)


def test_residuals_are_relative_to_each_value_and_vectors_need_no_norm():
    matrix = np.diag([1.0, -4.0, 2.0])
    values, residuals = networks.judged(
        lambda v: [(matrix @ v[0]).astype(np.float32)], [[np.array([0, 0, 3.0])], [np.array([0, 1, 1e-3])]]
    )
    assert values == pytest.approx([-4, 2], rel=1e-5)
    assert residuals == pytest.approx([1e-3 * 6 / 4, 0], abs=1e-6)


@pytest.mark.parametrize("name", networks.NAMES)
def test_the_networks_are_equal_in_torch_and_in_flax(name, tmp_path):
    torch = pytest.importorskip("torch")

    torch.manual_seed(0)
    net = networks.torch_lenet() if name == "lenet" else networks.torch_resnet()
    weights = {key: w.numpy() for key, w in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    rng = np.random.default_rng(0)
    for key in weights:
        if "running" in key or "bn" in key:
            weights[key] = rng.uniform(0.5, 1.5, weights[key].shape).astype(np.float32)
    shape = (4, 28, 28, 1) if name == "lenet" else (4, 32, 32, 3)
    images = rng.random(shape, np.float32)
    np.savez(tmp_path / "net.npz", images=images, labels=np.arange(4, dtype=np.int32), **weights)
    facts = networks.check(tmp_path / "net.npz")
    assert facts["parameters"] == {"lenet": 61706, "resnet": 269722}[name]
    assert facts["examples"] == 4
    assert math.isfinite(facts["loss"])


def test_a_process_that_ends_early_or_late_says_so_and_rows_before_are_kept(monkeypatch, tmp_path):
    def rows(script, cap=30.0):
        (tmp_path / "worker.py").write_text(script)
        monkeypatch.setattr(hessian, "__file__", str(tmp_path / "worker.py"))
        return list(hessian.run({"cap": cap, "threads": 1}))

    event = "print('EVENT {}', flush=True)\n"
    one = event.format('{"start": "a"}') + "print('noise')\n" + event.format('{"row": {"setting": "a", "seconds": 1}}')
    assert rows(one + event.format('{"done": true}')) == [{"setting": "a", "seconds": 1}]
    broken = rows(one + event.format('{"start": "b"}') + "raise MemoryError('too much')")
    assert broken == [{"setting": "a", "seconds": 1}, {"setting": "b", "error": "MemoryError: too much"}]
    monkeypatch.setattr(hessian, "SLACK", 2.0)
    late = rows(one + event.format('{"start": "b"}') + "import time; time.sleep(60)", cap=0.1)
    assert late == [{"setting": "a", "seconds": 1}, {"setting": "b", "over_s": 0.1}]


def test_what_is_missing_is_measured_in_the_order_of_its_weight():
    class Options:
        only, parts = ["resnet", "lenet"], ["top2", "where"]

    order = hessian.ordered(Options, ["lla_jax", "PyHessian", "curvlinops"])
    assert [network for network, _, _ in order] == ["lenet"] * 4 + ["resnet"] * 4
    assert order[-1] == ("resnet", "top2", "PyHessian")
    assert [rival for _, part, rival in order if part == "where"] == ["lla_jax", "lla_jax"]
