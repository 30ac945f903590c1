"""What vectors take: as many at a time as have room, said beforehand; what is compiled to know it serves later."""

from __future__ import annotations

import logging
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core import memory
from lla_jax.curvature import estimates, lanczos, linear_operator, probe, room
from lla_jax.execution import devices
from tests import helpers
from tests.curvature.cases import quiet, symmetric
from tests.helpers import ONE, vector_operator

KEY = jax.random.key(0)
N = 30
EIGENVALUES = np.linspace(1.0, 3.0, 24)
VERBS = {
    "hutchinson": lambda H: lla.trace(H, KEY, method="hutchinson", rtol=0, max_products=20),
    "hutch++": lambda H: lla.trace(H, KEY, method="hutch++", rtol=0, max_products=36),
    "xtrace": lambda H: lla.trace(H, KEY, rtol=0, max_products=24),
    "frobenius_norm": lambda H: lla.frobenius_norm(H, KEY, rtol=0, max_products=20),
    "diagonal": lambda H: lla.diagonal(H, KEY, rtol=0, max_products=20),
}
HELD = {"hutchinson": 3, "hutch++": 12, "xtrace": 12, "frobenius_norm": 3, "diagonal": 5}  # one at a time, of a matrix


@pytest.mark.parametrize("name", VERBS)
def test_one_at_a_time_gives_what_eight_do(monkeypatch, name):
    H = vector_operator(symmetric())
    with quiet():
        at_once = VERBS[name](H)
        monkeypatch.setattr(room, "LITTLE", 0)  # all vectors are large
        monkeypatch.setattr(devices, "free_bytes", lambda device: 4 * N * 4 * 12)
        made, real = [], linear_operator.Operator.products
        monkeypatch.setattr(linear_operator.Operator, "products", lambda H, z: made.append(len(z)) or real(H, z))
        one = VERBS[name](H)
    assert set(made) == {1}
    assert (one.num, one.recipe["products"]) == (at_once.num, at_once.recipe["products"])
    np.testing.assert_allclose(one.mean, at_once.mean, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(one.sem, at_once.sem, rtol=2e-3, atol=2e-3)
    assert one.recipe["memory"]["vectors"] == HELD[name]


def test_a_recipe_says_what_is_held(monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="lla_jax")
    monkeypatch.setattr(room, "LITTLE", 0)
    monkeypatch.setattr(room, "DRAWS_KEEP", 0)
    monkeypatch.setattr(room, "SKETCHES_KEEP", 0)
    H = lla.hessian(helpers.mlp_loss(), helpers.params(), helpers.dataset(), execution=ONE)
    vector, work = H.space.nbytes, room.products_bytes(H)
    with quiet():
        said = {name: verb(H).recipe["memory"] for name, verb in VERBS.items()}
    draw = 6 * vector  # of a short vector, which is drawn at once
    assert said["hutchinson"] == {"vectors": 2, "bytes": max(2 * vector + work, draw)}
    assert said["frobenius_norm"] == said["hutchinson"]
    assert said["diagonal"] == {"vectors": 4, "bytes": max(4 * vector + work, draw)}
    assert said["xtrace"] == {"vectors": 12, "bytes": (12 + 2 * 8 + 2) * vector + work}
    assert "trace: 1 draw at a time: 2 vectors" in caplog.text
    assert "xtrace: a basis that grows by 8 vectors, to 12 to begin with: 12 vectors" in caplog.text


def test_what_a_product_takes_is_read_from_the_program_that_multiplies():
    def loss(params, batch):
        return jnp.sum(jnp.tanh(batch @ params) ** 2)

    data = np.ones((3, 7), np.float32)
    H, other = (lla.hessian(loss, np.full((7, 13), x, np.float32), data, execution=ONE) for x in (0.1, 0.2))
    for num in (1, 8):
        with helpers.compilations() as seen:
            room.products_bytes(H, num)
        assert seen.count == 1
        z = H.place(jnp.ones((num, 7, 13)))
        with helpers.compilations() as seen:
            jax.block_until_ready(H.products(z))
            room.products_bytes(other, num)
        assert seen.count == 0


def test_on_an_accelerator_as_many_as_have_room(monkeypatch):
    H = vector_operator(symmetric())
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(room, "products_bytes", lambda H, num=1: 0)
    found = {}
    for vectors in (100, 16, 15, 3, 1):  # in an eighth of the free memory
        monkeypatch.setattr(devices, "free_bytes", lambda device, v=vectors: 8 * v * N * 4)
        found[vectors] = room.probes_at_once(H, 8), room.rows_at_once(H, 8)
    assert found == {100: (8, 8), 16: (8, 4), 15: (4, 2), 3: (1, 1), 1: (1, 1)}


def test_what_does_not_fit_one_at_a_time_is_refused(monkeypatch):
    monkeypatch.setattr(devices, "free_bytes", lambda device: 2 * N * 4)
    for name in ("hutchinson", "frobenius_norm", "diagonal"):
        with pytest.raises(
            ValueError, match=r"H: .* takes .* at least, one vector at a time, and .* are free; it must"
        ):
            VERBS[name](vector_operator(symmetric()))


def test_layers_take_fewer_steps_where_there_is_no_room(monkeypatch, caplog):
    problem = helpers.mlp_loss(), helpers.params(), helpers.dataset()
    nbytes = lla.hessian(*problem, execution=ONE).space.nbytes
    rows = lla.per_layer(*problem, KEY, steps=9, rtol=9.0, execution=ONE)
    said = rows[0].trace.recipe["memory"]
    assert said["vectors"] == max(2 * 8, 9 + 1)
    assert said["bytes"] > 16 * nbytes
    monkeypatch.setattr(room, "LITTLE", 0)
    monkeypatch.setattr(lanczos, "step_bytes", lambda H, rows: 3 * nbytes)
    monkeypatch.setattr(devices, "free_bytes", lambda device: 10 * nbytes)
    few = lla.per_layer(*problem, KEY, steps=9, rtol=9.0, execution=ONE)
    assert all(row.products <= 5 for row in few)
    assert "per_layer: 5 steps in place of 9" in caplog.text
    for one, other in zip(few, rows, strict=True):
        assert one.trace.mean == pytest.approx(other.trace.mean, rel=1e-4)


def test_a_form_of_the_probe_takes_one_vector_and_no_more():
    leaf = jax.ShapeDtypeStruct((100_000,), jnp.float32)
    for like in (leaf, {"a": leaf, "b": leaf}):
        space = lla.operators.given(lambda v: v, like).space
        program = probe._form.lower(space, like, jnp.float32(1), np.uint32(1)).compile()
        assert program.memory_analysis().temp_size_in_bytes < 1.01 * space.nbytes


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the resident set")
def test_forms_of_one_long_draw_take_no_vectors():
    z, y = jnp.ones((1, 2_000_000)), jnp.full((1, 2_000_000), 2.0)
    np.testing.assert_allclose(estimates._forms(z, y), [[4e6, np.sqrt(8e6)]], rtol=1e-6)  # compiled
    before = _status("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    jax.block_until_ready(estimates._forms(z, y))
    assert _status("VmHWM") - before < z.nbytes / 1024


def _status(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


@pytest.mark.parametrize(("size", "given_back"), [(10, 0), (memory.KEPT // 4 + 1, 2)])
def test_large_products_give_back_what_the_allocator_keeps(monkeypatch, size, given_back):
    calls = []
    monkeypatch.setattr(memory, "give_back", lambda: calls.append(None))
    H = lla.operators.given(lambda v: v, jax.ShapeDtypeStruct((size,), jnp.float32))
    v = jnp.ones(size)
    H.product(v), H.products(v[None])
    assert len(calls) == given_back


# --- Lanczos


def test_what_is_compiled_to_know_its_memory_is_not_compiled_again():
    H = vector_operator(helpers.symmetric_matrix(EIGENVALUES))
    v = H.random(KEY)
    assert room.product_bytes(H) >= 4 * len(EIGENVALUES)
    with helpers.compilations() as seen:
        H.product(v)
    assert seen.count == 0


def test_bytes_are_those_of_bases_and_the_largest_work():
    H, vector = vector_operator(helpers.symmetric_matrix(EIGENVALUES)), 4 * len(EIGENVALUES)
    fixed = room.bases_bytes(H, 0, 0)
    assert room.bases_bytes(H, 5, 3 * vector, group=2) == 13 * vector + fixed
    assert room.bases_bytes(H, 5, 3 * vector, grown_from=4) == 9 * vector + fixed
    assert room.bases_bytes(H, 5, 3 * vector, kept=7) == 13 * vector + fixed


@pytest.mark.parametrize("scheme", ["full", "lla"])
def test_large_vectors_go_step_by_step_and_give_the_same(scheme, monkeypatch):
    H = vector_operator(helpers.symmetric_matrix(EIGENVALUES))
    small = lla.spectrum(H, KEY, steps=14, probes=2, scheme=scheme)
    assert not room.goes_one_by_one(H)
    monkeypatch.setattr(room, "LITTLE", 0)
    assert room.goes_one_by_one(H)
    large = lla.spectrum(H, KEY, steps=14, probes=2, scheme=scheme)
    np.testing.assert_allclose(large.nodes.mean(1), small.nodes.mean(1), rtol=0.02)
    np.testing.assert_allclose((large.nodes * large.weights).sum(1), (small.nodes * small.weights).sum(1), rtol=1e-4)
    assert large.recipe["memory"]["vectors"] * 2 == small.recipe["memory"]["vectors"]


def test_a_search_begins_with_the_rows_that_fit_and_restarts_where_no_more_do(monkeypatch):
    H = vector_operator(helpers.symmetric_matrix(EIGENVALUES), traceable=False)
    monkeypatch.setattr(devices, "free_bytes", lambda device: 4 * len(EIGENVALUES) * 13)
    pairs = lla.eigenpairs(H, KEY, 2, tol=1e-3, max_vectors=20)
    assert pairs.recipe["converged"]
    assert pairs.recipe["memory"]["vectors"] == 10
    assert pairs.recipe["restarts"] > 0
    np.testing.assert_allclose(pairs.values, [3.0, EIGENVALUES[-2]], rtol=1e-4)
    with pytest.raises(ValueError, match=r"k: 7 given, .* GiB of memory, .* it must be at most 6: take fewer"):
        lla.eigenpairs(H, KEY, 7)
