"""Finds the values of a graph that need 64 bits, for programs that run where jax has 32.

torch's default integers have 64 bits, and a module may compute in float64 between float32 layers; jax's default mode
has neither. A float64 value always needs its bits. An int64 value needs them if it can leave 32 bits, as interval
arithmetic says, and if an operator reads more than its low 32 bits: sums, products and shifts to the left depend on the
low bits alone, and an index that torch accepts fits in 32 bits. So token ids, positions and flattened indices stay in
32 bits, and hashes do not.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import is_concrete_int

Range = tuple[int, int]
"""The least and the largest value that an integer can have."""
Ranges = Mapping[str, Range]
"""The ranges of an operator's arguments by their names in ATen's schema."""

INT64 = (-(2**63), 2**63 - 1)
GIVEN = (1 - 2**31, 2**31 - 1)
"""The range of integers that are given; a ``Program`` runs in 64 bits as a whole where its inputs leave it."""
LARGEST = 2**31 - 1
"""The length assumed of an axis of any length, and the number of entries assumed of a tensor with such an axis."""


class Widths(NamedTuple):
    """What a graph needs 64 bits for.

    Args:
      values: for every node, whether each of its results is kept in 64 bits.
      steps: the nodes that are computed in 64 bits, since an argument or a result has them.
    """

    values: Mapping[Node, tuple[bool, ...]]
    steps: frozenset[Node]


def find_widths(
    nodes: list[Node], given: Mapping[Node, Range], outputs: Sequence[Node], own: frozenset[torch.dtype]
) -> Widths:
    """Find the values and operators of a graph that need 64 bits.

    Args:
      nodes: the nodes of a functional graph of ATen operators, in order, with their traced values in ``meta["val"]``.
      given: the ranges of placeholders whose values are known.
      outputs: the nodes that the module returns. Written buffers are left out: a counter in 32 bits stays there.
      own: the types that follow the weights; they have the bits that the weights have.
    """
    ranges: dict[Node, tuple[Range | None, ...]] = {}
    for node in nodes:
        ranges[node] = _ranges_of(node, ranges, given)
    demanded, read = set(outputs), set(nodes)
    values: dict[Node, tuple[bool, ...]] = {}
    for node in reversed(nodes):
        results = zip(results_of(node), ranges[node], strict=True)
        values[node] = tuple(_needs_bits(x, r, node, own, node in demanded, read) for x, r in results)
        demanded.update(_demands(node, any(values[node])))
    return Widths(values, frozenset(n for n in nodes if n.op == "call_function" and _runs_wide(n, values)))


def _needs_bits(
    x: Any, r: Range | None, node: Node, own: frozenset[torch.dtype], demanded: bool, read: set[Node]
) -> bool:
    if not isinstance(x, torch.Tensor) or x.dtype in own:
        return False
    if x.dtype in (torch.float64, torch.complex128):
        return node.op != "placeholder" or not _is_only_rounded(node, read)
    return x.dtype == torch.int64 and demanded and r is not None and not _fits(r)


def _is_only_rounded(node: Node, read: set[Node]) -> bool:
    """Whether all that is read of a value is rounded to floats of at most 32 bits, as ``.float()`` does."""
    results = [x for user in node.users if user in read for x in results_of(user)]
    return all(isinstance(x, torch.Tensor) and x.dtype.is_floating_point and x.dtype.itemsize <= 4 for x in results)


def _runs_wide(node: Node, values: Mapping[Node, tuple[bool, ...]]) -> bool:
    if not any(isinstance(x, torch.Tensor) for x in results_of(node)):
        return False  # sizes, which are Python's own integers
    if any(values[node]) or any(any(values[n]) for n in node.all_input_nodes):
        return True
    return any(isinstance(x, int) and not _fits((x, x)) for x in _entries(node).values())


def results_of(node: Node) -> tuple[Any, ...]:
    """The traced results of a node, one or more."""
    value = node.meta.get("val")
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def names(text: str) -> frozenset[str]:
    """The set of the words of a text."""
    return frozenset(text.split())


# --- what an operator reads of its arguments

MOVES = names(
    "where gather index index_select take index_put _unsafe_index_put index_copy index_fill scatter masked_fill "
    "masked_scatter fill copy view reshape _unsafe_view view_copy permute permute_copy transpose transpose_copy t "
    "expand expand_copy unsqueeze unsqueeze_copy squeeze squeeze_copy slice slice_copy select select_copy cat "
    "stack clone alias alias_copy contiguous lift_fresh_copy detach stop_gradient flip roll repeat "
    "repeat_interleave unfold split split_with_sizes chunk unbind flatten unflatten narrow movedim diagonal "
    "diagonal_copy diag diag_embed tril triu constant_pad_nd slice_scatter select_scatter diagonal_scatter "
    "as_strided as_strided_copy embedding full full_like new_full scalar_tensor zeros zeros_like ones ones_like "
    "eye"
)
"""Operators whose results are entries of their arguments."""
SUMS = names("sum nansum cumsum trace dot mv mm bmm matmul index_add scatter_add")
RING = names("add sub subtract rsub mul multiply neg negative square prod cumprod addmm baddbmm addmv")
LOGIC = names("bitwise_and bitwise_or bitwise_xor bitwise_not __and__ __or__ __xor__")
ORDERS = names(
    "argmax argmin argsort sort topk max min amax amin aminmax cummax cummin median kthvalue mode searchsorted "
    "bucketize count_nonzero bincount"
)
"""Operators whose results are entries of their argument, or places or counts of them."""
LOW_BITS = MOVES | SUMS | RING | LOGIC
"""Operators whose results have low 32 bits that depend on no higher bits of their arguments."""
PLACES = names("index indices offsets target")
"""Names of arguments that say where; torch refuses places beyond the tensor."""


def _demands(node: Node, wide: bool) -> Iterator[Node]:
    """The nodes of which an operator reads more than the low 32 bits, if its own result is kept in 64 bits or not."""
    if node.op != "call_function":
        return
    name = name_of(node)
    whole = all(isinstance(x, torch.Tensor) and not x.dtype.is_floating_point for x in results_of(node))
    # a float made of an integer reads all of its bits
    low = whole and (name in LOW_BITS or node.target is operator.getitem or name == "_to_copy" or _is_low(node))
    if name == "one_hot" or (low and not wide):
        return
    for key, x in arguments_of(node).items():
        yield from nodes_in(x) if key not in PLACES else ()


def _is_low(node: Node) -> bool:
    """Whether it is a shift to the left or a power, by a number that is known."""
    by = node.args[1] if len(node.args) > 1 else None
    return name_of(node) in ("bitwise_left_shift", "__lshift__", "pow") and isinstance(by, int) and 0 <= by < 32


def nodes_in(x: Any) -> Iterator[Node]:
    """The nodes of nested arguments."""
    if isinstance(x, Node):
        yield x
    elif isinstance(x, list | tuple):
        for each in x:
            yield from nodes_in(each)


# --- the graph


def name_of(node: Node) -> str:
    """The name of a node's operator without namespace and overload, such as "add"; "" if it is none of torch's."""
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else schema.name.rpartition("::")[2]


def arguments_of(node: Node) -> dict[str, Any]:
    """The arguments of an operator by their names in ATen's schema, by their number where there is no schema."""
    schema = getattr(node.target, "_schema", None)
    names = [a.name for a in schema.arguments] if schema is not None else []
    return {**{names[i] if i < len(names) else str(i): x for i, x in enumerate(node.args)}, **node.kwargs}


def _entries(node: Node) -> dict[str, Any]:
    """The arguments that are tensors or stand for entries of a tensor; sizes, axes and flags are left out."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return arguments_of(node)
    types = {a.name: str(a.type) for a in schema.arguments}
    return {
        name: x
        for name, x in arguments_of(node).items()
        if name not in PLACES and any(word in types.get(name, "") for word in ("Tensor", "number"))
    }


# --- ranges


def _ranges_of(
    node: Node, ranges: Mapping[Node, tuple[Range | None, ...]], given: Mapping[Node, Range]
) -> tuple[Range | None, ...]:
    """The range of each result of a node; None of results that are no integers."""
    results = results_of(node)
    if node in given:
        return (given[node],)
    if name_of(node).startswith("sym_"):  # sizes
        return tuple(map(_range_of_type, results))
    if node.target is operator.getitem and isinstance(node.args[0], Node):
        source, number = ranges[node.args[0]], node.args[1]
        return (source[number],) if isinstance(number, int) and len(results_of(node.args[0])) > 1 else source[:1]
    if node.op != "call_function":
        return tuple(map(_range_of_type, results))
    computed = _computed(node, ranges)
    return tuple(_wrapped(x, computed) for x in results)


def _wrapped(x: Any, r: Range) -> Range | None:
    """The range of a result: torch's integers wrap around at the ends of their type."""
    limits = INT64 if isinstance(x, torch.Tensor) and x.dtype == torch.int64 else _range_of_type(x)
    if isinstance(x, torch.SymInt):
        return r
    return r if limits is not None and limits[0] <= r[0] and r[1] <= limits[1] else limits


def _range_of_type(x: Any) -> Range | None:
    """The range of a number or tensor of which only the type is known; None if it is no integer."""
    if isinstance(x, bool | torch.SymBool):
        return (0, 1)
    if isinstance(x, int | torch.SymInt):
        return (int(x), int(x)) if is_concrete_int(x) else (0, LARGEST)
    if not isinstance(x, torch.Tensor) or x.dtype.is_floating_point or x.dtype.is_complex:
        return None
    if x.dtype in (torch.bool, torch.int64):
        return (0, 1) if x.dtype == torch.bool else GIVEN
    return (torch.iinfo(x.dtype).min, torch.iinfo(x.dtype).max)


def _computed(node: Node, ranges: Mapping[Node, tuple[Range | None, ...]]) -> Range:
    """The range of an operator's results, without a rule for it that of its arguments."""
    entries = {key: _range_in(x, ranges) for key, x in _entries(node).items() if x is not None}
    known = {key: r for key, r in entries.items() if r is not None}
    name = name_of(node) or getattr(node.target, "__name__", "")
    if name in MADE:
        return MADE[name](arguments_of(node), lambda x: _range_in(x, ranges) or INT64)
    if name in ORDERS:
        return _hull([*known.values(), (0, _length(node))]) or INT64
    if len(known) < len(entries) and name not in MOVES:  # a float among the arguments
        return INT64 if name in RULES or name == "_to_copy" else GIVEN
    if name in RULES:
        return RULES[name](known, node)
    hull = _hull(known.values())
    return hull if hull is not None and (name in MOVES or name == "_to_copy" or not _fits(hull)) else GIVEN


def _range_in(x: Any, ranges: Mapping[Node, tuple[Range | None, ...]]) -> Range | None:
    """The range of an argument, of a list that of all entries; None of what is no integer."""
    if isinstance(x, Node):
        return _hull(r for r in ranges[x] if r is not None)
    if isinstance(x, list | tuple):
        return _hull(r for r in (_range_in(v, ranges) for v in x) if r is not None)
    return (int(x), int(x)) if isinstance(x, int) else None


def _hull(ranges: Iterable[Range]) -> Range | None:
    known = list(ranges)
    return (min(r[0] for r in known), max(r[1] for r in known)) if known else None


def _fits(r: Range) -> bool:
    return r[0] >= -(2**31) and r[1] < 2**31


def _corners(f: Callable[[int, int], int], a: Range, b: Range) -> Range:
    values = [f(x, y) for x in a for y in b]
    return (min(values), max(values))


def _operands(known: Ranges, node: Node) -> tuple[Range, Range]:
    """The first two operands, the second one times ``alpha``."""
    first, second, *_ = (r for key, r in known.items() if key != "alpha")
    return first, _corners(operator.mul, second, known.get("alpha", (1, 1)))


def _pairwise(f: Callable[[int, int], int]) -> Callable[[Ranges, Node], Range]:
    """The rule of an operator that is monotonous, or bilinear, in two operands."""
    return lambda known, node: _corners(f, *_operands(known, node))


def _unary(f: Callable[[Range], Range]) -> Callable[[Ranges, Node], Range]:
    return lambda known, node: f(next(iter(known.values())))


def _size(r: Range) -> int:
    """The largest absolute value."""
    return max(abs(r[0]), abs(r[1]))


def _absolute(r: Range) -> Range:
    return (0 if r[0] <= 0 <= r[1] else min(map(abs, r)), _size(r))


def _power(known: Ranges, node: Node) -> Range:
    base, exponent = _operands(known, node)
    if exponent[0] < 0 or exponent[1] > 64:
        return INT64
    most = _size(base) ** exponent[1]
    return (0 if base[0] >= 0 or (exponent[0] == exponent[1] and exponent[0] % 2 == 0) else -most, max(most, 1))


def _remainder(known: Ranges, node: Node) -> Range:
    """x mod y, which has the sign of y."""
    x, y = _operands(known, node)
    if y[0] > 0 and x[0] >= 0:
        return (0, min(x[1], y[1] - 1))
    return (min(0, y[0] + 1), max(0, y[1] - 1))


def _fmod(known: Ranges, node: Node) -> Range:
    x, y = _operands(known, node)
    most = min(_size(x), max(_size(y) - 1, 0))
    return (-most if x[0] < 0 else 0, most if x[1] > 0 else 0)


def _quotient(known: Ranges, node: Node) -> Range:
    x, y = _operands(known, node)
    if y[0] > 0:
        return _corners(operator.floordiv, x, y) if x[0] >= 0 else (x[0] // y[0], max(0, x[1] // y[0]))
    return (-_size(x) - 1, _size(x))


def _logic(known: Ranges, node: Node) -> Range:
    x, y = _operands(known, node)
    if name_of(node).strip("_").endswith("and") and max(x[0], y[0]) >= 0:
        return (0, min(r[1] for r in (x, y) if r[0] >= 0))
    most = 2 ** max(_size(x), _size(y)).bit_length()
    return (0 if min(x[0], y[0]) >= 0 else -most, most - 1)


def _shift(direction: int) -> Callable[[Ranges, Node], Range]:
    def rule(known: Ranges, node: Node) -> Range:
        x, by = _operands(known, node)
        if by[0] < 0 or by[1] > 63:
            return INT64 if direction > 0 else x
        return _corners(operator.lshift if direction > 0 else operator.rshift, x, by)

    return rule


def _clamp(known: Ranges, node: Node) -> Range:
    x, low, high = known["self"], known.get("min", INT64), known.get("max", INT64)
    lowest = x if "min" not in known else (max(x[0], low[0]), max(x[1], low[1]))
    return lowest if "max" not in known else (min(lowest[0], high[0]), min(lowest[1], high[1]))


def _sum(known: Ranges, node: Node) -> Range:
    """Sums of as many entries, or products of two entries, as the first argument has."""
    products = name_of(node) in ("dot", "mv", "mm", "bmm", "matmul")
    terms = _corners(operator.mul, *_operands(known, node)) if products else known["self"]
    count = max(1, _length(node))
    return (min(terms[0], terms[0] * count), max(terms[1], terms[1] * count))


def _length(node: Node) -> int:
    """The largest number of entries that an operator's first argument can have."""
    return _count(results_of(node.all_input_nodes[0])[0])


def _put(known: Ranges, node: Node) -> Range:
    return _scatter_add(known, node) if arguments_of(node).get("accumulate") else _hull(known.values()) or INT64


def _scatter_add(known: Ranges, node: Node) -> Range:
    start, (name, source) = known["self"], next((k, r) for k, r in known.items() if k in ("src", "source", "values"))
    count = max(1, _count(results_of(arguments_of(node)[name])[0]))
    return (start[0] + min(0, source[0] * count), start[1] + max(0, source[1] * count))


def _product(known: Ranges, node: Node) -> Range:
    x = known["self"]
    return x if x[0] >= -1 and x[1] <= 1 else INT64


def _count(x: Any) -> int:
    """The largest number of entries that a tensor can have."""
    sizes = list(x.shape)
    return math.prod(map(int, sizes)) if all(map(is_concrete_int, sizes)) else LARGEST


def _arange(arguments: Mapping[str, Any], range_of: Callable[[Any], Range]) -> Range:
    start, end, step = (range_of(arguments.get(name, default)) for name, default in _ARANGE.items())
    return (min(start[0], end[0] + (step[0] < 0)), max(start[1], end[1] - (step[1] > 0)))


_ARANGE = {"start": 0, "end": 0, "step": 1}

RULES: dict[str, Callable[[Ranges, Node], Range]] = {
    **dict.fromkeys(("add",), _pairwise(operator.add)),
    **dict.fromkeys(("sub", "subtract"), _pairwise(operator.sub)),
    "rsub": _pairwise(lambda x, y: y - x),
    **dict.fromkeys(("mul", "multiply"), _pairwise(operator.mul)),
    **dict.fromkeys(("neg", "negative"), _unary(lambda r: (-r[1], -r[0]))),
    **dict.fromkeys(("abs", "absolute"), _unary(_absolute)),
    **dict.fromkeys(("sign", "sgn"), _unary(lambda r: (-1, 1))),
    "square": _unary(lambda r: (0, _size(r) ** 2)),
    "pow": _power,
    "remainder": _remainder,
    "mod": _remainder,
    "fmod": _fmod,
    **dict.fromkeys(("floor_divide", "div", "divide", "floordiv"), _quotient),
    **dict.fromkeys(("bitwise_and", "bitwise_or", "bitwise_xor", "__and__", "__or__", "__xor__"), _logic),
    "bitwise_not": _unary(lambda r: (-r[1] - 1, -r[0] - 1)),
    **dict.fromkeys(("bitwise_left_shift", "__lshift__"), _shift(1)),
    **dict.fromkeys(("bitwise_right_shift", "__rshift__"), _shift(-1)),
    **dict.fromkeys(("clamp", "clip", "clamp_min", "clamp_max"), _clamp),
    "gcd": lambda known, node: (0, max(_size(r) for r in known.values())),
    "lcm": lambda known, node: (0, math.prod(_size(r) for r in known.values())),
    **dict.fromkeys(("maximum",), _pairwise(max)),
    **dict.fromkeys(("minimum",), _pairwise(min)),
    **dict.fromkeys(SUMS - {"index_add", "scatter_add"}, _sum),
    **dict.fromkeys(("index_add", "scatter_add"), _scatter_add),
    **dict.fromkeys(("index_put", "_unsafe_index_put"), _put),
    **dict.fromkeys(("prod", "cumprod"), _product),
    **dict.fromkeys(
        names("addmm baddbmm addmv addbmm addr addcmul scatter_reduce index_reduce convolution"),
        lambda known, node: INT64,
    ),
}
"""The rules of operators that compute: (ranges of the arguments, node) -> range of the result."""

MADE: dict[str, Callable[[Mapping[str, Any], Callable[[Any], Range]], Range]] = {
    "arange": _arange,
    "linspace": lambda a, range_of: _hull([range_of(a.get("start")), range_of(a.get("end"))]) or INT64,
    "logspace": lambda arguments, range_of: INT64,
    "randint": lambda a, range_of: (range_of(a.get("low", 0))[0], range_of(a["high"])[1]),
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros", "zero"), lambda a, range_of: (0, 0)),
    **dict.fromkeys(("ones", "ones_like", "new_ones", "eye"), lambda a, range_of: (0, 1)),
    **dict.fromkeys(("full", "full_like", "new_full"), lambda a, range_of: range_of(a.get("fill_value"))),
    "scalar_tensor": lambda a, range_of: range_of(a.get("s")),
    "fill": lambda a, range_of: range_of(a.get("value")),
}
"""The rules of operators that make tensors from numbers: (arguments, function of an argument's range) -> range."""
