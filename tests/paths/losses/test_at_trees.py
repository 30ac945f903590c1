"""The loss at the trees of a path is that of each tree alone, under its own state, for every kind of loss and data."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.paths.losses import at_trees
from lla_jax.paths.losses.at_trees import losses_at
from tests.helpers import (
    FIXED,
    accuracy,
    apply,
    compilations,
    cross_entropy,
    dataset,
    mlp_loss,
    params,
    reference_losses,
)

DATA, TREES = dataset(), [params(seed) for seed in range(5)]


def scaled(p, state, batch, train):
    """The network with its outputs divided by a running average, in train mode by their own size, plus a constant."""
    outputs, _ = apply(p, None, batch, train)
    spread = abs(outputs).mean()
    new = {"scale": 0.9 * state["scale"] + 0.1 * spread, "kept": state["kept"], "steps": state["steps"] + 1}
    return outputs / (spread if train else state["scale"]) + state["kept"], new


def state_of(seed):
    return {"scale": np.float32(1 + seed), "kept": np.float32([seed, 0, 0]), "steps": np.int32(seed)}


STATES = [state_of(seed) for seed in range(5)]
SCALED = lla.Loss(scaled, cross_entropy, state=STATES[0])


@pytest.mark.parametrize("group", [2, 5])
def test_each_tree_has_its_own_loss_and_standard_error_on_every_data_set(group, monkeypatch):
    monkeypatch.setattr(at_trees, "GROUP_TREES", group)
    extra = {"test": dataset(9, 3)}
    seen = []
    means = losses_at(
        mlp_loss(), TREES, DATA, metrics={"acc": accuracy}, extra_data=extra, execution=FIXED,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    for prefix, data in {"": DATA, "test_": extra["test"]}.items():
        each = np.stack([reference_losses(tree, data) for tree in TREES])
        np.testing.assert_allclose(means.values[prefix + "loss"], each.mean(1), rtol=2e-6)
        error = each.std(1, ddof=1) / np.sqrt(each.shape[1])
        np.testing.assert_allclose(means.stderr[prefix + "loss"], error, rtol=2e-6)
    assert set(means.values) == {"loss", "acc", "test_loss", "test_acc"}
    assert seen[-1] == (5, 5)


def test_all_groups_and_all_paths_of_one_length_share_one_program(monkeypatch):
    monkeypatch.setattr(at_trees, "GROUP_TREES", 2)
    first = losses_at(mlp_loss(), TREES, DATA, execution=FIXED)
    with compilations() as seen:
        again = losses_at(mlp_loss(), TREES[::-1], DATA, execution=FIXED)
    assert seen.count == 0
    np.testing.assert_array_equal(again.values["loss"], first.values["loss"][::-1])


def test_the_network_gets_the_numbers_of_a_tree_to_the_bit():
    odd = [{"w": np.array([-0.0, 1e-30, x, 1 / 3], np.float32)} for x in (1.0, 3e38, -2.0)]

    def bits(p, batch):
        return jax.lax.bitcast_convert_type(p["w"], np.int32)[batch].astype(np.float32).sum()

    for place in range(4):
        seen = losses_at(bits, odd, np.array([place]), execution=FIXED).values["loss"]
        np.testing.assert_array_equal(seen, [np.float32(tree["w"].view(np.int32)[place]) for tree in odd])


@pytest.mark.parametrize("policy", ["frozen", "reestimate"])
def test_each_tree_has_its_own_state_and_what_is_no_average_stays_its_own(policy):
    means = losses_at(SCALED, TREES, DATA, states=STATES, batch_stats=policy, execution=FIXED)
    for i, (tree, state) in enumerate(zip(TREES, STATES, strict=True)):
        scale = abs(apply(tree, None, DATA, False)[0]).mean() if policy == "reestimate" else state["scale"]
        alone = lla.Loss(scaled, cross_entropy, state=state | {"scale": np.float32(scale)})
        outputs, _ = alone.apply(tree, alone.state, DATA, False)
        assert means.values["loss"][i] == pytest.approx(float(cross_entropy(outputs, DATA).mean()), rel=2e-6)


def test_a_stream_gives_what_the_data_in_memory_give():
    stream = lla.stream([tuple(x[lo : lo + 9] for x in DATA) for lo in range(0, 23, 9)])
    streamed, held = (losses_at(SCALED, TREES, data, states=STATES, execution=FIXED) for data in (stream, DATA))
    for name in ("values", "stderr"):
        np.testing.assert_allclose(getattr(streamed, name)["loss"], getattr(held, name)["loss"], rtol=2e-6)


BAD = jax.tree.map(np.copy, TREES[2])
BAD["gain"] = np.float32(np.nan)
REFUSED = {
    "none": ({"trees": []}, "no trees"),
    "a tree": ({"trees": TREES[0]}, "trees: .*list of parameter trees"),
    "NaN": ({"trees": [*TREES[:2], BAD]}, r"trees\[2\]\['gain'\] has 1 NaN"),
    "another structure": ({"trees": [TREES[0], {"w": np.zeros(3)}]}, r"trees\[1\]: has another structure"),
    "another type": ({"trees": [TREES[0], params(1, "float16")]}, r"trees\[1\]: .*dtype float16"),
    "no states": ({"loss": SCALED}, "states: none given.*running averages"),
    "few states": ({"loss": SCALED, "states": STATES[:2]}, "states: 2 given for 5 trees"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    changed, text = REFUSED[case]
    arguments = {"loss": mlp_loss(), "trees": TREES} | changed
    options = {name: arguments.pop(name) for name in ("states",) if name in arguments}
    with pytest.raises(ValueError, match=text):
        losses_at(arguments["loss"], arguments["trees"], DATA, execution=FIXED, **options)
