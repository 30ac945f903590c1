"""Eigenvectors, Adam's moments, differences of checkpoints, and the gradient."""

from __future__ import annotations

import json

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lla_jax as lla
from lla_jax import directions
from lla_jax.core.results import Eigenpairs
from lla_jax.core.types import Directions, Loss
from tests.directions.cases import KEY, equal, flat, params_of, rows, tree_like
from tests.helpers import FIXED


def pairs_of(matrix, indices, dtype=np.float32, **changes):
    """Exact eigenpairs of a symmetric (6, 6) matrix on ``{"a": (2, 2), "b": (2,)}``."""
    values, columns = np.linalg.eigh(matrix)
    vectors = jnp.asarray(columns.T[indices], dtype)
    tree = {"a": vectors[:, :4].reshape(-1, 2, 2), "b": vectors[:, 4:]}
    parts = {"values": values[indices], "vectors": Directions(tree, {"kind": "eigenpairs"}), "products": 6}
    return Eigenpairs(**parts | {"residuals": 1e-3 * np.arange(len(indices)), "recipe": {}} | changes)


class TestEigenvectors:
    def setup_method(self):
        # a known spectrum, not in the order of the pairs
        rotation = np.linalg.qr(np.random.default_rng(5).normal(size=(6, 6)))[0]
        self.matrix = (rotation * [-2.5, -1, 0, 0.5, 3, 12.25]) @ rotation.T
        self.order = [5, 4, 0, 1]

    def test_chosen_vectors_with_their_names(self):
        pairs = pairs_of(self.matrix, self.order)
        axes = directions.eigenvectors(pairs)
        equal(axes, pairs.vectors[:2])
        assert axes.recipe["names"] == ["eigenvector 1 (lambda = 12.2)", "eigenvector 2 (lambda = 3)"]
        ends = directions.eigenvectors(pairs, (np.int64(0), -2))
        equal(ends, pairs.vectors[[0, 2]])
        assert ends.recipe["names"][1] == "eigenvector 3 (lambda = -2.5)"
        assert ends.recipe["indices"] == [0, 2]
        np.testing.assert_allclose(ends.recipe["values"], [12.25, -2.5])
        assert ends.recipe["residuals"] == [0, 2e-3]
        assert json.loads(json.dumps(ends.recipe)) == ends.recipe
        for vector in rows(ends):
            assert np.linalg.norm(vector) == pytest.approx(1, rel=1e-6)
        assert directions.eigenvectors(pairs, slice(2)).recipe["indices"] == [0, 1]
        one = directions.eigenvectors(pairs, 3)
        assert one.num == 1
        equal(one, pairs.vectors[3])

    def test_they_join_normalize_and_index_like_all_directions(self):
        pairs = pairs_of(self.matrix, self.order)
        params = {"a": np.ones((2, 2), "f4"), "b": np.ones(2, "f4")}
        axes = directions.eigenvectors(pairs, (0, 2))
        assert axes[1].recipe["names"] == ["eigenvector 3 (lambda = -2.5)"]
        joined = directions.join(axes, directions.random(KEY, params, 1))
        assert joined.recipe["names"][0::2] == ["eigenvector 1 (lambda = 12.2)", "random"]
        scaled = directions.normalize(axes, params, "model")
        np.testing.assert_allclose([np.linalg.norm(row) for row in rows(scaled)], np.sqrt(6), rtol=1e-6)
        assert scaled.recipe["names"] == axes.recipe["names"]

    def test_the_plane_of_a_quadratic_is_its_eigenvalues(self):
        """Science truth 1, in float64: L0 + (lambda_1 a^2 + lambda_2 b^2) / 2 to 1e-12."""
        with jax.enable_x64(True):
            pairs = pairs_of(self.matrix, self.order, np.float64)
            params = {"a": np.zeros((2, 2)), "b": np.zeros(2)}

            def loss(p, batch):
                w = jnp.concatenate([p["a"].reshape(-1), p["b"]])
                return 0.75 + w @ batch[0].mean(0) @ w / 2

            axes = directions.eigenvectors(pairs, (0, -2))
            assert axes.tree["a"].dtype == np.float64
            plane = lla.evaluate(loss, params, (self.matrix[None],), axes, lla.grid(points=(5, 3)), execution=FIXED)
        a, b = np.meshgrid(*plane.coords, indexing="ij")
        expected = 0.75 + (12.25 * a**2 - 2.5 * b**2) / 2
        np.testing.assert_allclose(plane.values["loss"], expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize(
        ("which", "message"),
        [
            ((0, 4), r"which: \(0, 4\) given; it must be indices of the 4 pair.*0 to 3 or -1 to -4 .*for more pairs"),
            ((-5,), r"which: \(-5,\) given"),
            ((1, -3), r"which: \(1, -3\) given; .*each once"),
            ((), r"which: \(\) given"),
            ("01", r"which: '01' given"),
            ((0.0, 1), r"which: \(0.0, 1\) given"),
            ((True, False), r"which: \(True, False\) given"),
            (None, r"which: None given"),
        ],
    )
    def test_indices_that_do_not_exist(self, which, message):
        with pytest.raises(ValueError, match=message):
            directions.eigenvectors(pairs_of(self.matrix, self.order), which)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"vectors": None}, "pairs: has 4 values and no vectors"),
            ({"vectors": Directions({"a": 2 * np.eye(4)}, {})}, r"norms \[2.0, 2.0\]; every norm must be 1"),
            ({"vectors": Directions({"a": np.full((4, 2), np.nan)}, {})}, "NaN or infinite"),
            ({"recipe": {"operator": {"kind": "hessian", "preconditioned": {"eps": 0}}}}, "preconditioned operator"),
            ({"values": np.zeros(0)}, "holds no pair"),
        ],
    )
    def test_pairs_without_use(self, changes, message):
        with pytest.raises(ValueError, match=message):
            directions.eigenvectors(pairs_of(self.matrix, self.order, **changes))

    def test_something_else(self):
        with pytest.raises(ValueError, match=r"pairs: tuple given; it must be Eigenpairs, as lla.eigenpairs"):
            directions.eigenvectors((np.ones(2), np.eye(2)))


def after_one_step(tx, params, grads):
    return jax.jit(lambda p, g: tx.update(g, tx.init(p), p)[1])(params, grads)


def kernels(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


def labels(params):
    return jax.tree.map(lambda x: "matrices" if x.ndim > 1 else "others", params)


class TestAdamMoments:
    def setup_method(self):
        self.params = params_of()
        self.grads = tree_like(self.params, 5)

    def expect(self, axes, b2=0.999, masked=False):
        assert axes.recipe["kind"] == "adam_moments"
        assert axes.recipe["names"] == ["m", "v"]

        def check(leaf, g):
            g = np.zeros_like(g) if masked and g.ndim == 1 else g
            np.testing.assert_allclose(leaf, np.stack([0.1 * g, (1 - b2) * g**2]), rtol=1e-4)

        jax.tree.map(check, axes.tree, self.grads)

    @pytest.mark.parametrize(
        ("tx", "masked"),
        [
            (optax.adam(1e-3), False),
            (optax.chain(optax.identity(), optax.adamw(optax.constant_schedule(1e-3))), False),
            (optax.masked(optax.adam(1e-3), kernels), True),
            (optax.inject_hyperparams(optax.adam)(learning_rate=1e-3), False),
            (optax.partition({"matrices": optax.adam(1e-3), "others": optax.adamw(1e-2)}, labels), False),
            (optax.partition({"matrices": optax.adam(1e-3), "others": optax.sgd(1e-2)}, labels), True),
            (optax.MultiSteps(optax.adam(1e-3), 1).gradient_transformation(), False),
            (optax.amsgrad(1e-3), False),
        ],
        ids=["adam", "chain", "masked", "inject", "partition", "partition-sgd", "multisteps", "amsgrad"],
    )
    def test_out_of_any_state(self, tx, masked):
        state = after_one_step(tx, self.params, self.grads)
        self.expect(directions.adam_moments(state, self.params), masked=masked)

    def test_nnx_optimizer(self):
        model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
        params = nnx.state(model, nnx.Param)
        optimizer.update(model, jax.tree.map(lambda x: np.full(x.shape, 2, np.float32), params))
        for state in (optimizer, optimizer.opt_state):
            axes = directions.adam_moments(state, params)
            assert jax.tree.structure(axes.tree) == jax.tree.structure(params)
            np.testing.assert_allclose(axes.tree["kernel"].get_value()[0], np.full((2, 3), 0.2), rtol=1e-6)

    def test_a_state_that_was_restored_without_its_classes(self):
        params = {"w": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32)}
        _, state = optax.adam(0.1).update(params, optax.adam(0.1).init(params))
        expected = directions.adam_moments(state, params).tree
        as_dicts = flax.serialization.to_state_dict({"opt_state": state, "params": params})
        for restored in (as_dicts, [state[0]._asdict(), None]):
            jax.tree.map(np.testing.assert_array_equal, directions.adam_moments(restored, params).tree, expected)

    def test_mixed_precision_moments(self):
        params = {"w": np.ones(3, np.float32)}
        state = after_one_step(optax.adam(1e-3, mu_dtype=jnp.bfloat16), params, {"w": np.ones(3, np.float32)})
        assert directions.adam_moments(state, params).tree["w"].dtype == np.float32

    def test_refusals(self):
        params = {"w": np.ones(3, np.float32)}
        with pytest.raises(ValueError, match="its states are: TraceState, EmptyState"):
            directions.adam_moments(optax.sgd(0.1, momentum=0.9).init(params), params)
        twice = optax.chain(optax.adam(1e-3), optax.scale_by_adam())
        with pytest.raises(ValueError, match="several Adam states with mu for 'w'"):
            directions.adam_moments(twice.init(params), params)
        with pytest.raises(ValueError, match="taken no step"):
            directions.adam_moments(optax.adam(1e-3).init(params), params)
        state = after_one_step(optax.adam(1e-3), params, params)
        with pytest.raises(ValueError, match=r"opt_state: its mu has leaves \['w'\] that params lack"):
            directions.adam_moments(state, {"v": np.ones(3, np.float32)})
        with pytest.raises(ValueError, match=r"mu\['w'\] has shape \(3,\)"):
            directions.adam_moments(state, {"w": np.ones(4, np.float32)})


class TestBetween:
    def setup_method(self):
        self.a, self.b, self.c, self.d = (tree_like(params_of(), seed) for seed in range(4))

    def check_marks(self, axes, checkpoints):
        assert [name for name, _ in axes.recipe["marks"]] == ["A", "B", "C", "D"][: len(checkpoints)]
        for (_, coords), checkpoint in zip(axes.recipe["marks"], checkpoints):
            point = flat(self.a) + sum(x * row for x, row in zip(coords, rows(axes), strict=True))
            np.testing.assert_allclose(point, flat(checkpoint), atol=1e-5)

    @pytest.mark.parametrize("orthogonal", [False, True])
    def test_line_plane_volume(self, orthogonal):
        for checkpoints in ((self.a, self.b), (self.a, self.b, self.c), (self.a, self.b, self.c, self.d)):
            axes = directions.between(*checkpoints, orthogonal=orthogonal)
            assert axes.num == len(checkpoints) - 1 == len(axes.recipe["names"])
            json.dumps(axes.recipe)
            self.check_marks(axes, checkpoints)
        np.testing.assert_allclose(rows(axes)[0], flat(self.b) - flat(self.a), atol=1e-6)
        if orthogonal:
            gram = np.array([[x @ y for y in rows(axes)] for x in rows(axes)])
            np.testing.assert_allclose(gram / gram[0, 0], np.eye(3), atol=1e-6)

    def test_half_precision_checkpoints_are_met(self):
        a, b = ({"w": np.asarray(x, jnp.bfloat16)} for x in ([1.0, 256.0], [1.0078125, -0.00390625]))
        axes = directions.between(a, b)
        assert axes.tree["w"].dtype == np.float32
        np.testing.assert_array_equal(np.asarray(a["w"], "f4") + axes.tree["w"][0], np.asarray(b["w"], "f4"))

    def test_refusals(self):
        with pytest.raises(ValueError, match="C equals A"):
            directions.between(self.a, self.b, self.a)
        middle = jax.tree.map(lambda x, y: (x + y) / 2, self.a, self.b)
        with pytest.raises(ValueError, match="C lies on the line"):
            directions.between(self.a, self.b, middle, orthogonal=True)
        with pytest.raises(ValueError, match="B lacks"):
            directions.between(self.a, {"conv": self.a["conv"]})
        with pytest.raises(ValueError, match=r"B\['w'\] has 1 NaN"):
            directions.between({"w": np.ones(1)}, {"w": np.full(1, np.nan)})


def test_gradient():
    x = np.random.default_rng(0).normal(size=(7, 3)).astype("f4")
    params = {"w": np.array([1, 2, 3], "f4")}
    loss = Loss(apply=lambda p, state, batch, train: (batch @ p["w"], state), criterion=lambda out, batch: 0.5 * out**2)
    axes = directions.gradient(loss, params, x, batch_size=3)
    assert axes.num == 1
    assert axes.recipe["kind"] == "gradient"
    np.testing.assert_allclose(axes.tree["w"][0], x.T @ (x @ params["w"]) / 7, rtol=1e-5)
    with pytest.raises(ValueError, match="stationary point"):
        directions.gradient(loss, {"w": np.zeros(3, "f4")}, x)
