"""What is to be computed at the points of a grid: what ``evaluate`` and ``sweep`` share, stated and checked once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax

from lla_jax.core import data as _data
from lla_jax.core import losses
from lla_jax.core.arguments import Misuse
from lla_jax.core.data import Stream
from lla_jax.core.static import static
from lla_jax.core.types import Execution, Loss
from lla_jax.landscape.kernels import Formula
from lla_jax.landscape.rules import Rule

Policy = Literal["frozen", "batch", "reestimate"]
POLICIES: tuple[str, ...] = get_args(Policy)


class Task(NamedTuple):
    """What is to be computed at every point of a grid, around any centre and along any axes.

    The arguments are those of ``evaluate``, as its caller gave them; ``check`` brings each into one form.

    Args:
      loss: a ``Loss``; of a plain function, ``check`` makes one.
      data: one data set, its arrays as jax takes them, or a ``Stream``.
      rule: a checked update rule.
      batch_size: examples per batch, or None.
      batch_stats: the policy of normalization statistics.
      metrics: ((name, function), ...); as given, {name: function} or None.
      point_metrics: the same of functions of the parameters.
      extra_data: {name: data}, or None as given.
      key: for ``point_metrics``.
      execution: how it is run.
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
        """All data by the prefix of their values' names, the first data set's being empty."""
        return {"": self.data} | {f"{name}_": data for name, data in self.extra_data.items()}

    @property
    def names(self) -> list[str]:
        """Names of the values."""
        metrics = [name for name, _ in self.metrics]
        of_data = [prefix + name for prefix in self.sets for name in ("loss", *metrics)]
        return of_data + [name for name, _ in self.point_metrics]

    @property
    def formula(self) -> Formula:
        """What a program is compiled for."""
        return Formula(self.rule.function, self.batch_stats == "batch", self.metrics)

    @property
    def whole(self) -> bool:
        """Whether losses depend on what a batch is, so that it is never cut or padded."""
        return self.batch_stats == "batch" or not self.loss.per_example


def check(task: Task) -> Task:
    """The task in one form.

    Raises:
      ValueError: arguments that do not fit together, naming the argument.
    """
    if task.batch_size is not None:
        _data.check_batch_size(task.batch_size)
    metrics, point_metrics = check_metrics(task.metrics, task.point_metrics, task.loss)
    check_policy(task.batch_stats, task.loss)
    task = task._replace(
        loss=losses.as_loss(task.loss),
        metrics=metrics,
        point_metrics=point_metrics,
        extra_data={name: _arrays(data) for name, data in _data.check_extra(task.extra_data).items()},
        data=_arrays(task.data),
    )
    check_names(task.names)
    return task


def _arrays(data: Any) -> Any:
    return data if isinstance(data, Stream) else _data.as_arrays(data)


def check_policy(batch_stats: str, loss: Any) -> None:
    """Raise unless the policy of normalization statistics is known, and the loss can follow it."""
    if batch_stats not in POLICIES:
        raise ValueError(f"batch_stats: {batch_stats!r} given; the rule is one of {', '.join(POLICIES)}")
    if batch_stats == "frozen":
        return
    if not isinstance(loss, Loss):
        raise Misuse(
            "batch_stats",
            f"{batch_stats!r} needs a model whose normalization layers are visible; a plain function has only "
            "'frozen'. Use lla.from_linen, from_nnx, from_equinox or lla.Loss(apply, criterion, state=...)",
        )
    if batch_stats == "reestimate" and not jax.tree.leaves(loss.state):
        raise Misuse("batch_stats", "'reestimate' given, but the loss has no state to re-estimate; use 'frozen'")


def check_metrics(metrics: Any, point_metrics: Any, loss: Any) -> tuple[tuple, tuple]:
    """Both kinds of metrics as ((name, static function), ...)."""
    for argument, functions in (("metrics", metrics), ("point_metrics", point_metrics)):
        if functions is not None and not isinstance(functions, Mapping):
            raise ValueError(f"{argument}: got {type(functions).__name__}; the rule is {{name: function}}")
    metrics, point_metrics = dict(metrics or {}), dict(point_metrics or {})
    for argument, functions in (("metrics", metrics), ("point_metrics", point_metrics)):
        for name, f in functions.items():
            if not isinstance(name, str) or not name or name == "loss" or not callable(f):
                raise ValueError(
                    f"{argument}: entry {name!r}: {f!r}; the rule is a name other than 'loss' and a function"
                )
    if both := set(metrics) & set(point_metrics):
        raise ValueError(f"point_metrics: {sorted(both)} are names of metrics already; rename them")
    if metrics and not isinstance(loss, Loss):
        raise ValueError(
            "metrics: need the model's outputs, which a plain function hides; use lla.Loss(apply, criterion)"
        )
    return tuple((k, static(f)) for k, f in metrics.items()), tuple((k, static(f)) for k, f in point_metrics.items())


def check_names(names: list[str]) -> None:
    """Raise if two values would have the same name, such as a metric "test_loss" beside a data set "test"."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"metrics: {twice} would name two values each; the rule is one value a name, and a data set's name is put "
            "before its values. Rename a metric or an entry of extra_data"
        )
