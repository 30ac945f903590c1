"""Provides the embedded default problem: a small convolutional network on handwritten digits, trained in seconds.

The data are in the package (``digits.npz``; source and licence in ``digits.md``): a first picture needs no download.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import resources
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

from lla_jax import models
from lla_jax.core.arguments import check_integer
from lla_jax.core.interrupts import prompt_interrupts
from lla_jax.core.signatures import explained
from lla_jax.core.types import Problem
from lla_jax.execution.progress import AskedProgress, takes_progress

Arrays = tuple[np.ndarray, np.ndarray]
NUM_TEST = 360
BATCH = 64


class CNN(nn.Module):
    """Two convolutions with BatchNorm and a linear layer; 3,866 parameters for 8 x 8 images and 10 classes."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Class scores ``(B, 10)`` of images ``(B, 8, 8, 1)``."""
        x = nn.Conv(8, (3, 3))(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Conv(16, (3, 3), strides=2)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


class Trained(NamedTuple):
    """A trained network, its checkpoints and its data.

    Args:
      module: the flax module.
      variables: ``{"params": ..., "batch_stats": ...}`` at the end of training.
      opt_state: the optax state at the end of training, with Adam's moments.
      initial: the variables at initialization.
      checkpoints: the parameters at initialization and halfway through training.
      train: images ``(1437, 8, 8, 1)`` in [0, 1] and labels ``(1437,)``.
      test: images ``(360, 8, 8, 1)`` and labels ``(360,)``.
      states: ``{"batch_stats": ...}`` of each of the checkpoints.
    """

    module: CNN
    variables: dict[str, Any]
    opt_state: Any
    initial: dict[str, Any]
    checkpoints: tuple[Any, ...]
    train: Arrays
    test: Arrays
    states: tuple[Any, ...] = ()


@explained
def load_digits(seed: int = 0) -> tuple[Arrays, Arrays]:
    """Load the 1,797 handwritten digits, shuffled and split into training and test data.

    Args:
      seed: for the shuffle.

    Returns:
      ``(train, test)``, each ``(images, labels)``: images ``(N, 8, 8, 1)`` float32 in [0, 1], labels ``(N,)`` int32;
      N = 1437 for training and 360 for testing.

    References:
      Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
    """
    source = resources.files(__name__) / "digits.npz"
    with source.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        images = arrays["images"][..., None].astype(np.float32) / 16
        labels = arrays["labels"].astype(np.int32)
    order = np.random.default_rng(seed).permutation(len(labels))
    test, train = order[:NUM_TEST], order[NUM_TEST:]
    return (images[train], labels[train]), (images[test], labels[test])


def cross_entropy(outputs: jax.Array, batch: Any) -> jax.Array:
    """The cross-entropy of each example, (B,), in nats, from scores ``(B, 10)`` and a batch ``(images, labels)``."""
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1])


def accuracy(outputs: jax.Array, batch: Any) -> jax.Array:
    """For each example 1 if its largest score is at the label, else 0: ``(B,)``, from scores ``(B, 10)``."""
    return (outputs.argmax(-1) == batch[1]).astype(outputs.dtype)


def shift(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The images ``(N, H, W, 1)``, moved along each axis by -1, 0 or 1 pixel with probability 1/2; zeros move in."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = np.where(rng.random((2, len(images))) < 0.5, rng.integers(0, 3, (2, len(images))), 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded[..., 0], images.shape[1:3], axis=(1, 2))
    return windows[np.arange(len(images)), rows, columns][..., None]


def _optimizer(total: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(1e-2, total))


@jax.jit
def _start(key: jax.Array) -> tuple[Any, Any]:
    variables = CNN().init(key, np.zeros((1, 8, 8, 1), np.float32))
    return variables, _optimizer(1).init(variables["params"])


def _state_of(variables: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in variables.items() if name != "params"}


# One compiled step called from the host: a convolution inside scan leaves XLA's fast path on CPU.
@functools.partial(jax.jit, static_argnames="total")
def _step(variables: Any, opt_state: Any, batch: Any, *, total: int) -> tuple[Any, Any]:
    def loss(params: Any) -> tuple[jax.Array, Any]:
        moving = {**variables, "params": params}
        outputs, updated = CNN().apply(moving, batch[0], train=True, mutable=["batch_stats"])
        return cross_entropy(outputs, batch).mean(), updated

    grads, updated = jax.grad(loss, has_aux=True)(variables["params"])
    updates, opt_state = _optimizer(total).update(grads, opt_state)
    return {"params": optax.apply_updates(variables["params"], updates), **updated}, opt_state


@takes_progress("steps")
@prompt_interrupts()
@explained
def train(
    seed: int = 0,
    *,
    epochs: int = 24,
    split: int | None = None,
    track: Callable[..., Any] | None = None,
    progress: AskedProgress = None,
) -> Trained:
    """Train the network with Adam and a cosine schedule on batches of 64 images, moved by up to one pixel at random.

    Args:
      seed: for the split, the initial weights, the shifts and the order of the batches.
      epochs: passes over the training data, at least 1; 24 reach a test accuracy of 97 % or more, 2 suffice for a test.
      split: seed of the split into training and test data, such as 0 for several networks on one; default ``seed``.
      track: called as ``track(params, step, state=state)`` before the first step, as step 0, and after every step, such
        as ``lla.paths.record("runs/traj", every=11)``.
      progress: True for a bar, or a function called as ``progress(done_steps, total_steps)``.

    Returns:
      The trained network.

    Raises:
      ValueError: if ``epochs`` is less than 1.
    """
    check_integer("epochs", epochs, remedy="such as 24")
    train_data, test_data = load_digits(seed if split is None else split)
    images, labels = train_data
    steps = len(labels) // BATCH
    total = epochs * steps
    track = track or (lambda params, step, state: None)
    variables, opt_state = _start(jax.random.key(seed))
    initial, history = variables, [variables]
    track(variables["params"], 0, state=_state_of(variables))
    rng = np.random.default_rng([seed, 1])
    for epoch in range(epochs):
        if epoch == epochs // 2:
            history.append(variables)
        moved = shift(images, rng)
        for i, rows in enumerate(rng.permutation(len(labels))[: steps * BATCH].reshape(steps, BATCH)):
            variables, opt_state = _step(variables, opt_state, (moved[rows], labels[rows]), total=total)
            track(variables["params"], epoch * steps + i + 1, state=_state_of(variables))
            if progress is not None:
                progress(epoch * steps + i + 1, total)
    checkpoints = tuple(each["params"] for each in history)
    states = tuple(map(_state_of, history))
    return Trained(CNN(), variables, opt_state, initial, checkpoints, train_data, test_data, states)


@takes_progress("steps")
@explained
def problem(seed: int = 0, *, epochs: int = 24, progress: AskedProgress = None) -> Problem:
    """Train the network and return it as a ``Problem``: ``lla-jax landscape --problem lla_jax.demo:problem``.

    Args:
      seed: for the split, the initial weights, the shifts and the order of the batches.
      epochs: passes over the training data; 2 are enough for a quick test.
      progress: True for a bar, or a function called as ``progress(done_steps, total_steps)`` while training.

    Returns:
      A ``Problem`` of loss (cross-entropy), parameters, training data, optimizer state, the metric "accuracy", the test
      data as ``extra_data["test"]``, and as checkpoints the parameters at initialization and halfway through training,
      with their states.
    """
    return make_problem(train(seed, epochs=epochs, progress=progress))


@explained
def make_problem(trained: Trained) -> Problem:
    """The ``Problem`` of a network that is trained already, with the same entries as that of ``problem``."""
    return Problem(
        loss=models.from_linen(trained.module, trained.variables, cross_entropy),
        params=trained.variables["params"],
        data=trained.train,
        opt_state=trained.opt_state,
        metrics={"accuracy": accuracy},
        extra_data={"test": trained.test},
        checkpoints=trained.checkpoints,
        states=trained.states,
    )
