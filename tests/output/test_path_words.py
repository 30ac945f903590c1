"""What a path of training, and what lies between two solutions, is said to mean."""

from __future__ import annotations

import json

import numpy as np
import pytest

import lla_jax as lla
from lla_jax.output import path_words
from lla_jax.paths.bands.saddles import Saddle
from lla_jax.paths.losses.barriers import Barrier, Height
from lla_jax.paths.projection.components import random_walk
from lla_jax.paths.projection.projections import Projection


def axes(shares):
    recipe = {"explained_variance": list(shares), "random_walk": random_walk(len(shares) + 1).tolist(), "rank": 2}
    return lla.Directions({"w": np.eye(2, 3, dtype=np.float32)}, recipe)


def seen(num, losses=None):
    t = np.arange(num)
    values = {} if losses is None else {"loss": losses, "projected_loss": 2 * losses}
    errors = {name: x / 10 for name, x in values.items()}
    recipe = {"params": {"size": 3}, "state": None, "batch_stats": "frozen"}
    coords, names = np.stack([t, t**2], 1).astype(float), tuple(f"step {i}" for i in 5 * t)
    return Projection(coords, t / 4, 5 * t, names, np.full(num, np.nan), values, errors, {}, {}, recipe)


@pytest.mark.parametrize(
    ("shares", "says"),
    [
        (random_walk(40), "no more than a random walk has"),
        ([0.98, 0.01, *[0.01 / 37] * 37], "more than a random walk has"),
        ([0.7, 0.3], "3 checkpoints always lie on 2 axes, so the shares say nothing"),
    ],
)
def test_shares_stand_beside_those_of_a_random_walk(shares, says):
    text = "\n".join(path_words.describe_shares(axes(shares).recipe, 2))
    assert says in text
    assert f"random walk of {len(shares) + 1} checkpoints" in text


def test_a_path_is_a_table_of_both_losses_with_their_errors():
    losses = np.linspace(2, 1, 40)
    losses[7] = np.nan
    text = path_words.describe_path(axes(random_walk(40)), seen(40, losses))
    assert "Path of 40 checkpoints, steps 0 to 195, of 3 parameters, on 2 axes" in text
    assert "(25 of 40 checkpoints)" in text
    assert "not finite at 1 of 40 checkpoints" in text
    assert "Largest distance off the axes: 9.75 at step 195" in text
    first = next(line for line in text.splitlines() if line.split()[:1] == ["0"])
    assert first.split() == ["0", "2", "+-", "0.2", "4", "+-", "0.4", "0"]
    assert "loss of projection" not in path_words.describe_path(axes(random_walk(40)), seen(40))
    numbers = json.loads(json.dumps(path_words.plain_path(axes(random_walk(40)), seen(40, losses))))
    assert numbers["values"]["loss"][7] is None
    assert numbers["values"]["projected_loss"][0] == 4


def barrier(middle, error):
    height = max(middle - 1.0, 0.0)
    values, errors = {"loss": np.array([1.0, middle, 1.0])}, {"loss": np.full(3, error)}
    heights = {"loss": Height(height, error, 0.5, height, error, 0.5)}
    return Barrier(np.array([0, 0.5, 1]), values, errors, heights, {}, {"state": None, "batch_stats": "frozen"})


def curve(**options):
    points = {"w": np.array([[0.0, 0], [1, 1], [2, 0]], np.float32)}
    recipe = {"params": {"distance": 2.0}, "complete": True}
    return lla.paths.Curve(points=points, **({"kind": "bezier", "recipe": recipe} | options))


@pytest.mark.parametrize(
    ("middle", "error", "says"),
    [
        (
            0.9,
            0.1,
            "No point of the bezier exceeds the line between the losses of the ends; its highest loss is 1 times",
        ),
        (1.1, 0.1, "within two standard errors of none, 0.1 +- 0.1"),
        (3.0, 0.1, "The bezier keeps a barrier of 2 +- 0.1; its highest loss is 3 times that of the higher end"),
        (np.nan, 0.1, "Along the bezier the loss is not finite everywhere"),
    ],
)
def test_a_barrier_is_told_from_none_by_its_error(middle, error, says):
    text = path_words.describe_connection(curve(), {"line": barrier(5.0, 0.1), "bezier": barrier(middle, error)})
    assert says in text
    assert "straight 2" in text
    row = next(line for line in text.splitlines() if line.split()[:2] == ["loss", "line"])
    assert row.split()[-4:] == ["4", "+-", "0.1", "0.5"]


def test_a_saddle_and_a_training_that_stopped_are_told():
    recipe = {"params": {"distance": 2.0}, "complete": False, "stopped": 7}
    saddle = Saddle(0.4, {"w": np.zeros(2)}, 1.5, 1e-4, 1e-5, True, 1, np.array([-1.0, 2.0]))
    text = path_words.describe_connection(curve(kind="band", recipe=recipe, saddle=saddle), {"band": barrier(3.0, 0.1)})
    assert "the training stopped at step 7" in text
    assert "Saddle at t = 0.4: loss 1.5" in text
    assert "1 negative eigenvalue of the Hessian" in text
    numbers = json.loads(json.dumps(path_words.plain_connection(curve(saddle=saddle), {"band": barrier(np.nan, 1)})))
    assert numbers["saddle"]["converged"] is True
    assert numbers["barriers"]["band"]["values"]["loss"] == [1, None, 1]
