"""Results kept in a folder, for users of the library: taken, continued or computed anew, and errors that carry data."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from functools import partial

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core.arguments import Misuse
from lla_jax.core.recipes import Differs
from lla_jax.output import kept
from tests.helpers import Interrupt, dataset, mlp_loss, params

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def H():
    return lla.hessian(mlp_loss(), params(), dataset())


def pairs_in(path, H, k=2, settings=None, compute=lla.eigenpairs, **options):
    settings = {"seed": "0"} if settings is None else settings
    return kept.result(path, H, partial(compute, H, KEY, k), settings, like=params(), **options)


def never(*arguments, **options):
    raise AssertionError("computed again")


def stopping(after):
    """A bar that interrupts after so many products, as Ctrl-C would."""
    return lambda name: contextlib.nullcontext(Interrupt(after))


def test_a_finished_result_is_taken_and_a_new_one_computed_on_request(H, tmp_path, caplog):
    path = tmp_path / "new" / "eigenpairs.npz"
    with caplog.at_level(logging.INFO, "lla_jax"):
        first = pairs_in(path, H)
        again = pairs_in(str(path), H, compute=never)
    assert f"eigenpairs: taken from {path}" in caplog.messages
    np.testing.assert_array_equal(again.values, first.values)
    np.testing.assert_array_equal(again.vectors.tree["gain"], first.vectors.tree["gain"])
    assert again.recipe["command"] == {"seed": "0"}
    assert [file.name for file in path.parent.iterdir()] == ["eigenpairs.npz"]
    for options in ({"overwrite": True}, {"accept": lambda found: found.num > 2}):
        with pytest.raises(AssertionError, match="computed again"):
            pairs_in(path, H, compute=never, **options)


def test_an_interrupted_result_is_continued_to_the_same_bits(H, tmp_path):
    said, path = [], tmp_path / "spectrum.npz"
    compute, settings = partial(lla.spectrum, H, KEY, steps=12, probes=3), {"steps": "12"}
    with pytest.raises(KeyboardInterrupt):
        kept.result(path, H, compute, settings, unfinished={"probes": "3"}, bar=stopping(20), report=said.append)
    unfinished = tmp_path / "spectrum.partial.npz"
    assert said == [f"what is finished is kept in {unfinished}; the same call continues it"]
    with pytest.raises(
        Differs, match=r"settings: .*spectrum.partial.npz was made with other options: probes 3 -> 4; they"
    ):
        kept.result(path, H, compute, settings, unfinished={"probes": "4"})
    found = kept.result(path, H, compute, settings, unfinished={"probes": "3"})
    whole = lla.spectrum(H, KEY, steps=12, probes=3)
    np.testing.assert_array_equal(found.nodes, whole.nodes)
    assert not unfinished.exists()
    with pytest.raises(KeyboardInterrupt):
        kept.result(path, H, compute, settings, overwrite=True, bar=stopping(20), report=said.append)
    assert said[1:] == [f"what is finished is kept in {unfinished}; the same call without overwrite continues it"]


def test_what_was_made_otherwise_is_refused_with_what_changed(H, tmp_path):
    path = tmp_path / "eigenpairs.npz"
    pairs_in(path, H)
    with pytest.raises(Differs, match=r"seed 0 -> 1; they must be the same. Repeat them, or") as refused:
        pairs_in(path, H, settings={"seed": "1", "new": "x"})
    error = refused.value
    assert (error.argument, error.changed, error.path) == ("settings", {"seed": "0 -> 1"}, path)
    other = lla.hessian(mlp_loss(), params(), dataset(seed=5))
    with pytest.raises(Differs, match=r"operator: that of .*eigenpairs.npz differs in data") as refused:
        pairs_in(path, other)
    assert (refused.value.argument, list(refused.value.changed), refused.value.path) == ("operator", ["data"], path)
    path.write_text("no result")
    with pytest.raises(Misuse, match=r"path: .*eigenpairs.npz is not a readable lla_jax result") as refused:
        pairs_in(path, H)
    assert refused.value.path == path
    with pytest.raises(Misuse, match=r"path: .*eigenpairs given; it must be a file that ends in .npz, such as eigen"):
        pairs_in(tmp_path / "eigenpairs", H)


def test_finite_differences_are_not_taken_for_exact_products(H, tmp_path):
    made = {**H.recipe, "product": {"kind": "finite-difference", "step": 0.5, "error": 1e-4, "absolute": 1e-4}}
    path = tmp_path / "rows.json"
    for operator, other in ((made, H.recipe), (H.recipe, made)):
        assert kept.numbers(path, operator, lambda progress: [1.0], {}, overwrite=True) == [1.0]
        with pytest.raises(Differs, match="product"):
            kept.numbers(path, other, never, {})


def test_numbers_are_kept_whole_or_not_at_all(H, tmp_path):
    path, said = tmp_path / "new" / "trace.json", []

    def compute(progress):
        return {"mean": np.float32(0.5), "rows": np.arange(3), "nan": float("nan"), "other": {1}}

    def numbers(compute=compute, settings=None, **options):
        return kept.numbers(path, H, compute, settings or {"rtol": "0.1"}, report=said.append, **options)

    with pytest.raises(KeyboardInterrupt):
        numbers(lambda progress: progress(1, 2), bar=stopping(1))
    assert not path.exists()
    assert numbers()["mean"] == 0.5
    found = numbers(never)
    assert (found["mean"], found["rows"], found["other"]) == (0.5, [0, 1, 2], "{1}")
    assert np.isnan(found["nan"])
    assert said == [f"trace: taken from {path}"]
    with pytest.raises(Differs, match=r"other options: rtol 0.1 -> 0.2"):
        numbers(settings={"rtol": "0.2"})
    assert numbers(settings={"rtol": "0.2"}, overwrite=True)["mean"] == 0.5
    assert json.loads(path.read_text())["command"] == {"rtol": "0.2"}
    assert [file.name for file in path.parent.iterdir()] == ["trace.json"]
    for broken in ("[1", "[]", '{"a": 1}'):
        path.write_text(broken)
        with pytest.raises(Misuse, match=r"path: .*trace.json is not what lla_jax wrote"):
            numbers()


def test_interrupted_numbers_are_continued_to_the_same_bits(H, tmp_path):
    said, path, unfinished = [], tmp_path / "trace.json", tmp_path / "trace.partial.npz"
    draws = partial(lla.trace, H, KEY, method="hutchinson", rtol=0.3)

    def numbers(settings=None, **options):
        def compute(**asked):
            found = draws(**asked)
            return [found.mean, found.sem, found.num]

        settings = settings or {"rtol": "0.3"}
        return kept.numbers(path, H, compute, settings, continues=True, report=said.append, **options)

    for options, call in (({}, "the same call"), ({"overwrite": True}, "the same call without overwrite")):
        with pytest.raises(KeyboardInterrupt):
            numbers(bar=stopping(9), **options)
        assert said.pop() == f"what is finished is kept in {unfinished}; {call} continues it"
        assert lla.load(unfinished).num == 16
    with pytest.raises(Differs, match=r"trace.partial.npz was made with other options: rtol 0.3 -> 0.2"):
        numbers({"rtol": "0.2"})
    with pytest.raises(Differs, match=r"trace.partial.npz (differs in|belongs to another)"):
        kept.numbers(path, lla.hessian(mlp_loss(), params(), dataset(seed=5)), never, {"rtol": "0.3"}, continues=True)
    whole = draws()
    assert numbers() == [whole.mean, whole.sem, whole.num]
    assert [file.name for file in tmp_path.iterdir()] == ["trace.json"]
    assert numbers(bar=stopping(0)) == [whole.mean, whole.sem, whole.num]
    assert said == [f"trace: taken from {path}"]


def test_processes_that_see_different_files_are_told_so(H, tmp_path, monkeypatch):
    def differ(**items):
        raise ValueError("differ between the processes")

    monkeypatch.setattr(kept.processes, "agree", differ)
    with pytest.raises(
        Misuse, match=r"path: .* is not the same to all processes; it must be in a folder that all"
    ) as refused:
        pairs_in(tmp_path / "eigenpairs.npz", H, compute=never)
    assert refused.value.path == tmp_path / "eigenpairs.npz"


def test_damage_is_found_and_the_remedy_helps(H, tmp_path):
    path = tmp_path / "trace.json"

    def number():
        return kept.numbers(path, H.recipe, lambda progress: {"mean": 1.125}, {"method": "xtrace"})

    assert number() == {"mean": 1.125}
    sound = path.read_text()
    for damaged in (sound.replace("1.125", "1.625"), sound[:50], "", "[1]"):
        path.write_text(damaged)
        with pytest.raises(Misuse, match=r"path: .*trace.json is not what lla_jax wrote \(.*\). Remove it and repeat"):
            number()
    path.write_text(json.dumps({k: v for k, v in json.loads(sound).items() if k != "seal"}))  # as it was before
    assert number() == {"mean": 1.125}
    pairs = tmp_path / "eigenpairs.npz"
    pairs_in(pairs, H)
    pairs.write_bytes(pairs.read_bytes()[:-1])
    with pytest.raises(Misuse, match=r"path: .*eigenpairs.npz .*Remove it and repeat the call, .* anew$"):
        pairs_in(pairs, H)
    pairs.unlink()
    pairs_in(pairs, H)


def test_a_folder_that_cannot_be_written_to_or_read_is_named(H, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(kept._files, "write_text", refuse)
    with pytest.raises(OSError, match=r"path: .*trace.json could not be written \(Read-only file system\); mend that"):
        kept.numbers(tmp_path / "trace.json", H.recipe, lambda progress: 1.0, {})
    (tmp_path / "is a folder.json").mkdir()
    with pytest.raises(OSError, match=r"path: .*is a folder.json cannot be read \(Is a directory\); mend that"):
        kept.numbers(tmp_path / "is a folder.json", H.recipe, lambda progress: 1.0, {})
    partial_file = tmp_path / "eigenpairs.partial.npz"
    partial_file.mkdir()
    with pytest.raises(OSError, match=r"path: .*eigenpairs.partial.npz cannot be removed"):
        pairs_in(tmp_path / "eigenpairs.npz", H, overwrite=True)
