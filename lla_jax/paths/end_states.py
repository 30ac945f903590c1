"""The states of the loss at both ends of a curve, such as BatchNorm statistics: each end has its own."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse
from lla_jax.core.types import Loss, PyTree
from lla_jax.paths.host_trees import check_finite, has_floats, stack

REMEDY = "pass another state"


def states_of_ends(loss: Loss, state_b: PyTree) -> PyTree:
    """The states of both ends, a stacked tree with that of the loss first; None for a loss without state.

    Args:
      loss: a loss whose state is that of the first end.
      state_b: the state of the second one; None takes the first one's where that has no floats.

    Raises:
      ValueError: a second state that is missing, superfluous, of another structure or not finite.
    """
    if not jax.tree.leaves(loss.state):
        if jax.tree.leaves(state_b):
            raise Misuse("state_b", "given, and the loss has no state; leave it out, or give the loss that of a")
        return None
    if state_b is None and has_floats(loss.state):
        names = ", ".join(_tree.paths(loss.state)[:3])
        raise Misuse(
            "state_b",
            f"none given, and the loss has a state of floats ({names}, ..., such as BatchNorm's), which is that of a; "
            "pass the one that b was trained with: the state of b's own loss, loss_b.state, or of flax "
            "state_b={'batch_stats': variables_b['batch_stats']}",
        )
    return stack_states(loss.state, loss.state if state_b is None else state_b, ("loss.state", "state_b"))


def stack_states(state_a: PyTree, state_b: PyTree, names: tuple[str, str] = ("state_a", "state_b")) -> PyTree:
    """The states of both ends, stacked on the host; None where neither has leaves. ``names`` are those for errors.

    Raises:
      Misuse: one is missing, has another structure, or is not finite, by its name.
    """
    one, two = (jax.tree.leaves(state) for state in (state_a, state_b))
    if not one and not two:
        return None
    if not one or not two:
        name, other = names if not one else names[::-1]
        raise Misuse(name, f"none given, and {other} is; give both, each the state that its end was trained with")
    check_finite(state_a, names[0], REMEDY)
    return stack([state_a, align_state(state_b, state_a, *names[::-1])])


def align_state(state: PyTree, like: PyTree, name: str, like_name: str) -> PyTree:
    """A state in the structure of another one; it may be a dict of all variables, or a single collection.

    Args:
      state: the state.
      like: the other one.
      name, like_name: their names in errors.

    Raises:
      Misuse: it has another structure, or is not finite, by its name.
    """
    state = _tree.align(_unwrap(state, like), like, name, like_name)
    check_finite(state, name, REMEDY)
    return state


def _unwrap(state: PyTree, like: PyTree) -> PyTree:
    """The state in a dict of all variables, or that of a single collection, as flax has them; any other as it is."""
    if not isinstance(like, Mapping) or not isinstance(state, Mapping):
        return state
    if set(like) < set(state):
        return {name: state[name] for name in like}
    if len(like) == 1 and not set(like) & set(state):
        return dict.fromkeys(like, state)
    return state
