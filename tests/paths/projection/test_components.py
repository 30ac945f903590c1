"""Principal components of paths are those of the checkpoints around their mean, and rounding is no direction."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.paths import trajectories
from lla_jax.paths.projection import blocks
from lla_jax.paths.projection.components import random_walk
from tests.helpers import FIXED, dataset, mlp_loss, params

RNG = np.random.default_rng(0)
CENTRE, ALONG, ASIDE = RNG.standard_normal((3, 60)) @ np.eye(60)
ASIDE = ASIDE - ALONG * (ASIDE @ ALONG) / (ALONG @ ALONG)


def trees(rows, dtype=None):
    """Parameters with the entries of each row, in two leaves."""
    rows = np.asarray(rows, dtype)
    return [{"w": row[:-10].reshape(-1, 5), "b": row[-10:]} for row in rows]


def flat(tree):
    return np.concatenate([np.asarray(tree["w"], np.float64).ravel(), np.asarray(tree["b"], np.float64)])


def curved(num=25, dtype=np.float32):
    """A path in a plane of 60 dimensions, with a third component in the middle."""
    t = np.linspace(0, 1, num)[:, None]
    third = RNG.standard_normal(60) * np.exp(-30 * (t - 0.4) ** 2)
    return (CENTRE + 3 * t * ALONG + np.sin(4 * t) * ASIDE + 0.2 * third).astype(dtype)


def parts(rows):
    """(shares, components) of rows around their mean, by the singular values of all of them."""
    rows = np.asarray(rows, np.float64)
    _, s, vectors = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    return s**2 / (s**2).sum(), vectors


def test_a_random_walk_has_its_shares_beside_those_that_are_expected():
    walk = np.cumsum(np.random.default_rng(1).standard_normal((200, 20_000), np.float32), 0)
    axes, _ = lla.paths.pca(trees(walk))
    found, expected = (axes.recipe[name] for name in ("explained_variance", "random_walk"))
    np.testing.assert_allclose(found[:3], [0.607, 0.153, 0.067], atol=0.01)
    np.testing.assert_allclose(expected[:3], [0.608, 0.152, 0.0676], atol=5e-4)
    assert len(found) == len(expected) == 199
    assert sum(found) == pytest.approx(1, abs=1e-12)
    assert sum(expected) == pytest.approx(1, abs=1e-12)
    assert axes.recipe["names"] == ["PC 1: 61 %", "PC 2: 15 %"]


def test_the_shares_of_a_random_walk_are_eigenvalues_of_its_centred_products():
    time = np.arange(30)
    mean = np.eye(30) - 1 / 30
    values = np.linalg.eigvalsh(mean @ np.minimum(time[:, None], time) @ mean)[:0:-1]
    np.testing.assert_allclose(random_walk(30), values / values.sum(), rtol=1e-9)
    k = np.arange(1, 6)
    np.testing.assert_allclose(random_walk(100_000)[:5], 6 / (np.pi * k) ** 2, rtol=1e-4)
    rows = np.zeros((30, 60))  # two walks in dimensions of their own, with one step each
    rows[:12, :12], rows[12:, 12:30] = np.tri(12, k=-1), np.tri(18, k=-1)
    np.testing.assert_allclose(random_walk(12, 18), parts(rows)[0][:-1], atol=1e-12)


def test_components_are_those_of_all_singular_values_and_coordinates_belong_to_the_centre():
    rows = curved()
    shares, vectors = parts(rows)
    axes, coords = lla.paths.pca(trees(rows), num=3)
    np.testing.assert_allclose(axes.recipe["explained_variance"][:3], shares[:3], rtol=1e-5)
    assert axes.tree["w"].dtype == jnp.float32
    for i in range(3):
        found = flat(jax.tree.map(lambda x, i=i: x[i], axes.tree))
        assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)
        assert abs(found @ vectors[i]) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(coords[:, i], (rows.astype(np.float64) - rows[-1]) @ found, atol=1e-5)
        assert coords[:, i] @ (1 / np.arange(1, 26)) > coords[:, i].mean() * (1 / np.arange(1, 26)).sum()
    assert not coords[-1].any()


def test_the_point_through_which_the_plane_is_drawn_moves_coordinates_alone():
    path = trees(curved())
    axes, coords = lla.paths.pca(path)
    others, shifted = lla.paths.pca(path, params=path[0])
    assert axes.recipe["explained_variance"] == others.recipe["explained_variance"]
    np.testing.assert_array_equal(axes.tree["w"], others.tree["w"])
    np.testing.assert_allclose(coords - coords[0], shifted, atol=1e-6)
    assert not shifted[0].any()


def test_several_runs_share_components_and_a_centre():
    one, two = curved(), curved(15) + np.float32(0.1)
    runs = [lla.paths.given(trees(one)), lla.paths.given(trees(two))]
    axes, coords = lla.paths.pca(runs)
    shares, _ = parts(np.concatenate([one, two]))
    np.testing.assert_allclose(axes.recipe["explained_variance"][:3], shares[:3], rtol=1e-5)
    np.testing.assert_allclose(axes.recipe["random_walk"], random_walk(25, 15))
    assert [c.shape for c in coords] == [(25, 2), (15, 2)]
    assert not coords[0][-1].any()
    assert coords[1][-1].any()


def test_small_movements_of_large_weights_keep_their_digits():
    large, t = 1000 * RNG.standard_normal(4000), np.linspace(0, 1, 20)[:, None]
    moves = np.concatenate([t, 0.3 * np.sin(6 * t)], 1) @ np.linalg.qr(RNG.standard_normal((4000, 2)))[0].T
    rows = (large + 3 * moves).astype(np.float32)
    axes, _ = lla.paths.pca(trees(rows))
    shares, _ = parts(moves)
    np.testing.assert_allclose(axes.recipe["explained_variance"][:2], shares[:2], rtol=2e-3)
    assert axes.recipe["rank"] == 2
    assert not any(axes.recipe["explained_variance"][2:])  # which float32 makes
    assert 0 < axes.recipe["rounding"] < 1e-3


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize(
    ("steps", "dtype"),
    [*[("products", x) for x in (np.float32, np.float64, jnp.bfloat16)], ("sums", np.float32), ("sums", np.float64)],
)
def test_a_straight_line_has_no_plane_in_any_precision(scale, dtype, steps):
    start, step = (scale * CENTRE).astype(dtype), (0.1 * scale * ALONG).astype(dtype)
    if steps == "products":
        rows = [(start + np.asarray(t, dtype) * step).astype(dtype) for t in range(30)]
    else:
        rows = [start]
        for _ in range(29):
            rows.append((rows[-1] + step).astype(dtype))
    with pytest.raises(ValueError, match=r"^path: its 30 checkpoints have rank 1 .* num=2 given; pass num=1, or join"):
        lla.paths.pca(trees(rows))
    axes, _ = lla.paths.pca(trees(rows), num=1)
    assert axes.recipe["explained_variance"] == [1.0, *[0.0] * 28]
    assert axes.recipe["names"] == ["PC 1: 100 %"]


def test_many_small_components_that_rounding_cannot_make_together_are_kept():
    walk = np.cumsum(np.random.default_rng(1).standard_normal((100, 1000)), 0).astype(jnp.bfloat16)
    axes, _ = lla.paths.pca([{"w": row} for row in walk])
    np.testing.assert_allclose(axes.recipe["explained_variance"][:3], parts(walk)[0][:3], rtol=1e-3)
    assert axes.recipe["rounding"] < 1e-3


def test_a_component_that_rounding_may_add_up_to_is_warned_of():
    t = np.linspace(0, 1, 100)[:, None]
    centre, along, aside = RNG.standard_normal((3, 1000))
    size = 4 * np.finfo(np.float32).eps * np.linalg.norm(centre) / np.linalg.norm(aside)
    rows = (centre + t * along + size * np.cos(8 * np.pi * t) * aside).astype(np.float32)
    with pytest.warns(UserWarning, match=r"^path: component 2 has \S+ of the length of the first one, which rounding"):
        lla.paths.pca(trees(rows))


def test_a_straight_line_has_no_plane_in_a_recording_of_differences(tmp_path):
    track = lla.paths.record(tmp_path, every=1, differences="bfloat16")
    for t in range(12):
        track(trees([CENTRE + t * ALONG], np.float32)[0], t)
    path = lla.paths.load(tmp_path)
    with pytest.raises(ValueError, match=r"^path: its 12 checkpoints have rank 1"):
        lla.paths.pca(path)
    assert lla.paths.pca(path, num=1)[0].recipe["explained_variance"][0] == 1


def test_frozen_leaves_and_entries_have_no_rounding():
    head = curved() * np.float32(1e-4)
    rows = np.concatenate([np.tile(np.float32(1e6) * CENTRE.astype(np.float32), (25, 20)), head], axis=1)
    axes, _ = lla.paths.pca(trees(rows), num=3)
    np.testing.assert_allclose(axes.recipe["explained_variance"][:3], parts(head)[0][:3], rtol=1e-5)
    assert axes.recipe["rank"] == 3


def test_paths_of_low_rank_have_zeros():
    corners = CENTRE + np.array([[0, 0], [1, 0], [0, 1], [1, 1], [2, 1]]) @ np.stack([ALONG, ASIDE])
    axes, _ = lla.paths.pca(trees(corners), num=2)
    shares = axes.recipe["explained_variance"]
    assert (len(shares), axes.recipe["rank"]) == (4, 2)
    assert shares[2:] == [0, 0]
    assert sum(shares) == pytest.approx(1, abs=1e-12)
    with pytest.raises(ValueError, match=r"have rank 2 \(2 axes hold all of them, but for .*\), and num=3 given"):
        lla.paths.pca(trees(corners), num=3)
    axes, coords = lla.paths.pca(trees(corners[:2]), num=1)
    assert (axes.recipe["explained_variance"], axes.recipe["random_walk"]) == ([1.0], [1.0])
    np.testing.assert_allclose(coords[:, 0], [np.linalg.norm(ALONG), 0], rtol=1e-6)


def test_paths_without_components_are_refused():
    rows = curved(4)
    bad = trees(rows)
    bad[2]["b"] = bad[2]["b"].copy()
    bad[2]["b"][3] = np.nan
    other = [*trees(rows[:2]), {"w": np.zeros((3, 3), np.float32), "b": np.zeros(10, np.float32)}]
    for path, text in (
        (trees(rows[:1]), r"^path: has 1 checkpoint; at least 2"),
        (trees(rows[[0, 0, 0]]), r"^path: its 3 checkpoints are identical, which gives no direction"),
        (bad, r"^path\[2\]\['b'\] has 1 NaN or infinite entries of 10"),
        (other, r"^path\[2\]\['w'\] has shape \(3, 3\)"),
        ({"w": rows[0]}, r"^path: "),
    ):
        with pytest.raises(ValueError, match=text):
            lla.paths.pca(path)
    with pytest.raises(ValueError, match=r"^num: 0 given"):
        lla.paths.pca(trees(rows), num=0)
    with pytest.raises(ValueError, match=r"^params\['w'\] has shape"):
        lla.paths.pca(trees(rows), params=other[2])


def test_blocks_and_pieces_change_nothing_but_rounding(monkeypatch):
    path = trees(curved())
    axes, coords = lla.paths.pca(path)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4 * 240 + 1)
    monkeypatch.setattr(blocks, "PIECE", 1)
    monkeypatch.setattr(blocks, "LEAST_PIECE", 7)
    seen = []
    others, again = lla.paths.pca(path, progress=lambda done, total: seen.append((done, total)))
    np.testing.assert_allclose(again, coords, atol=1e-6)
    shares = [each.recipe["explained_variance"] for each in (axes, others)]
    np.testing.assert_allclose(*shares, atol=1e-12)
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize(("block", "reads"), [(2**28, 25), (13 * 240 + 1, 50)])
def test_each_checkpoint_is_read_once_or_twice_where_two_blocks_hold_all(monkeypatch, block, reads):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block)
    read = []
    checkpoints = [
        trajectories.Checkpoint(str(t), lambda t=t, tree=tree: read.append(t) or tree)
        for t, tree in enumerate(trees(curved()))
    ]
    path = replace(lla.paths.given(trees(curved())), checkpoints=tuple(checkpoints))
    lla.paths.pca(path)
    assert len(read) == reads + 2  # the last one is the centre, the middle one the origin of differences


def test_runs_of_one_checkpoint_have_components_and_no_walk():
    axes, coords = lla.paths.pca([lla.paths.given([tree]) for tree in trees(curved(4))])
    assert axes.recipe["rank"] == 3
    assert axes.recipe["random_walk"] == [0, 0, 0]
    assert [c.shape for c in coords] == [(1, 2)] * 4


def test_memory_does_not_grow_with_the_path(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2**20)
    monkeypatch.setattr(blocks, "PIECE", 2**16)

    def checkpoint(t):
        def read():
            return {"w": np.random.default_rng(t).standard_normal(100_000, np.float32)}

        return trajectories.Checkpoint(str(t), read)

    num = 24  # of 10 MB in all
    like = trajectories.shapes_of(checkpoint(0).params())
    checkpoints = tuple(map(checkpoint, range(num)))
    path = lla.paths.Trajectory(checkpoints, np.arange(num), np.full(num, np.nan), like, None, {})
    lla.paths.pca(path[:3])  # imports and compiles
    tracemalloc.start()
    axes, _ = lla.paths.pca(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert axes.recipe["rank"] == num - 1
    assert peak < 6e6


def test_axes_of_another_point_are_warned_of():
    path = [params(0), params(1), params(2)]
    axes, _ = lla.paths.pca(path)
    grid = lla.grid(extent=0.1, points=3)
    lla.evaluate(mlp_loss(), path[-1], dataset(), axes, grid, execution=FIXED)
    with pytest.warns(UserWarning, match=r"^directions: made for other parameters than params \(the plane of a path\)"):
        lla.evaluate(mlp_loss(), path[0], dataset(), axes, grid, execution=FIXED)
