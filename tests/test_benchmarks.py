"""Numbers of README and docs/benchmarks.md are those of the JSON files; benchmarks measure what they say."""

import importlib
import json
import math
import pathlib
import sys
import time
import zipfile

import jax
import numpy as np
import pytest

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import damage
import gpu
import growth
import hessian
import kill
import paths
import sweep
import tpu
from cases import attention, curvature, plain, planes
from harness import measure, table
from rivals import in_jax


def test_the_tables_of_the_pages_are_generated_from_the_results():
    for file, write in ((table.README, table.readme), (table.PAGE, table.page), (table.TRUST, table.trust_page)):
        text = file.read_text()
        assert write(text, BENCHMARKS / "results") == text


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
    new = table.page(text, tmp_path)
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
    for write in (table.page, table.readme):
        assert write(text, tmp_path) == f"before\n{table.BEGIN}\n{table.END}\nafter"


MADE = {"environment": RESULT["environment"]}
ROW = {"min_ms": 4.0, "times_lla_jax": 2.0}
TARGET = {"what": "torch / lla_jax", "value": 2.0, "target": 5.0, "rule": "at least", "met": False}
RESULTS = {
    "sweep": MADE
    | {
        "networks": {
            "vit": {
                "parameters": 1234,
                "examples": 64,
                "data": "images",
                "best_microbatch_of_torch": 16,
                "largest_relative_difference_from_torch": 2e-7,
                "targets": [TARGET],
                "rivals": {
                    "lla_jax": {"min_ms": 2.0, "times_lla_jax": 1.0},
                    "torch, batch 64": ROW,
                    "torch, microbatch 16": ROW | {"min_ms": 3.0, "times_lla_jax": 1.5},
                    "loss-landscapes": ROW | {"min_ms": 250.0, "times_lla_jax": 125.0},
                },
            },
            "gpt": {"error": "MemoryError: no"},
        },
        "whole": {
            "points": 1681,
            "cache": {"none": {"seconds": 50.25}, "empty": {"error": "no"}},
            "rivals": {"LLA": {"seconds": 126.0}},
            "targets": [TARGET | {"what": "whole job", "met": True}],
        },
    },
    "bundle": MADE
    | {
        "points": 441,
        "steps": 100,
        "sides": {
            "lla_jax": {
                "seconds": {"plane": 13.0, "eigenpairs": 5.0, "density": 33.0, "criteria": 0.01, "trace": 14.0},
                "residuals": [1e-5, 5e-4],
                "density": {"copies_of_the_largest": 1},
                "total_s": 51.0,
                "compile_s": 19.0,
                "trace": {"mean": -200.0, "sem": 3.0},
            },
            "LLA": {
                "seconds": {"plane": 33.0, "density": 46.0, "criteria": 0.01, "eigenpairs": 13.0},
                "residuals": [0.012],
                "density": {"copies_of_the_largest": 7},
                "total_s": 92.0,
                "trace": {"error": "ValueError: empty"},
            },
        },
    },
    "growth": {
        "curves": {
            name: {
                "rows": [{"size": 10, "plane_ms": 1.0}, {"size": 1000, "plane_ms": 90.0}],
                "slopes": {"plane_ms": {"all": 0.977, "last": 1.0}},
            }
            for name in ("points", "parameters", "examples")
        }
    },
    "memory": {
        "points": [
            {"points": 10, "growth_mib": 1.0, "result_mib": 0.1},
            {"points": 1000, "growth_mib": 20.0, "result_mib": 15.0},
        ],
        "lanczos": [
            {"what": "spectrum", "basis_gb": 1.28, "growth_mib": 1300.0, "stated_mib": 1290.0},
            {"what": "eigenpairs", "error": "nothing was stated"},
        ],
    },
    "many_planes": {
        "networks": {
            "mlp": {
                "landscapes": 64,
                "points": 1681,
                "targets": [],
                "points_per_second": {"single": 20000.0, "sweep": 19000.0},
            }
        }
    },
    "kill": {
        "kills": 40,
        "writers": 3,
        "chunks": 200,
        "most_lost_by_a_kill": 1,
        "lost_by_kill": [0, 1, 1],
        "equal_to_the_bit": {"values loss": True, "stderr loss": False},
    },
    "interrupts": {
        "cases": {
            "status": {"signals": 20, "lost": 0, "otherwise": 2, "tracebacks": 0, "slowest_s": 0.5, "different": ["a"]},
            "trace": {"signals": 19, "lost": 1, "otherwise": 0, "tracebacks": 0, "slowest_s": 1.25, "different": []},
            "demo": {"error": "no"},
        }
    },
    "cold_start": {
        "help": {"median_s": 0.231},
        "demo": {
            "empty cache": {"seconds": 60.0, "compile_s": 30.0, "programs": 123, "from_the_cache": 0},
            "again": {"error": "no"},
        },
    },
}


def test_the_readme_has_one_table_with_the_best_of_the_others_and_says_what_was_not_measured(tmp_path):
    for name, result in (RESULTS | {"hessian": RESULT}).items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    new = table.readme(f"{table.BEGIN}{table.END}", tmp_path)
    assert "| | lla_jax | torch | LLA | others |\n" in new
    assert "| ViT, 1,234 parameters: a point of a plane (ms) | 2 | 3 (1.5 x) | - | 250 (125.0 x) |\n" in new
    assert "| LeNet: 2 largest eigenpairs (s) | 3.25 [20] | - | - | - |\n" in new  # no row of LLA is exact enough
    assert "| LeNet: spectral density, 100 products (s) | 2.5 [20] | - | 2.5 [20] (1.0 x) | - |\n" in new
    assert "| LeNet: plane, eigenpairs, density and criteria, from nothing (s) | 51 | - | 92 (1.8 x) | - |\n" in new
    assert new.count("has not been measured") == 1
    assert "The speed on GPUs and TPUs has not been measured" in new
    gpu = {"environment": RESULT["environment"] | {"device": "a GPU"}, "networks": {}}
    gpu["noise"] = {"default": 1e-3, "high": {"error": "RuntimeError: no memory"}}
    (tmp_path / "gpu.json").write_text(json.dumps(gpu))
    assert "The speed on TPUs has not been measured" in table.readme(new, tmp_path)
    assert "Noise: default 1.0e-03, high failed." in table.page(new, tmp_path)


def test_what_a_compiler_says_of_a_tpu_is_a_table_with_dashes_for_what_is_not_known(tmp_path):
    row = {"chips": 1, "peak": 2**20, "nbytes": 2**21, "operations": 3e9, "seconds": 4e-6, "share_of_roofline": 0.25}
    plane = {"program": "plane", "loop": "map", "chunk": 64, "share": False, "precision": "highest", "us_per_point": 5}
    about = {"network": "mlp", "slice": "tpu-v5e-4", "collectives": {"all-reduce": [2, 100]}}
    unknown = {"program": "lanczos", "seconds": None, "share_of_roofline": None, "collectives": {}}
    rows = {"a": row | about | plane, "b": row | about | unknown, "c": {"error": "no"}}
    (tmp_path / "tpu.json").write_text(json.dumps(MADE | {"rows": rows, "wanted": 9}))
    new = table.page(f"{table.BEGIN}{table.END}", tmp_path)
    plan = "64 one by one, first layer not shared, highest"
    assert "TPUs: what their compiler says of 2 of 9 programs" in new
    assert f"| plane | MLP | tpu-v5e-4 | {plan} | 1 | 3 | 2 | 4 | 5 | 25% | 2 all-reduce |\n" in new
    assert "| step of Lanczos | MLP | tpu-v5e-4 |  | 1 | 3 | 2 | - | - | - | none |\n" in new


def test_a_row_of_a_compiled_program_is_plain_data(monkeypatch):
    from lla_jax.execution import hlo, topologies

    moved = {"all-reduce": hlo.Collective(2, 100)}
    program = topologies.Program("", "tpu-v5e-4", 4, 1, 1, 1, 3, 9, 8.0, 8.0, moved, 2e-6, 1e-6, 1.0, ())
    monkeypatch.setattr(topologies, "compile_program", lambda *args, **options: program)
    monkeypatch.setattr(topologies, "devices_of", lambda on: ())
    monkeypatch.setitem(tpu._MAKERS, "plane", lambda job, devices: (None, (), {}))
    row = tpu.compiled(next(tpu.jobs()) | {"slice": "tpu-v5e-4", "chunk": 5})
    assert json.loads(json.dumps(row))["collectives"] == {"all-reduce": [2, 100]}
    assert row["us_per_point"] == pytest.approx(2 / 20)


def test_the_page_has_both_sides_of_a_curve_and_what_recording_costs(tmp_path):
    losses = {"loss": [0.5, 0.25, 0.5], "test": [1.0, 3.0, 1.0]}
    told = {"losses": [losses, losses], "seconds": [{"train": 9.0, "evaluate": 8.0}, {"train": 2.0, "evaluate": 1.5}]}
    sides = {"lla_jax": paths.side_of_a_curve(told), paths.CURVES: {"error": "no"}}
    assert sides["lla_jax"]["max"] == [0.5, 0.5]
    assert sides["lla_jax"]["test_mean"][0] == pytest.approx(5 / 3)
    network = {"sides": sides, "line": paths.along(losses), "largest_relative_difference": 2e-7}
    rows = [
        {"steps": n, "ms_per_step_more": 0.5, "growth_mib": g, "disk_mib": 7.0} for n, g in ((20, 1.0), (100, 31.0))
    ]
    result = MADE | {
        "curve": {"examples": 1408, "steps": 440, "points": 3, "networks": {"plain": network}},
        "record": {"lla_jax": rows, "width": 256},
        "pca": {"lla_jax": [{"steps": 20, "seconds": 0.25, "number": 19, "error": 1e-9}]},
        "load": {"curve": 0.5, "pca": 2.5},
    }
    result["targets"] = paths.targets(result)
    assert [row["met"] for row in result["targets"]] == [True, False, True]
    (tmp_path / "paths.json").write_text(json.dumps(result))
    new = table.page(f"{table.BEGIN}{table.END}", tmp_path)
    assert (
        "| plain | lla_jax | 2 (9) | 1.5 (8) | 0.4167 0.4167 | 0.5000 0.5000 | 0.5000 0.5000 | 3.0000 3.0000 |" in new
    )
    assert "| plain | dnn-mode-connectivity | fails: no |" in new
    assert "(load up to 2.5 before pca)" in new
    assert "100 steps 0.5 ms a step more, 31.0 MiB, 7 MiB on disk." in new
    assert "lla_jax from disk: 20 checkpoints 0.25 s, 19 shares within 1e-09 of scikit-learn's in float64." in new
    assert "| recording, MiB more for 5 times the steps | 30, **missed** | at most 16 | paths |" in new


def test_the_programs_for_tpus_have_names_of_their_own_and_the_plans_that_accelerators_try():
    rows = list(tpu.jobs())
    assert len({tpu.name_of(job) for job in rows}) == len(rows)
    for name in tpu.NETWORKS:
        loss, params, data = plain.problem(name, 4)
        assert (
            plain.count(params) == {"mlp": 2410, "lenet": 61706, "resnet": 269722, "vit": 107978, "gpt": 120704}[name]
        )
        outputs = jax.eval_shape(lambda p, d, loss=loss: loss.apply(p, loss.state, d, False)[0], params, data)
        assert jax.eval_shape(loss.criterion, outputs, data).shape == (4,)
        tried = [(job["loop"], job["share"]) for job in rows if job["program"] == "plane" and job["network"] == name]
        assert {("map", True), ("map", False), ("vmap", True), ("vmap", False)} <= set(tried)


def test_the_script_for_a_gpu_takes_wheels_along_and_says_what_it_lacks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu.sys, "path", [*gpu.sys.path])
    with zipfile.ZipFile(tmp_path / "carried_here-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried_here/__init__.py", "answer = 42")
    gpu.unpack(tmp_path)
    assert importlib.import_module("carried_here").answer == 42
    with pytest.raises(SystemExit, match=r"--wheels: .* given, which is no folder"):
        gpu.unpack(tmp_path / "nothing")
    with pytest.raises(SystemExit, match=r"--platform gpu: jax .* has no such device here"):
        gpu.check("gpu")
    monkeypatch.setitem(gpu.NEEDED, "no_such_module", "no-such-package")
    with pytest.raises(SystemExit, match="not installed: no-such-package; carry their wheels"):
        gpu.check("cpu")


def test_the_script_for_a_gpu_measures_every_network_at_every_precision():
    found = [(name, part) for name, part, _ in gpu.parts(quick=True)]
    wanted = (*gpu.PRECISIONS, "product", "lanczos")
    assert set(found) == {(name, part) for name in gpu.NETWORKS for part in wanted}
    calls = {(name, part): call for name, part, call in gpu.parts(quick=True)}
    for part in ("highest", "product", "lanczos"):
        assert calls["mlp", part]()["ms"] > 0
    assert gpu.noise("highest") < 1e-5
    assert "ZeroDivisionError" in gpu.attempted(lambda: 1 / 0)["error"]


def test_every_script_has_its_place_on_the_page_and_missed_targets_are_marked(tmp_path):
    for name, result in RESULTS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    new = table.page(f"{table.BEGIN}{table.END}", tmp_path)
    assert "| network | lla_jax | torch, its whole batch | torch, best microbatch | loss-landscapes |" in new
    assert "| ViT, 1,234 parameters, batch 64, images | 2 | 4 (2.00 x) | 3 (1.50 x) | 250 (125.00 x) |\n\nValues" in new
    assert "50.2 s with no compilation cache; the others, from their time a point: LLA 126 s." in new
    assert "| lla_jax | 13 | 5 (5e-04) | 33 (1 x) | 0.01 | 51, 19 compiling | 14 (+- 1.5 %) |" in new
    assert "| LLA | 33 | 13 (1e-02) | 46 (7 x) | 0.01 | 92 | fails |" in new
    assert "points (10 to 1,000) plane 0.98; parameters (10 to 1,000)" in new
    assert "1 MiB for 10 points, 20 MiB for 1,000 points (result 15 MiB); spectrum with a basis of 1.28 GB 1,300" in new
    assert "MLP, 64 planes of 1,681 points: single 20,000, sweep 19,000." in new
    assert "200 chunks: NOT the same bits as undisturbed; chunks lost by a kill: at most 1, 2 in all." in new
    assert "39 Ctrl-C at random moments of 2 verbs, 1 more failed: at the latest 1.2 s later all was at an end" in new
    assert "1 without effect, 2 with another exit code than 130, 0 with a traceback; 1 numbers differ from" in new
    assert "`lla-jax --help` 0.23 s; `lla-jax demo` empty cache 60 s (30.0 s of compiling, 0 of 123" in new
    assert "| torch / lla_jax | 2, **missed** | at least 5 | sweep |\n" in new
    assert "| whole job | 2 | at least 5 | sweep |" in new


class Sleepless(in_jax.Rival):
    """A rival whose job takes a number of products; the first one compiles."""

    def __init__(self, needed, compiles=False):
        self.needed, self.compiles, self.more, self.jobs = needed, compiles, {}, 0

    def build(self):
        self.jobs += 1
        return self.needed

    def work(self, state):
        for _ in range(state):
            self.tick()
        return in_jax.Found(values=1.0, products=self.products)


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
    values, residuals = curvature.judged(
        lambda v: [(matrix @ v[0]).astype(np.float32)], [[np.array([0, 0, 3.0])], [np.array([0, 1, 1e-3])]]
    )
    assert values == pytest.approx([-4, 2], rel=1e-5)
    assert residuals == pytest.approx([1e-3 * 6 / 4, 0], abs=1e-6)


@pytest.mark.parametrize("name", curvature.NAMES)
def test_the_networks_are_equal_in_torch_and_in_flax(name, tmp_path):
    torch = pytest.importorskip("torch")

    torch.manual_seed(0)
    net = curvature.torch_lenet() if name == "lenet" else curvature.torch_resnet()
    weights = {key: w.numpy() for key, w in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    rng = np.random.default_rng(0)
    for key in weights:
        if "running" in key or "bn" in key:
            weights[key] = rng.uniform(0.5, 1.5, weights[key].shape).astype(np.float32)
    shape = (4, 28, 28, 1) if name == "lenet" else (4, 32, 32, 3)
    images = rng.random(shape, np.float32)
    np.savez(tmp_path / "net.npz", images=images, labels=np.arange(4, dtype=np.int32), **weights)
    facts = curvature.check(tmp_path / "net.npz")
    assert facts["parameters"] == {"lenet": 61706, "resnet": 269722}[name]
    assert facts["examples"] == 4
    assert math.isfinite(facts["loss"])


@pytest.mark.parametrize("name", ["vit", "gpt"])
def test_the_transformers_are_equal_in_torch_and_in_flax(name):
    torch = pytest.importorskip("torch")

    net = attention.torch_transformer(name)
    with torch.no_grad():
        for p in net.parameters():  # no weight stays 0 or 1, so that each one counts
            p.add_(0.1 * torch.randn_like(p))
    rng = np.random.default_rng(0)
    inputs, labels, _ = attention.letters(3)
    if name == "vit":
        inputs, labels = rng.random((3, 32, 32, 3), np.float32), np.arange(3, dtype=np.int32)
    loss, params, data = attention.problem(name, net, inputs, labels)
    x, y = planes.torch_inputs(inputs, labels)
    with torch.no_grad():
        scores = net(x)
    found = np.moveaxis(np.asarray(loss.apply(params, loss.state, data, False)[0]), -1, 1)
    assert found == pytest.approx(scores.numpy(), abs=1e-5)
    mean = float(np.mean(loss.criterion(np.moveaxis(found, 1, -1), data)))
    assert mean == pytest.approx(float(torch.nn.functional.cross_entropy(scores, y)), rel=1e-5)
    keys = [key for key, _ in net.named_parameters()]
    for array, p in zip(curvature.to_torch(params, keys), net.parameters(), strict=True):
        assert np.array_equal(array, p.detach().numpy())


def test_the_lean_torch_loop_has_the_losses_of_our_plane():
    pytest.importorskip("torch")
    import lla_jax as lla

    case = planes.case("mlp", pathlib.Path(), 40)
    loss, params, data = case.problem
    axes = planes.axes_of(params)
    plane = lla.evaluate(loss, params, data, axes, lla.grid(extent=0.5, points=3))
    lean = sweep.LeanTorch(case, axes, microbatch=16)
    assert lean.loss(-0.5, 0.5) == pytest.approx(plane.values["loss"][0, 2], rel=1e-5)
    assert lean.loss(0.5, 0.0) == pytest.approx(plane.values["loss"][2, 1], rel=1e-5)


def test_torch_counts_at_its_better_batch():
    rows = {name: {"min_ms": ms} for name, ms in (("torch, batch 9", 3), ("torch, microbatch 4", 2), ("LLA", 5))}
    assert sweep.fastest(rows) == {"torch": {"min_ms": 2}, "LLA": {"min_ms": 5}}


def test_growth_is_the_exponent_of_a_power():
    assert measure.slope([1, 10, 100], [2, 20, 200]) == pytest.approx(1)
    rows = [{"size": n, "plane_ms": 3 * n**0.5} for n in (2, 8, 32)]
    assert growth.slopes(rows) == {"plane_ms": {"all": pytest.approx(0.5), "last": pytest.approx(0.5)}}


def test_memory_growth_is_that_of_the_call():
    found, array = measure.growth_mib(lambda: np.ones(2**23))
    assert array.nbytes == 2**26
    assert 60 < found["growth_mib"] < 80


def test_a_worker_tells_its_result_and_a_failure_its_last_line(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(
        f"import json, os, sys; sys.path.insert(0, {str(BENCHMARKS)!r}); from harness import measure\n"
        "job = json.loads(sys.argv[2]); print('noise')\n"
        "if job['n'] == 0: raise ValueError('no n')\n"
        "measure.tell({'n': job['n'], 'flag': os.environ['FLAG']})\n"
    )
    assert measure.child(str(script), {"n": 3}, more={"FLAG": "x"}) == {"n": 3, "flag": "x"}
    assert measure.child(str(script), {"n": 0}) == {"error": "ValueError: no n"}


def test_a_result_is_continued_only_in_the_same_environment(tmp_path):
    path, blank = tmp_path / "sweep.json", measure.begun("Claim.", 2) | {"networks": {}}
    assert measure.resumed(path, blank) == blank
    measure.keep(path, blank | {"networks": {"mlp": 1}})
    assert measure.resumed(path, blank)["networks"] == {"mlp": 1}
    other = measure.begun("Claim.", 1) | {"networks": {}}
    assert measure.resumed(path, other) == other


def test_a_part_that_takes_too_long_is_ended_with_all_its_processes(tmp_path):
    every = importlib.import_module("all")
    mark = tmp_path / "alive"
    call = ["sh", "-c", f"(sleep 1; touch {mark}) & wait"]
    assert every.run(call, limit=0.2) == "ended after 0 s"
    time.sleep(1.2)
    assert not mark.exists()
    assert every.run(["sh", "-c", "exit 3"], limit=30) == "ended with status 3"


def test_what_a_kill_cost_is_read_from_the_logs(tmp_path):
    one, two = tmp_path / "1.log", tmp_path / "2.log"
    one.write_text("1.0 begun a.npz\n1.1 written a.npz\n1.2 begun b.npz\n")
    two.write_text("1.05 begun a.npz\n1.3 begun b.npz\n1.4 written b.npz\n9.0 begun a.npz\n")
    assert kill.unfinished(one) == {"b.npz"}
    assert kill.repeated([one, two]) == 1


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


def test_damaged_stores_and_results_give_the_same_bits_or_say_what_to_do():
    results = damage.trials(24, seed=5, names=("store", "sweep"))  # of curvature: tests/output/test_kept.py
    assert not [each for each in results if each["wrong"]]
    assert {each["subject"] for each in results} == {"store", "sweep"}
    assert 4 < sum(not each["errors"] for each in results) < 20
