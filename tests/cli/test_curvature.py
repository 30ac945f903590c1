"""``lla-jax hessian``, ``lla-jax landscape --axes hessian`` and ``lla-jax plot`` of their results, on tiny problems."""

from __future__ import annotations

import contextlib
import json
import sys

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.cli import curvature as verb
from lla_jax.cli import main as cli
from lla_jax.cli.options import HessianOptions, Mistake
from lla_jax.core.recipes import Differs
from lla_jax.output.plotting import reading

TINY = """
import numpy as np
import lla_jax as lla

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)).astype(np.float32) * np.array([4, 2, 1, 1, 0.5, 0.1], np.float32)

def squares(params, batch):
    x, y = batch
    return ((x @ params["dense"]["kernel"] + params["dense"]["bias"] - y) ** 2).mean()

def make(scale=1.0):
    kernel = scale * np.ones(6, np.float32)
    params = {"dense": {"kernel": kernel, "bias": np.zeros(1, np.float32)}}
    return lla.Problem(squares, params, (X, X @ kernel))

def another():
    return make(2.0)

def whole():  # one example whose arrays share no leading axis
    data = lla.whole({"x": X, "y": X @ np.ones(6, np.float32), "penalized": np.zeros(2, np.float32)})
    return lla.Problem(lambda p, d: squares(p, (d["x"], d["y"])) + d["penalized"].sum(), make().params, data)

def not_finite():
    return lla.Problem(lambda p, b: squares(p, b) / 0.0, make().params, make().data)
"""
ROWS = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32) * np.array([4, 2, 1, 1, 0.5, 0.1], np.float32)
DESIGN = np.concatenate([np.ones((40, 1)), np.asarray(ROWS, np.float64)], 1)  # bias first, as in the tree
HESSIAN = 2 * DESIGN.T @ DESIGN / 40


@pytest.fixture(autouse=True)
def tiny(tmp_path, monkeypatch):
    (tmp_path / "tiny_curvature.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(cli, "prepare_jax", lambda devices: None)
    yield tmp_path
    sys.modules.pop("tiny_curvature", None)


def hessian(*arguments, factory="make"):
    return cli.main([str(a) for a in ("hessian", "--problem", f"tiny_curvature:{factory}", *arguments)])


def landscape(*arguments):
    return cli.main([str(a) for a in ("landscape", "--problem", "tiny_curvature:make", "--points", 5, *arguments)])


QUICK = ("--top", 3, "--steps", 7, "--probes", 2, "--out", "r")


def stopping(label, after):
    """A progress bar that interrupts, as Ctrl-C would, at a number of products of one part."""

    @contextlib.contextmanager
    def bar(name, **options):
        def progress(done, total):
            if name == label and done >= after:
                raise KeyboardInterrupt

        yield progress

    return bar


def test_hessian_saves_numbers_words_and_pictures(tiny, capsys):
    assert hessian(*QUICK, "--layers") == 0
    out = capsys.readouterr().out
    expected = np.sort(np.linalg.eigvalsh(HESSIAN))[::-1]
    pairs, spec = lla.load("r/eigenpairs.npz"), lla.load("r/spectrum.npz")
    assert isinstance(pairs, lla.Eigenpairs)
    assert isinstance(spec, lla.Spectrum)
    assert (np.abs(pairs.values - expected[:3]) <= pairs.residuals).all()
    numbers = json.loads((tiny / "r/hessian.json").read_text())
    np.testing.assert_allclose(numbers["eigenvalues"], pairs.values)
    assert abs(numbers["trace"]["mean"] - np.trace(HESSIAN)) <= 4 * numbers["trace"]["sem"] + 1e-3
    np.testing.assert_allclose(numbers["criteria"]["r_e"]["mean"], expected[-1] / expected[0], rtol=1e-3)
    assert numbers["criteria"]["K_H0.5"]["mean"] == 0
    assert [row["module"] for row in numbers["layers"]] == ["dense"]
    text = (tiny / "r/hessian.txt").read_text()
    assert text.strip() in out
    assert "mainly positive" in text
    for name in ("spectrum", "eigenvalues", "layers"):
        assert (tiny / f"r/{name}.png").stat().st_size > 5000


@pytest.mark.parametrize(("part", "after"), [("eigenpairs", 1), ("spectrum", 1)])
def test_interrupted_run_goes_on_with_the_same_command(part, after, tiny, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(verb, "bar", stopping(part, after))
        assert hessian(*QUICK) == 130
    said = capsys.readouterr().err
    assert not (tiny / f"r/{part}.npz").exists()
    assert "the same command continues it" in said
    assert (tiny / f"r/{part}.partial.npz").exists()
    assert hessian(*QUICK, "--seed", 1) == 2
    assert "was made with other options: seed 0 -> 1" in capsys.readouterr().err
    assert hessian(*QUICK, factory="another") == 2
    assert "was made with other params" in capsys.readouterr().err
    assert hessian(*QUICK) == 0
    assert not list((tiny / "r").glob("*partial*"))
    assert hessian(*QUICK[:-1], "whole") == 0
    for name in ("eigenpairs", "spectrum"):
        resumed, whole = (lla.load(f"{folder}/{name}.npz") for folder in ("r", "whole"))
        values = "values" if name == "eigenpairs" else "nodes"
        np.testing.assert_array_equal(getattr(resumed, values), getattr(whole, values))


def test_finished_parts_are_taken_and_overwritten_on_request(tiny, capsys, monkeypatch):
    assert hessian(*QUICK) == 0
    with monkeypatch.context() as patch:
        patch.setattr(verb, "bar", stopping("spectrum", 0))
        assert hessian(*QUICK) == 0  # neither eigenpairs nor spectrum are computed
        assert "eigenpairs: taken from r/eigenpairs.npz" in capsys.readouterr().err
        assert hessian(*QUICK, "--overwrite") == 130
    assert hessian(*QUICK, "--top", 2) == 0  # fewer are there
    assert len(json.loads((tiny / "r/hessian.json").read_text())["eigenvalues"]) == 2


def test_hessian_axes_are_the_eigenvectors(tiny, capsys):
    assert landscape("--axes", "hessian", "--out", "r") == 0
    plane, pairs = lla.load("r/landscape.npz"), lla.load("r/eigenpairs.npz")
    a, b = np.meshgrid(*plane.coords, indexing="ij")
    np.testing.assert_allclose(
        plane.values["loss"], (pairs.values[0] * a**2 + pairs.values[1] * b**2) / 2, rtol=2e-3, atol=1e-5
    )
    assert landscape("--axes", "hessian", "--out", "r") == 0
    assert "eigenpairs: taken from r/eigenpairs.npz" in capsys.readouterr().err
    assert landscape("--axes", "hessian", "--which", "ends", "--out", "ends") == 0
    values = lla.load("ends/landscape.npz").values["loss"]
    smallest = np.linalg.eigvalsh(HESSIAN)[0]
    names = lla.load("ends/landscape.npz").recipe["directions"]["names"]
    assert [name.split(" (")[0] for name in names] == ["first eigenvector", "last eigenvector"]
    assert reading.direction_names(lla.load("ends/landscape.npz"))[0].startswith("first eigenvector, λ\xa0=\xa0")
    np.testing.assert_allclose(values[2], smallest * plane.coords[1] ** 2 / 2, atol=2e-3)
    assert {p.name for p in (tiny / "ends").glob("eigen*")} == {"eigenpairs-largest.npz", "eigenpairs-smallest.npz"}


@pytest.mark.filterwarnings("ignore:steps. 2 asked for")
def test_without_top_all_pairs_of_a_small_selection_are_computed(tiny):
    assert hessian("--select", "**/bias", "--steps", 2, "--probes", 1, "--out", "r") == 0
    assert lla.load("r/eigenpairs.npz").num == 1


def test_results_are_drawn_again(tiny, capsys):
    assert hessian(*QUICK) == 0
    for name in ("eigenpairs", "spectrum"):
        assert cli.main(["plot", f"r/{name}.npz", "--format", "pdf"]) == 0
        assert (tiny / f"r/{name}.pdf").exists()
    assert cli.main(["plot", "r/spectrum.npz", "--log"]) == 2
    assert "--log: given, but it is for landscapes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--top", "0"], "--top: 0 given; it must be at least 1"),
        (["--top", "8"], "--top: 8 given; it must be at most 7, the number of parameters"),
        (["--steps", "1"], "--steps: 1 given; it must be at least 2"),
        (["--tol", "2"], "--tol: 2.0 given; it must be between 0 and 1"),
        (["--layers", "--matrix", "ggn"], "leave --matrix and --select out"),
        (["--matrix", "ggn"], "--loss: ggn needs the model's outputs|ggn needs the model's outputs"),
        (["--select", "nothing/*"], "dense/kernel"),
        (["--devices", "99"], "--devices: 99 given; it must be from 1 to"),
        (["--batch-stats", "batch"], "--batch-stats: 'batch' needs a model whose normalization layers are visible"),
    ],
)
def test_mistakes_are_one_message(arguments, says, capsys):
    assert hessian(*arguments) == 2
    said = capsys.readouterr().err
    assert any(text in said for text in says.split("|")), said
    assert "Traceback" not in said


def test_a_loss_that_is_not_finite_is_told(capsys):
    assert hessian(*QUICK, factory="not_finite") == 2
    assert "product 1 is not finite" in capsys.readouterr().err


def test_trace_and_layers_are_kept_as_well(tiny, capsys, monkeypatch):
    for part in ("trace", "layers"):
        with monkeypatch.context() as patch:
            patch.setattr(verb, "bar", stopping(part, 1))
            assert hessian(*QUICK, "--layers") == 130
        assert not (tiny / f"r/{part}.json").exists()
        assert f"what is finished is kept in r/{part}.partial.npz; the same command continues it" in (
            capsys.readouterr().err
        )
    assert hessian(*QUICK, "--layers") == 0
    assert not list((tiny / "r").glob("*partial*"))
    first = capsys.readouterr()
    assert "trace: taken from r/trace.json" in first.err  # the run that was interrupted in the layers
    assert "layers: taken" not in first.err
    with monkeypatch.context() as patch:
        patch.setattr(verb, "bar", None)  # nothing is computed
        assert hessian(*QUICK, "--layers") == 0
        again = capsys.readouterr()
        assert "layers: taken from r/layers.json" in again.err
        assert again.out == first.out
        assert hessian(*QUICK, "--rtol", 0.1) == 2
        assert "r/trace.json was made with other options: rtol 0.02 -> 0.1" in capsys.readouterr().err
        content = json.loads((tiny / "r/trace.json").read_text())
        (tiny / "r/trace.json").write_text(json.dumps({**content, "result": {"average": 1}}))
        assert hessian(*QUICK) == 2
        assert "r/trace.json is not what lla_jax wrote (" in capsys.readouterr().err
        (tiny / "r/trace.json").write_text("[1")
        assert hessian(*QUICK) == 2
        said = capsys.readouterr().err
        assert "r/trace.json is not what lla_jax wrote (JSONDecodeError" in said
        assert "--overwrite" in said


def test_a_run_that_overwrites_can_be_interrupted_and_go_on(tiny, capsys, monkeypatch):
    assert hessian(*QUICK, "--layers") == 0
    other = ("--top", 2, "--steps", 5, "--probes", 3, "--rtol", 0.1, "--out", "r")
    with monkeypatch.context() as patch:
        patch.setattr(verb, "bar", stopping("eigenpairs", 1))
        assert hessian(*other, "--overwrite") == 130
    assert "without --overwrite continues it" in capsys.readouterr().err
    assert hessian(*other) == 0
    assert lla.load("r/spectrum.npz").nodes.shape == (3, 5)
    assert not (tiny / "r/layers.png").exists()  # of the run before


def test_overwriting_removes_what_is_unfinished(tiny, capsys, monkeypatch):
    for part in ("trace", "layers"):
        with monkeypatch.context() as patch:
            patch.setattr(verb, "bar", stopping(part, 0 if part == "trace" else 1))
            assert hessian(*QUICK, "--layers") == 130
    assert [path.name for path in (tiny / "r").glob("*partial*")] == ["layers.partial.npz"]
    assert hessian(*QUICK, "--overwrite") == 0
    assert not list((tiny / "r").glob("*partial*"))


def test_fewer_or_more_pairs_than_an_interrupted_run_was_asked_for(tiny, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(verb, "bar", stopping("eigenpairs", 1))
        assert hessian(*QUICK) == 130
    assert hessian(*QUICK, "--top", 2) == 2
    assert (
        "r/eigenpairs.partial.npz was made with other options: number of eigenpairs 3 -> 2" in capsys.readouterr().err
    )
    assert hessian(*QUICK) == 0
    assert hessian(*QUICK, "--top", 4) == 0
    assert lla.load("r/eigenpairs.npz").num == 4


def test_words_name_the_matrix_and_the_block(tiny):
    assert hessian("--top", 1, "--steps", 3, "--probes", 1, "--select", "**/kernel", "--out", "r") == 0
    text = (tiny / "r/hessian.txt").read_text()
    assert text.startswith("Curvature: Hessian of 6 parameters (**/kernel), mean over 40 examples\n")  # no BatchNorm
    assert "Spectral density: 1 probe of 3 steps" in text


def test_data_that_stay_whole(tiny, capsys):
    assert hessian(*QUICK, factory="whole") == 0
    assert "Hessian of 7 parameters, of one example, always whole" in capsys.readouterr().out
    values = lla.load("r/eigenpairs.npz").values
    np.testing.assert_allclose(values, np.sort(np.linalg.eigvalsh(HESSIAN))[::-1][:3], rtol=1e-4)
    problem = ("landscape", "--problem", "tiny_curvature:whole", "--points", 3, "--out", "w")
    assert cli.main([str(a) for a in problem]) == 0
    assert lla.load("w/landscape.npz").values["loss"].shape == (3, 3)
    assert cli.main([str(a) for a in (*problem[:-1], "v", "--batch-size", 4)]) != 0
    assert "--batch-size: 4 given, but lla.whole(data) is one example" in capsys.readouterr().err


def test_eigenpairs_without_copies_and_from_those_of_another_folder(tmp_path):
    like = np.zeros(12, np.float32)
    H = lla.operators.given(lambda v, A: A @ v, like, np.diag(np.arange(1.0, 13)).astype(np.float32))

    def pairs(out, **options):
        return verb.eigenpairs(H, like, HessianOptions(problem="", out=tmp_path / out, top=2, **options))

    first = pairs("first", no_copies=True)
    assert first.recipe["copies"] is False
    assert pairs("first", no_copies=True).products == first.products  # taken from the folder
    with pytest.raises(Differs, match="no-copies"):
        pairs("first")
    kept = tmp_path / "first/eigenpairs.npz"
    then = pairs("then", start=kept)
    assert then.recipe["start"]["num"] == 2
    assert np.allclose(then.values, [12, 11], rtol=1e-5)
    lla.save(lla.spectrum(H, jax.random.key(0), steps=3, probes=1), tmp_path / "spectrum")
    for start, match in ((tmp_path / "none.npz", "must be a file of"), (tmp_path / "spectrum.npz", "holds Spectrum")):
        with pytest.raises(Mistake, match=f"--start: .*{match}"):
            pairs("other", start=start)
