"""Describes and checks a task, the values to compute at the points of a grid, for ``evaluate`` and ``sweep``."""

from __future__ import annotations

import contextlib
from typing import Any, Literal, NamedTuple, get_args

import jax

from lla_jax.core import data as _data
from lla_jax.core import losses
from lla_jax.core.arguments import Misuse, check_choice, check_functions, renamed, single_key
from lla_jax.core.data import Stream
from lla_jax.core.static import static
from lla_jax.core.types import Execution, Loss
from lla_jax.landscape.kernels import Formula
from lla_jax.landscape.rules import Rule

Policy = Literal["frozen", "batch", "reestimate"]
POLICIES: tuple[str, ...] = get_args(Policy)


class Task(NamedTuple):
    """The values to compute at every point of a grid, around any centre and along any axes.

    The fields are arguments of ``evaluate``, first as the user gave them (except ``rule``). ``check`` returns a task
    whose fields have the forms described here.

    Args:
      loss: a ``Loss``.
      data: one data set, of jax or numpy arrays, or a ``Stream``.
      rule: a checked update rule.
      batch_size: examples per batch, or None.
      batch_stats: the policy of normalization statistics.
      metrics: ((name, function), ...).
      point_metrics: ((name, function), ...).
      extra_data: {name: data}, each as ``data``.
      key: a ``jax.random`` key for ``point_metrics``, or None.
      execution: chunks, blocks and devices.
    """

    loss: Any
    data: Any
    rule: Rule
    batch_size: int | None
    batch_stats: str
    metrics: Any
    point_metrics: Any
    extra_data: Any
    key: Any
    execution: Execution

    @property
    def sets(self) -> dict[str, Any]:
        """All data sets, by the prefix of the names of their values: "" for the main one, "NAME_" for further ones."""
        return {"": self.data} | {f"{name}_": data for name, data in self.extra_data.items()}

    @property
    def names(self) -> list[str]:
        """The names of all values: losses and metrics of every data set, then point metrics."""
        metrics = [name for name, _ in self.metrics]
        names = [prefix + name for prefix in self.sets for name in ("loss", *metrics)]
        return names + [name for name, _ in self.point_metrics]

    @property
    def formula(self) -> Formula:
        """The part of the task for which programs are compiled."""
        return Formula(self.rule.function, self.batch_stats == "batch", self.metrics, self.execution.precision)

    @property
    def couples_examples(self) -> bool:
        """Whether the loss of an example depends on the others of its batch; batches are then not cut into blocks."""
        return self.batch_stats == "batch" or not self.loss.per_example


def check(task: Task) -> Task:
    """Check the arguments of a task, and return the task with every field in the form that ``Task`` describes.

    Raises:
      ValueError: arguments that do not fit together, naming the argument.
    """
    if task.batch_size is not None:
        task = task._replace(batch_size=_data.check_batch_size(task.batch_size))
    metrics, point_metrics = check_metrics(task.metrics, task.point_metrics, task.loss)
    check_policy(task.batch_stats, task.loss)
    if task.key is not None:
        single_key(task.key)
    task = task._replace(
        loss=losses.as_loss(task.loss),
        metrics=metrics,
        point_metrics=point_metrics,
        extra_data=_data.check_extra(task.extra_data),
    )
    arrays: dict[str, Any] = {}
    for prefix, data in task.sets.items():
        with named(prefix):
            arrays[prefix] = _arrays(data)
            _data.check_uncut(arrays[prefix], task.batch_size)
    task = task._replace(data=arrays.pop(""), extra_data={prefix[:-1]: data for prefix, data in arrays.items()})
    check_names(task.names)
    return task


def named(prefix: str) -> contextlib.AbstractContextManager[None]:
    """Name the entry of ``extra_data`` in errors about data that are raised here; "" is the prefix of ``data``."""
    return renamed("data", f"extra_data[{prefix[:-1]!r}]" if prefix else "data")


def _arrays(data: Any) -> Any:
    return data if isinstance(data, Stream) else _data.as_arrays(data)


def check_policy(batch_stats: str, loss: Any) -> None:
    """Raise a ValueError unless the policy of normalization statistics is known, and the loss can follow it."""
    check_choice("batch_stats", batch_stats, POLICIES)
    if batch_stats == "frozen":
        return
    if not isinstance(loss, Loss):
        raise Misuse(
            "batch_stats",
            f"{batch_stats!r} given; it must be 'frozen' for a plain function, which hides the normalization layers. "
            "Use lla.from_linen, from_nnx, from_equinox or lla.Loss(apply, criterion, state=...)",
        )
    if batch_stats == "reestimate" and not jax.tree.leaves(loss.state):
        raise Misuse("batch_stats", "'reestimate' given, but the loss has no state to re-estimate; use 'frozen'")


def check_metrics(metrics: Any, point_metrics: Any, loss: Any) -> tuple[tuple, tuple]:
    """Check the metrics and point metrics, and return both as ((name, static function), ...).

    Raises:
      ValueError: no dict of functions by name, a name that may not be used, or metrics of a plain function.
    """
    metrics, point_metrics = check_functions("metrics", metrics), check_functions("point_metrics", point_metrics)
    if both := set(metrics) & set(point_metrics):
        raise Misuse("point_metrics", f"{sorted(both)} are names of metrics already; rename them")
    if metrics and not isinstance(loss, Loss):
        raise Misuse(
            "metrics", "need the outputs of the model, which a plain function hides; use lla.Loss(apply, criterion)"
        )
    one, two = (tuple((k, static(f)) for k, f in functions.items()) for functions in (metrics, point_metrics))
    return one, two


def check_names(names: list[str]) -> None:
    """Raise a ValueError if two values have the same name, such as a metric "test_loss" with a data set "test"."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Misuse(
            "metrics",
            f"{twice} would name two values each, since the name of a data set is put before those of its values; "
            "rename a metric or an entry of extra_data",
        )
