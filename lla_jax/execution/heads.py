"""Evaluates the head of a network with many classes in chunks of tokens, so that no array of all scores is ever held.

The head is found in the traced function, whatever wrote it: a large matrix product of hidden values with weights, and
all that follows until the axis of classes is reduced (a log-softmax and the choice of a label, a log-sum-exp, a
cross-entropy with one-hot labels), if it treats the tokens independently of each other (``tokens``). It is evaluated
for one chunk of tokens after another, and derivatives compute the scores of a chunk anew (``jax.checkpoint``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from lla_jax.core.jaxprs import JITS, bind, interpret
from lla_jax.core.types import PyTree
from lla_jax.execution import tokens as _tokens
from lla_jax.execution.tokens import NoRule, Other, Tokens

CHUNK_BYTES = {True: 2**23, False: 2**27}  # of the scores of a chunk: on a CPU, on other devices
LARGE = 4  # times the bytes of a chunk: smaller scores are computed at once
WEIGHTS_MOST = 1.0  # times the bytes of the scores: sums over chunks hold copies of the weights' size
SMALL = 8  # times smaller than the scores are values that may leave the head
SOFTMAX = "_softmax at "  # jax's, whose own derivative is that of its equations; other rules stay as they are
HERE = os.path.dirname(jax.__file__)


class Head(NamedTuple):
    """The head of a traced function, and how it is cut.

    Args:
      eqns: numbers of its equations.
      after: numbers of the equations that depend on its results.
      places: for each of its values, where the tokens lie.
      sliced: values from outside of which a chunk reads its tokens only, with their places.
      whole: values from outside that every chunk reads.
      outputs: its values that are read outside.
      num: number of tokens.
      size: tokens of a chunk.
      nbytes: bytes of all scores.
    """

    eqns: list[int]
    after: list[int]
    places: dict[Any, Tokens]
    sliced: list[tuple[Any, Tokens]]
    whole: list[Any]
    outputs: list[Any]
    num: int
    size: int
    nbytes: int


def flatten(f: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """(the jaxpr of ``f``, with the equations of jitted functions in place of their calls; the shape of its result)."""
    closed, shape = jax.make_jaxpr(f, return_shape=True)(*args)

    def rule(eqn: Any, values: list[Any]) -> Sequence[Any]:
        values = [_in_type(x, var) for x, var in zip(values, eqn.invars, strict=True)]
        if eqn.primitive.name == "custom_jvp_call" and _is_softmax(eqn):
            inner = eqn.params["call_jaxpr"]
            return interpret(inner, values, rule, JITS)
        return bind(eqn, values)

    flat = jax.make_jaxpr(lambda *values: interpret(closed, values, rule, JITS))(*closed.in_avals)
    return flat, shape


def _in_type(x: Any, var: Any) -> Any:
    """A constant of numpy in the type that jax gave it."""
    dtype = getattr(x, "dtype", None)
    if dtype is None or dtype == getattr(var.aval, "dtype", None) or isinstance(x, jax.core.Tracer):
        return x
    return jnp.asarray(np.asarray(x), var.aval.dtype)


def _is_softmax(eqn: Any) -> bool:
    """Whether a function with a derivative of its own is jax's softmax; a user's of this name may mean another one."""
    source = str(getattr(eqn.params["call_jaxpr"].jaxpr.debug_info, "func_src_info", ""))
    return source.startswith(SOFTMAX + HERE)


def in_chunks(f: Callable[..., Any], *args: PyTree, chunk_bytes: int) -> tuple[Callable[..., Any], list[Head]]:
    """(``f`` with its heads evaluated in chunks of tokens, the heads that are found); ``f`` itself if there is none.

    Values and derivatives are equal to rounding.

    Args:
      f: a traceable function.
      args: arguments of the shapes and dtypes with which the new function is called.
      chunk_bytes: bytes of the scores of one chunk.
    """
    heads: list[Head] = []
    while len(heads) < 8:
        flat, shape = flatten(f, *args)
        head = None if flat.effects else find(flat, chunk_bytes)
        if head is None:
            break
        heads.append(head)
        f = _evaluator(flat, shape, head)
    return f, heads


def _evaluator(flat: Any, shape: Any, head: Head) -> Callable[..., Any]:
    def g(*args: PyTree) -> Any:
        return jax.tree.unflatten(jax.tree.structure(shape), _evaluate(flat, jax.tree.leaves(args), head))

    return g


# --- finding


def find(flat: Any, chunk_bytes: int) -> Head | None:
    """The head that holds the largest scores, if these take ``LARGE`` times ``chunk_bytes`` at least."""
    eqns = flat.jaxpr.eqns
    dots = [
        i
        for i, eqn in enumerate(eqns)
        if eqn.primitive.name == "dot_general"
        and not any(eqn.params["dimension_numbers"][1])
        and _nbytes(eqn.outvars[0]) >= LARGE * chunk_bytes
    ]
    for first in sorted(dots, key=lambda i: (-_nbytes(eqns[i].outvars[0]), -i)):
        out = eqns[first].outvars[0].aval.shape
        for axis in sorted(range(len(out)), key=lambda j: -out[j]):
            head = _try(flat, first, axis, chunk_bytes)
            if head is not None:
                return head
    return None


def _nbytes(var: Any) -> int:
    return var.aval.size * var.aval.dtype.itemsize


def _try(flat: Any, first: int, axis: int, chunk_bytes: int) -> Head | None:
    """The head whose scores are the result of one product, with tokens along one of its axes."""
    eqn = flat.jaxpr.eqns[first]
    rows = eqn.outvars[0].aval.shape[axis]
    weights = next(v for v, at in zip(eqn.invars, _tokens.backward(eqn, Tokens(axis), _never)) if at is None)
    tried: set[tuple[int, int]] = set()
    num, start = rows, 0
    while (num, start) not in tried and len(tried) < 4:
        tried.add((num, start))
        per = rows // num if start == 0 and rows % num == 0 else 1
        nbytes = _nbytes(eqn.outvars[0]) * num * per // rows
        size = max(1, chunk_bytes // max(1, nbytes // num))
        if num < 2 or _nbytes(weights) > WEIGHTS_MOST * nbytes:
            return None
        try:
            return _Search(flat, first, Tokens(axis, start, per), num).head(_even(num, size), nbytes)
        except Other as other:
            num, start = other.num, other.start
        except NoRule:
            return None
    return None


def _never(*_: Any) -> bool:
    return False


def _even(num: int, most: int) -> int:
    """The size of the chunks: the largest divisor, if it is not much smaller than ``most``, which leaves no rest."""
    return next((size for size in range(most, most // 2, -1) if num % size == 0), -(-num // -(-num // most)))


@dataclass
class _Search:
    """The search for all equations of a head, from the product that gives the scores on."""

    flat: Any
    first: int
    at: Tokens
    num: int

    def __post_init__(self) -> None:
        self.eqns = self.flat.jaxpr.eqns
        self.producers = {v: eqn for eqn in self.eqns for v in eqn.outvars}
        self.number = {id(eqn): i for i, eqn in enumerate(self.eqns)}
        self.scores = self.eqns[self.first].outvars[0]
        self.places: dict[Any, Tokens] = {}
        self.inside: set[int] = set()
        self.later: set[Any] = set()  # variables that depend on results of the head
        self.sliced: dict[tuple[Any, Tokens], None] = {}
        self.whole: dict[Any, None] = {}
        self.outputs: dict[Any, None] = {}
        self.after: list[int] = []

    def iota(self, var: Any, column: int) -> bool:
        return _tokens.numbers_its_rows(var, column, self.producers)

    def is_large(self, var: Any) -> bool:
        return var.aval.size * SMALL >= self.scores.aval.size

    def head(self, size: int, nbytes: int) -> Head:
        """The head, with chunks of ``size`` tokens.

        Raises:
          NoRule, Other: a value as large as the scores is read by an equation that mixes tokens, or is a result.
        """
        self._take(self.first, self.at)
        for i, eqn in enumerate(self.eqns[self.first + 1 :], self.first + 1):
            inputs = [v for v in eqn.invars if not isinstance(v, core.Literal)]
            if i in self.inside or not any(v in self.places or v in self.later for v in inputs):
                continue
            if not self._join(i, eqn):
                self.later.update(eqn.outvars)
                self.after.append(i)
                self.outputs.update(dict.fromkeys(v for v in inputs if v in self.places))
        results = [v for v in self.flat.jaxpr.outvars if not isinstance(v, core.Literal) and v in self.places]
        self.outputs.update(dict.fromkeys(results))
        for v in self.outputs:
            at = self.places[v]
            if self.is_large(v) or at.start or self.num * at.per != v.aval.shape[at.axis]:
                raise NoRule
        if any(v in self.later for v in (*self.whole, *(v for v, _ in self.sliced))) or not self.outputs:
            raise NoRule
        return Head(
            sorted(self.inside), self.after, self.places, list(self.sliced), list(self.whole), list(self.outputs),
            self.num, size, nbytes,
        )  # fmt: skip

    def _join(self, i: int, eqn: Any) -> bool:
        """Take an equation into the head; False where it must stay outside, and reads small values only."""
        inputs = [v for v in eqn.invars if not isinstance(v, core.Literal)]
        large = any(v in self.places and self.is_large(v) for v in inputs)
        try:
            if eqn.primitive.name == "dot_general" or any(v in self.later for v in inputs):
                raise NoRule
            k = next(k for k, v in enumerate(eqn.invars) if not isinstance(v, core.Literal) and v in self.places)
            self._take(i, _tokens.forward(eqn, k, self.places[eqn.invars[k]], self.num, self.iota))
        except (NoRule, Other):
            if large:
                raise
            return False
        return True

    def _take(self, i: int, at: Tokens) -> None:
        """Put an equation, whose result has its tokens there, into the head, with the large values that it reads."""
        eqn = self.eqns[i]
        ins = _tokens.backward(eqn, at, self.iota)
        read = [(v, place) for v, place in zip(eqn.invars, ins, strict=True) if not isinstance(v, core.Literal)]
        if any(v in self.places and self.places[v] != place for v, place in read):
            raise NoRule
        self.inside.add(i)
        self.places[eqn.outvars[0]] = at
        for v, place in read:
            if v in self.places:
                continue
            if place is None:
                self.whole[v] = None
            elif not (self.is_large(v) and self._take_producer(v, place)):
                self.sliced[v, place] = None

    def _take_producer(self, var: Any, at: Tokens) -> bool:
        """Compute a large value that a chunk reads inside of the chunk too, if the tokens can be followed through."""
        eqn = self.producers.get(var)
        if eqn is None or len(eqn.outvars) != 1:
            return False
        try:
            self._take(self.number[id(eqn)], at)
        except NoRule:
            return False
        return True


# --- evaluating


def _evaluate(flat: Any, inputs: Sequence[Any], head: Head) -> list[Any]:
    jaxpr = flat.jaxpr
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*flat.consts, *inputs), strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, core.Literal) else known[var]

    def run(numbers: Sequence[int]) -> None:
        for i in numbers:
            eqn = jaxpr.eqns[i]
            known.update(zip(eqn.outvars, bind(eqn, [read(v) for v in eqn.invars]), strict=True))

    inside, after = set(head.eqns), set(head.after)
    own = {v for i in inside for v in jaxpr.eqns[i].outvars} - set(head.outputs)
    reached = _reached_without(jaxpr, inside, own)
    run([i for i in range(len(jaxpr.eqns)) if i in reached and i not in after])
    known.update(zip(head.outputs, _run_head(jaxpr, head, known), strict=True))
    run(head.after)
    return [read(v) for v in jaxpr.outvars]


def _reached_without(jaxpr: Any, inside: set[int], own: set[Any]) -> set[int]:
    """Numbers of the equations outside of a head; of its own also those whose results are read before it."""
    kept: set[int] = set()
    needed: set[Any] = set()
    for i in reversed(range(len(jaxpr.eqns))):
        eqn = jaxpr.eqns[i]
        reads = {v for v in eqn.invars if not isinstance(v, core.Literal)}
        if i not in inside or any(v in needed for v in eqn.outvars):
            kept.add(i)
            needed |= reads & own
    return kept


def _run_head(jaxpr: Any, head: Head, known: dict[Any, Any]) -> list[Any]:
    """The results of the head, from one chunk of tokens after another and a last one with the rest."""
    arrays = [known[v] for v, _ in head.sliced]
    whole = {v: _in_single(known[v]) for v in head.whole}

    def chunk(pieces: list[Any], num: int) -> list[Any]:
        mine = dict(zip(head.sliced, pieces, strict=True))
        values: dict[Any, Any] = {}

        def read(var: Any, at: Tokens | None) -> Any:
            if isinstance(var, core.Literal):
                return var.val
            if var in values:
                return values[var]
            return whole[var].astype(var.aval.dtype) if at is None else mine[var, at]

        for i in head.eqns:
            eqn = jaxpr.eqns[i]
            at = head.places[eqn.outvars[0]]
            ins = _tokens.backward(eqn, at, lambda var, column: _tokens.numbers_its_rows(var, column, producers))
            inputs = [read(v, place) for v, place in zip(eqn.invars, ins, strict=True)]
            values[eqn.outvars[0]] = _tokens.evaluate(eqn, inputs, ins, at, num)
        return [values[v] for v in head.outputs]

    producers = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
    many, rest = divmod(head.num, head.size)
    parts = [_cut(x, at, 0, many * head.size, many) for x, (_, at) in zip(arrays, head.sliced, strict=True)]
    body = jax.checkpoint(lambda pieces: chunk(pieces, head.size), prevent_cse=False)
    found = [
        _join(y, head.places[v].axis) for y, v in zip(jax.lax.map(body, parts), head.outputs, strict=True)
    ]  # fmt: skip
    if not rest:
        return found
    parts = [_cut(x, at, many * head.size, rest, 1)[0] for x, (_, at) in zip(arrays, head.sliced, strict=True)]
    last = jax.checkpoint(lambda pieces: chunk(pieces, rest))(parts)
    pairs = zip(found, last, head.outputs, strict=True)
    return [jnp.concatenate([y, z], head.places[v].axis) for y, z, v in pairs]


def _in_single(x: Any) -> Any:
    """Half precision in float32, in which the gradients of the chunks are added up; others as they are."""
    x = jnp.asarray(x)
    return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4 else x


def _cut(x: Any, at: Tokens, first: int, num: int, many: int) -> Any:
    """The rows of ``num`` tokens from the token ``first`` on, in ``many`` parts along a new leading axis."""
    low = (at.start + first) * at.per
    x = jax.lax.slice_in_dim(x, low, low + num * at.per, axis=at.axis)
    shape = (*x.shape[: at.axis], many, num * at.per // many, *x.shape[at.axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), at.axis, 0)


def _join(y: Any, axis: int) -> Any:
    """Put the parts along the leading axis one after another along an axis of the parts."""
    y = jnp.moveaxis(y, 0, axis)
    return y.reshape(*y.shape[:axis], -1, *y.shape[axis + 2 :])
