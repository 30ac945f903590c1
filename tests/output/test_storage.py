"""Results come back as they were saved; files that are broken, foreign, newer or hostile are refused."""

import json
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from tests.helpers import FIXED, dataset, mlp_loss, params


@pytest.fixture(scope="module")
def plane():
    axes = lla.directions.normalize(lla.directions.random(jax.random.key(0), params()), params())
    return lla.evaluate(mlp_loss(), params(), dataset(), axes, lla.grid(points=(3, 4)), execution=FIXED)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_landscape_comes_back_as_it_was(plane, tmp_path):
    path = lla.save(plane, tmp_path / "new folder" / "plane")
    assert path.name == "plane.npz"
    again = lla.load(path)
    same(
        (again.coords, again.values, again.stderr),
        (plane.coords, plane.values, plane.stderr),
    )
    assert again.recipe == json.loads(json.dumps(plane.recipe))
    assert os.listdir(path.parent) == ["plane.npz"]


@pytest.mark.parametrize(
    "name", ["run0.5", "lr1e-3", "lr=0.1.seed=2", "v1.2", "net.v2", "model.best", "run.seed0", ".hidden"]
)
def test_a_name_with_dots_is_a_name(plane, tmp_path, name):
    path = lla.save(plane, tmp_path / name)
    assert path == tmp_path / f"{name}.npz"
    same(lla.load(tmp_path / name).values, plane.values)  # by the name that was given


def test_a_result_replaces_the_one_that_is_there(plane, tmp_path):
    path = lla.save(lla.Landscape(plane.coords, plane.values, {}, {}), tmp_path / "x.npz")
    assert lla.save(plane, str(path).encode()) == path
    assert lla.load(path).recipe["rule"] == plane.recipe["rule"]


def test_a_direction_that_is_chosen_twice_comes_back(tmp_path):
    axes = lla.directions.random(jax.random.key(7), params(), 1)[[0, 0, 0]]
    same(lla.load(lla.save(axes, tmp_path / "axes"), like=params()).tree, axes.tree)


def test_nonfinite_cells_survive(plane, tmp_path):
    values = {"loss": np.array([[np.nan, np.inf, -np.inf, 1.0]] * 3)}
    broken = lla.Landscape(plane.coords, values, {}, plane.recipe)
    same(lla.load(lla.save(broken, tmp_path / "x.npz")).values, values)


def test_random_directions_are_stored_as_a_recipe_and_drawn_again(tmp_path):
    big = {"Dense_0": {"kernel": np.ones((300, 300), np.float32)}}
    axes = lla.directions.normalize(lla.directions.random(jax.random.key(7), big), big, by="layer")
    path = lla.save(axes, tmp_path / "axes.npz")
    assert path.stat().st_size < 5000
    same(lla.load(path, like=big).tree, axes.tree)
    with pytest.raises(ValueError, match="like: None given, but"):
        lla.load(path)
    with pytest.raises(ValueError, match="fingerprint"):
        lla.load(path, like={"Dense_0": {"kernel": 2 + big["Dense_0"]["kernel"]}})


def test_directions_that_were_transformed_are_stored_as_arrays(tmp_path):
    axes = lla.directions.random(jax.random.key(7), params())
    doubled = jax.tree.map(lambda x: 2 * x, axes)
    same(lla.load(lla.save(doubled, tmp_path / "doubled.npz"), like=params()).tree, doubled.tree)
    identity = jax.jit(lambda d: d)
    other = lla.directions.random(jax.random.key(8), params())
    assert identity(axes).recipe["key"] == axes.recipe["key"]
    assert identity(other).recipe["key"] == other.recipe["key"]


def test_a_changed_generator_is_detected(tmp_path):
    axes = lla.directions.random(jax.random.key(7), params())
    recipe = axes.recipe | {"fingerprint": (1.01 * np.array(axes.recipe["fingerprint"])).tolist()}
    path = lla.save(lla.Directions(axes.tree, type(axes.recipe)(recipe)), tmp_path / "axes.npz")
    with pytest.raises(ValueError, match="generator changed"):
        lla.load(path, like=params())


def test_other_directions_are_stored_as_arrays(tmp_path):
    tree = {"a": {"kernel": jnp.ones((2, 3), jnp.bfloat16)}, "b": np.arange(3.0, dtype=np.float32)}
    path = lla.save(lla.directions.given(tree, names=["mine"]), tmp_path / "given.npz")
    for again in (lla.load(path), lla.load(path, like=tree)):
        assert again.tree["a"]["kernel"].dtype == jnp.bfloat16
        same(again.tree, jax.tree.map(lambda x: x[None], tree))
        assert again.recipe["names"] == ["mine"]
    with pytest.raises(ValueError, match="has another structure than"):
        lla.load(path, like={"other": np.zeros(3)})


# -- bad files ---------------------------------------------------------------------------------------------------------


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("pwned",))


def header_file(path, arrays=(), **changes):
    header = {"format": "lla_jax", "version": 1, "type": "Landscape"} | changes
    np.savez(path, header=np.array(json.dumps(header)), **dict(arrays))


def test_broken_foreign_and_newer_files_are_refused(plane, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = lla.save(plane, "whole.npz").read_bytes()
    with pytest.raises(FileNotFoundError, match=r"nothing.npz does not exist"):
        lla.load("nothing.npz")
    for name, content in (("half", whole[: len(whole) // 2]), ("empty", b""), ("text", b"hello, world")):
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a readable lla_jax result"):
            lla.load(path)
    np.savez("foreign.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="another program"):
        lla.load("foreign.npz")
    header_file("other.npz", format="other")
    with pytest.raises(ValueError, match="not written by lla_jax"):
        lla.load("other.npz")
    header_file("newer.npz", version=2)
    with pytest.raises(ValueError, match="update lla_jax"):
        lla.load("newer.npz")
    header_file("kind.npz", type="Hologram")
    with pytest.raises(ValueError, match="Hologram"):
        lla.load("kind.npz")


def test_a_flipped_byte_is_noticed(plane, tmp_path):
    path = lla.save(plane, tmp_path / "plane.npz")
    raw = bytearray(path.read_bytes())
    at = raw.find(np.asarray(plane.values["loss"]).tobytes()[:16])
    raw[at] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="corrupt"):
        lla.load(path)


def test_no_pickle_is_ever_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("hostile.npz", header=np.array(Payload(), dtype=object))
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(Payload()))
    for name in ("hostile.npz", "bare.npz"):
        with pytest.raises(ValueError, match="not a readable lla_jax result"):
            lla.load(name)
    assert not (tmp_path / "pwned").exists()


def test_what_cannot_be_saved_leaves_the_old_file(plane, tmp_path):
    path = lla.save(plane, tmp_path / "plane.npz")
    before = path.read_bytes()
    bad = lla.Landscape(plane.coords, plane.values, plane.stderr, {"function": print})
    with pytest.raises(ValueError, match="not JSON"):
        lla.save(bad, path)
    with pytest.raises(ValueError, match="x: dict given; it must be one of Landscape, Directions"):
        lla.save({}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["plane.npz"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        lla.save(plane, tmp_path / "file" / "plane.npz")


# -- eigenpairs and spectra --------------------------------------------------------------------------------------------


def pairs(dtype="float32", **changes):
    rng = np.random.default_rng(3)
    tree = {
        "a": {"kernel": jnp.asarray(rng.normal(size=(3, 2, 4)), dtype)},
        "b": (jnp.asarray(rng.normal(size=3), dtype),),
    }
    vectors = lla.Directions(tree, {"kind": "eigenpairs", "dtype": dtype})
    parts = {"values": np.array([3.0, np.pi, -1e-300]), "vectors": vectors, "residuals": np.array([1e-3, 0.0, np.nan])}
    parts |= {"products": 57, "recipe": {"which": "magnitude", "tol": 1e-3, "converged": [True, False]}}
    state = {"basis": jnp.asarray(rng.normal(size=(4, 9)), dtype), "step": np.array(7), "done": np.array([True, False])}
    return lla.Eigenpairs(**parts | {"state": state} | changes)


def spectrum(**changes):
    rng = np.random.default_rng(4)
    nodes, weights = np.sort(rng.normal(size=(3, 5))), rng.dirichlet(np.ones(5), 3)
    parts = {"nodes": nodes, "weights": weights, "recipe": {"steps": 5, "probes": 3}, "state": None}
    return lla.Spectrum(**parts | changes)


def bits(x):
    return [(np.asarray(leaf).dtype, np.shape(leaf), np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(x)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_eigenpairs_come_back_bit_for_bit(dtype, tmp_path):
    with jax.enable_x64(dtype == "float64"):
        before = pairs(dtype)
        assert before.vectors.tree["b"][0].dtype == dtype
    path = lla.save(before, tmp_path / "pairs.npz")
    after = lla.load(path, like={"a": {"kernel": np.zeros((2, 4))}, "b": (np.zeros(()),)})
    assert isinstance(after, lla.Eigenpairs)
    assert jax.tree.structure(after.vectors.tree) == jax.tree.structure(before.vectors.tree)
    for name in ("values", "residuals", "state"):
        assert bits(getattr(after, name)) == bits(getattr(before, name))
    assert bits(after.vectors.tree) == bits(before.vectors.tree)
    assert list(after.state) == list(before.state)
    assert (after.products, after.recipe, after.vectors.recipe) == (57, before.recipe, before.vectors.recipe)
    loose = lla.load(path)
    assert bits(loose.vectors.tree["a"]["kernel"]) == bits(before.vectors.tree["a"]["kernel"])
    assert set(loose.vectors.tree["b"]) == {"0"}
    with pytest.raises(ValueError, match="has another structure than"):
        lla.load(path, like={"other": np.zeros(3)})


def test_eigenpairs_without_vectors_or_state_and_of_a_single_array(tmp_path):
    bare = lla.load(lla.save(pairs(vectors=None, state=None, products=np.int64(3)), tmp_path / "bare"))
    assert (bare.vectors, bare.state, bare.products) == (None, None, 3)
    single = lla.Directions(np.eye(3), {"kind": "eigenpairs"})
    path = lla.save(pairs(vectors=single), tmp_path / "single")
    for again in (lla.load(path), lla.load(path, like=np.zeros(3))):
        np.testing.assert_array_equal(again.vectors.tree, np.eye(3))


def test_a_spectrum_comes_back_bit_for_bit(tmp_path):
    for state in (None, {"probe": np.array(2), "alpha": np.arange(6.0, dtype="float32").reshape(2, 3)}):
        before = spectrum(state=state)
        after = lla.load(lla.save(before, tmp_path / "spectrum.npz"))
        assert isinstance(after, lla.Spectrum)
        assert bits((after.nodes, after.weights, after.state)) == bits((before.nodes, before.weights, before.state))
        assert after.recipe == before.recipe
        assert (after.state is None) == (state is None)


def test_eigenvectors_as_axes_are_stored_as_arrays(tmp_path):
    basis = np.eye(6, dtype="float32")
    vectors = lla.Directions({"w": basis.reshape(6, 2, 3)}, {"kind": "eigenpairs"})
    found = lla.Eigenpairs(np.arange(6.0, 0, -1), vectors, np.zeros(6), 9, {})
    axes = lla.directions.eigenvectors(found, (0, -1))
    again = lla.load(lla.save(axes, tmp_path / "axes.npz"))
    assert bits(again.tree) == bits(axes.tree)
    assert again.recipe == axes.recipe


def spoilt(path, drop=(), header=None, **arrays):
    """The file with other contents."""
    with np.load(path) as file:
        kept = {name: file[name] for name in file.files if name not in drop}
    said = json.loads(str(kept["header"])) | (header or {})
    new = path.with_name("spoilt.npz")
    np.savez(new, **kept | {"header": np.array(json.dumps(said))} | arrays)
    return new


KERNEL = [["a/kernel", "float32"], ["b/0", "float32"]]
PAIRS_SPOILT = {
    "no values": {"drop": ["values"]},
    "no leaf": {"drop": ["leaf1"]},
    "no state": {"drop": ["state2"]},
    "an array too many": {"extra": np.zeros(3)},
    "other counts": {"residuals": np.zeros(2)},
    "a matrix of values": {"values": np.zeros((3, 1)), "residuals": np.zeros((3, 1))},
    "too few vectors": {"leaf0": np.zeros((2, 2, 4), "f4"), "leaf1": np.zeros(2, "f4")},
    "uneven vectors": {"leaf1": np.zeros(2, "f4")},
    "scalar leaf": {"leaf1": np.float32(0)},
    "text": {"values": np.array(["1", "2", "3"])},
    "half the leaves": {"header": {"directions": {"recipe": {}, "leaves": KERNEL[:1]}}},
    "leaves without a recipe": {"header": {"directions": {"leaves": KERNEL}}},
    "leaves are text": {"header": {"directions": {"recipe": {}, "leaves": "kernel"}}},
    "another dtype": {"header": {"directions": {"recipe": {}, "leaves": [["a/kernel", "int8"], KERNEL[1]]}}},
    "objects from bytes": {"header": {"directions": {"recipe": {}, "leaves": [["a/kernel", "object"], KERNEL[1]]}}},
    "states unnamed": {"header": {"state": 3}},
    "states without end": {"header": {"state": [["step", "int64"]] * 10**5}},
    "no recipe": {"header": {"recipe": None}},
    "products": {"header": {"products": "many"}},
    "version": {"header": {"version": "one"}},
    "type": {"header": {"type": ["Eigenpairs"]}},
    "another type": {"header": {"type": "Spectrum"}},
}


@pytest.mark.parametrize("case", PAIRS_SPOILT)
def test_eigenpairs_that_contradict_themselves_are_refused(case, tmp_path):
    path = spoilt(lla.save(pairs(), tmp_path / "pairs.npz"), **PAIRS_SPOILT[case])
    with pytest.raises(ValueError, match=r"path: .*(not a readable lla_jax result|does not know)"):
        lla.load(path)


def test_spectra_that_contradict_themselves_are_refused(tmp_path):
    path = lla.save(spectrum(), tmp_path / "spectrum.npz")
    for changes in (
        {"drop": ["weights"]},
        {"weights": np.zeros((3, 4))},
        {"nodes": np.zeros(5), "weights": np.zeros(5)},
        {"header": {"type": "Landscape"}},
        {"header": {"state": [["alpha", "float64"]]}},
        {"header": {"recipe": [1]}},
    ):
        with pytest.raises(ValueError, match="not a readable lla_jax result"):
            lla.load(spoilt(path, **changes))
    with np.load(path) as file:
        np.savez_compressed(tmp_path / "bomb.npz", **{n: file[n] for n in file.files}, state0=np.zeros(10**6))
    with pytest.raises(ValueError, match="compressed"):
        lla.load(tmp_path / "bomb.npz")


def test_no_damage_makes_another_kind_of_error(tmp_path):
    """Truncated anywhere, or with a byte changed: the right result (a byte that says nothing) or a ValueError."""
    path = lla.save(pairs(), tmp_path / "pairs.npz")
    whole, before = path.read_bytes(), bits(pairs().vectors.tree)
    rng, refused = np.random.default_rng(0), 0
    for trial in range(150):
        broken = bytearray(whole)
        if trial % 3:
            broken[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        else:
            del broken[rng.integers(len(whole)) :]
        path.write_bytes(broken)
        message = ""
        try:
            assert bits(lla.load(path).vectors.tree) == before
        except ValueError as error:
            message, refused = str(error), refused + 1
        assert not message or message.startswith("path: ")
    assert refused > 75


def test_an_estimate_comes_back(tmp_path):
    number = lla.Estimate(1.0 / 3, np.float64(0.1), 16, {"kind": "trace", "products": 32})
    assert lla.load(lla.save(number, tmp_path / "trace.npz")) == number
    params = {"a": {"w": np.ones((2, 3), np.float32)}, "b": np.ones(2, np.float32)}
    mean = {"a": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": None}  # of a selection
    sem = jax.tree.map(lambda x: x / 10, mean)
    path = lla.save(lla.Estimate(mean, sem, 50, {"norm": 1.0, "norm_sem": 0.1}), tmp_path / "diagonal.npz")
    assert bits(lla.load(path).mean) == bits({"a": mean["a"]})
    back = lla.load(path, like=params)
    assert jax.tree.structure(back.mean) == jax.tree.structure(mean)
    assert bits(back.sem) == bits(sem)
    with pytest.raises(ValueError, match="estimate"):
        lla.load(path, like={"a": {"w": np.ones((3, 3), np.float32)}})
    for changes in ({"mean0": np.zeros(2)}, {"sem0": np.zeros((2, 3), complex)}, {"header": {"num": "many"}}):
        with pytest.raises(ValueError, match="not a readable lla_jax result"):
            lla.load(spoilt(path, **changes))


def test_files_of_the_first_release_are_still_read(tmp_path):
    landscape = {"dims": 1, "values": ["loss"], "stderr": [], "recipe": {"rule": "add"}}
    axes = {"recipe": {"kind": "given"}, "leaves": [["a/kernel", "bfloat16"], ["b", "float32"]]}
    arrays = {"leaf0": np.ones((2, 3), jnp.bfloat16), "leaf1": np.ones(2, "f4")}
    header_file(tmp_path / "line.npz", {"coord0": np.arange(3.0), "value0": np.ones(3)}, **landscape)
    header_file(tmp_path / "axes.npz", arrays, type="Directions", **axes)
    assert lla.load(tmp_path / "line.npz").values["loss"].tolist() == [1, 1, 1]
    assert bits(lla.load(tmp_path / "axes.npz").tree) == [bits(arrays["leaf0"])[0], bits(arrays["leaf1"])[0]]


def test_landscapes_that_contradict_themselves_are_refused(plane, tmp_path):
    path = lla.save(plane, tmp_path / "plane.npz")
    for changes in (
        {"drop": ["coord1"]},
        {"value0": np.zeros((4, 3))},
        {"header": {"dims": 1}},
        {"header": {"dims": 10**12}},
        {"header": {"values": []}},
    ):
        with pytest.raises(ValueError, match="not a readable lla_jax result"):
            lla.load(spoilt(path, **changes))


def test_results_that_could_not_be_read_again_are_not_saved(tmp_path):
    objects = np.array([None], object)
    for bad, message in (
        (pairs(residuals=np.zeros(2)), r"shapes \[\(3,\), \(2,\)\]"),
        (pairs(vectors=lla.Directions({"w": np.eye(4)}, {})), "3 values and 4 vectors"),
        (pairs(state={"basis": objects}), "only pickle could"),
        (spectrum(recipe={"f": print}), "not JSON"),
        (lla.Directions({"a": {"b": np.eye(2)}, "a/b": np.eye(2)}, {"kind": "given"}), "the same path"),
    ):
        with pytest.raises(ValueError, match=message):
            lla.save(bad, tmp_path / "bad.npz")
    assert not os.listdir(tmp_path)
    names = lla.Directions({"a": np.eye(2), "a/b": np.eye(2)}, {"kind": "given"})
    path = lla.save(names, tmp_path / "names.npz")
    assert set(lla.load(path, like={"a": np.zeros(2), "a/b": np.zeros(2)}).tree) == {"a", "a/b"}
    with pytest.raises(ValueError, match="like: None given, but"):
        lla.load(path)


def test_an_interrupted_run_continues_from_its_file_to_the_same_bits(tmp_path):
    """Science truth 17, through a file: nothing of the state is lost."""
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(40, 40)))[0]
    matrix = ((rotation * np.r_[np.linspace(-1, 1, 36), 5, 7, 7.01, 30]) @ rotation.T).astype("f4")
    like = {"w": np.zeros((8, 5), "f4")}
    H = lla.operators.given(lambda v, A: {"w": (A @ v["w"].reshape(-1)).reshape(8, 5)}, like, (matrix + matrix.T) / 2)
    calls = {
        "eigenpairs": lambda **options: lla.eigenpairs(H, jax.random.key(0), 3, tol=1e-4, **options),
        "spectrum": lambda **options: lla.spectrum(H, jax.random.key(0), steps=12, probes=3, **options),
    }
    for name, call in calls.items():
        kept = []

        def interrupt(done, total):
            if done >= 14:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            call(progress=interrupt, on_partial=kept.append)
        path = lla.save(kept[-1], tmp_path / name)
        again = lla.load(path, like=like)
        assert again.state
        assert bits(again.state) == bits(kept[-1].state)
        whole, continued = call(), call(resume=again)
        fields = ("values", "residuals") if name == "eigenpairs" else ("nodes", "weights")
        for field in fields:
            assert bits(getattr(continued, field)) == bits(getattr(whole, field))
        if name == "eigenpairs":
            assert bits(continued.vectors.tree) == bits(whole.vectors.tree)
            assert continued.products == whole.products


def test_an_estimate_whose_errors_are_wider_than_its_means(tmp_path):
    estimate = lla.Estimate({"w": np.ones(3, np.float32)}, {"w": np.ones(3)}, 4, {})
    assert lla.load(lla.save(estimate, tmp_path / "diagonal.npz")) == estimate


def test_a_refined_landscape_keeps_which_points_were_evaluated(plane, tmp_path):
    mask = np.zeros(plane.shape, bool)
    mask[::2] = True
    path = lla.save(lla.Landscape(plane.coords, plane.values, plane.stderr, plane.recipe, mask), tmp_path / "x.npz")
    np.testing.assert_array_equal(lla.load(path).evaluated, mask)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name != "evaluated"}
    np.savez(path, **arrays)  # interpolated values must not pass for evaluated ones
    with pytest.raises(ValueError, match="not a readable lla_jax result"):
        lla.load(path)
    assert lla.load(lla.save(plane, path)).evaluated is None
