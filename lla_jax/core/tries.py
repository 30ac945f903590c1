"""Finds the likely slip behind an error of the user's function, by trying what would work.

A try traces the function with other arguments, or other data, and computes nothing: swapped arguments, labels of
another type or shape, images with their channels elsewhere. Where one goes through, the message advises it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core.arguments import parameters
from lla_jax.core.foreign import LIBRARIES, library_of
from lla_jax.core.static import Static, function_of

ROWS_TAKEN = {"slice", "dynamic_slice", "gather", "squeeze"}
SECONDS = 5.0  # after which no more is tried

Try = tuple[str, str, Callable[[], Any]]
"""(the argument to blame, the remedy, a call that goes through where the remedy is right)"""


class Found(NamedTuple):
    """A likely slip.

    Args:
      argument: the argument to blame; "loss" stands for the function that failed, whatever argument holds it.
      remedy: what to do, a sentence.
    """

    argument: str
    remedy: str


TRACED = "jax traces the function once, with arrays whose values are not known, and runs the program that it sees"
KEPT = (
    "It keeps an array of an earlier call, in a list, a global or an attribute, and uses it again; it must depend on "
    "its arguments alone: return the values in place of storing them"
)
NO_SLOPE = (
    "It has no derivative in jax, or only the first one. Curvature needs two, but for lla.hessian(..., product="
    '"finite-difference"), which takes differences of the first one; or write it without callbacks, with jax.lax.'
    "scan or fixed bounds in place of while loops, and with jax.custom_jvp in place of jax.custom_vjp; lla.hessian "
    "works with custom_vjp where lla.ggn and lla.fisher do not, and lla.evaluate needs no derivative"
)
_NO_SLOPE = (
    *("to a custom_vjp function", "Reverse-mode differentiation does not work", "callbacks do not support JVP"),
    *("Differentiation rule for", "Transpose rule", "Linearization"),
)
_OF_ERRORS: tuple[tuple[Any, str], ...] = (
    (
        jax.errors.TracerArrayConversionError,
        f"It calls numpy (or another library) on an array of jax: {TRACED}. Use jax.numpy in place of numpy, such as "
        "jnp.mean, and return the array; a torch function is converted by lla_torch.convert or lla_torch.convert_loss",
    ),
    (
        jax.errors.TracerBoolConversionError,
        f"It decides by the value of an array (if, while, and, assert): {TRACED}. Use jnp.where(condition, a, b) or "
        "jax.lax.cond, and leave assertions out",
    ),
    (
        jax.errors.NonConcreteBooleanIndexError,
        "It takes entries by a mask, x[mask], whose number is not known while jax traces it. Return the mask as "
        "weights, (losses, mask), or use jnp.where(mask, x, 0)",
    ),
    (
        (jax.errors.ConcretizationTypeError, jax.errors.TracerIntegerConversionError),
        f"It needs the value of an array, as float(x), int(x), x.item(), x.tolist() and range(x) do: {TRACED}. Leave "
        "the conversion out, and return the array itself; a size is a Python number, such as x.shape[0]",
    ),
    (jax.errors.UnexpectedTracerError, KEPT),
)
OUTPUTS = {"outputs", "output", "logits", "log_probs", "predictions", "prediction", "preds", "pred", "y_pred", "y_hat"}
_FOREIGN = ("must be Tensor, not", "Tracer has no attribute", "__dlpack", "not convertible to Tensor")


def of_error(error: Exception) -> Found | None:
    """The slip that the kind of an error tells: what cannot be traced, or functions of other libraries."""
    for kinds, remedy in _OF_ERRORS:
        if isinstance(error, kinds):
            return Found("loss", remedy)
    if type(error).__name__ == "ScopeCollectionNotFound":  # of Flax
        return Found(
            "variables",
            "The collection that it names is not among the variables: pass all that module.init returned, or of a "
            'train state {"params": state.params, "batch_stats": state.batch_stats}',
        )
    if lacks_derivative(error):
        return Found("loss", NO_SLOPE)
    if type(error).__module__.startswith("torch") or any(text in str(error) for text in _FOREIGN):
        return Found(
            "loss",
            "It calls torch, or a method that arrays of jax do not have. Write it with jax.numpy, or convert the torch "
            "module and its loss: lla_torch.convert(module, inputs).loss(nn.CrossEntropyLoss()), "
            "lla_torch.convert_loss(step, ...)",
        )
    if "'NoneType' object is not callable" in str(error):
        return Found(
            "loss",
            "A part of it is None, and called as a function, as in one half of eqx.partition or eqx.filter: pass the "
            "whole model",
        )
    return None


def lacks_derivative(error: Exception) -> bool:
    """Whether jax raised an error because a function has no derivative."""
    return any(text in str(error) for text in _NO_SLOPE)


def of_object(f: Any) -> Found | None:
    """The slip of passing a class, or a module of a neural-network library, in place of a function."""
    f = function_of(f)
    if isinstance(f, type):
        return Found("loss", f"A class was given, {f.__name__}; pass a function, or an object that can be called")
    library = LIBRARIES.get(library_of(f))
    if library and any(kind.__name__ == "Module" for kind in type(f).__mro__):
        name, loss, params = library
        return Found("loss", f"It is a module of {name}: its loss is {loss}, and its parameters are {params}")
    return None


def of_criterion(f: Callable[..., Any], given: Mapping[str, Any]) -> Found | None:
    """The slip in a criterion or metric ``f(outputs, batch)`` that failed: arguments, outputs or labels."""
    outputs, batch = given["outputs"], given["batch"]
    rows = _rows(outputs)
    return _first(_tries_of_criterion(f, outputs, batch), lambda result: _are_values(result, rows))


def _tries_of_criterion(f: Callable[..., Any], outputs: Any, batch: Any) -> Iterator[Try]:
    classes = np.shape(jax.tree.leaves(outputs)[0])[-1:] if jax.tree.leaves(outputs) else ()
    for remedy, other in _with_other_labels(batch, classes[0] if classes else 0):
        yield "data", remedy, partial(f, outputs, other)
    yield "loss", _advise("takes (batch, outputs)", "outputs, batch", "f(batch, outputs)"), lambda: f(batch, outputs)
    for key, part in _entries(batch):
        text = "takes (outputs, labels)"
        yield (
            "loss",
            _advise(text, "outputs, batch", f"f(outputs, batch[{key!r}])"),
            _with_all_of(part, partial(f, outputs)),
        )
        text = "takes (labels, outputs)"
        yield "loss", _advise(text, "outputs, batch", f"f(batch[{key!r}], outputs)"), partial(f, part, outputs)
    if type(batch) in (tuple, list):
        text = "takes the entries of the batch one by one"
        yield "loss", _advise(text, "outputs, batch", "f(outputs, *batch)"), lambda: f(outputs, *batch)
    yield "loss", _advise("takes the outputs alone", "outputs, batch", "f(outputs)"), lambda: f(outputs)
    for key, part in _entries(outputs):
        text = f"The model returns a {type(outputs).__name__} of {len(outputs)}, and it works with entry {key!r}"
        way = f"lambda outputs, batch: f(outputs[{key!r}], batch)"
        yield "loss", f"{text}: {way}", partial(f, part, batch)
        for name, label in _entries(batch):
            way = f"lambda outputs, batch: f(outputs[{key!r}], batch[{name!r}])"
            yield "loss", f"{text}: {way}", partial(f, part, label)
    if hasattr(outputs, "ndim") and outputs.ndim == 2 and outputs.shape[1] == 1:
        text = "The outputs have shape (N, 1), and it works with (N,): lambda outputs, batch: f(outputs[:, 0], "
        yield "loss", f"{text}batch)", lambda: f(outputs[:, 0], batch)


def of_model(f: Callable[..., Any], given: Mapping[str, Any]) -> Found | None:
    """The slip in ``apply(params, state, batch, train)`` of a ``Loss`` that failed: its arguments, or the inputs."""
    params, state, batch, train = (given[name] for name in ("params", "state", "batch", "train"))
    rest = (given["keys"],) if "keys" in given else ()
    rows = _rows(batch)

    def tries() -> Iterator[Try]:
        if isinstance(params, Mapping) and "params" in params:
            text = 'These are all variables of a Flax module; pass its parameters alone, variables["params"]'
            yield "params", text, partial(f, params["params"], state, batch, train, *rest)
        for remedy, other in _other_data(batch):
            yield "data", remedy, partial(f, params, state, other, train, *rest)
        if isinstance(f, Static):
            yield from _tries_of_signature(f, params, state, batch, train, rest)

    return _first(tries(), lambda result: _are_outputs(result, rows))


def _tries_of_signature(
    f: Callable[..., Any], params: Any, state: Any, batch: Any, train: bool, rest: tuple[Any, ...]
) -> Iterator[Try]:
    names = "params, state, batch, train"
    if rest:
        text = "The loss has a key, so that apply gets keys as its fifth argument, and it takes none: leave key out"
        yield "key", text, partial(f, params, state, batch, train)
    else:
        keys = jax.random.split(jax.random.key(0), _rows(batch))
        text = "It takes keys as its fifth argument, which a loss with a key gets: lla.Loss(..., key=jax.random.key(0))"
        yield "key", text, partial(f, params, state, batch, train, keys)
    entries = _entries(batch)
    at, x = (f"[{entries[0][0]!r}]", entries[0][1]) if entries else ("", batch)
    of_inputs = partial(_with_all_of, x)
    yield (
        "loss",
        _advise("takes the inputs in place of the batch", names, f"f(params, state, batch{at}, train)"),
        of_inputs(lambda x: f(params, state, x, train, *rest)),
    )
    for text, call, made in (
        ("takes (params, inputs)", f"(f(params, batch{at}), state)", of_inputs(partial(f, params))),
        ("takes (params, batch)", "(f(params, batch), state)", lambda: f(params, batch)),
        ("takes (params, inputs, train)", f"(f(params, batch{at}, train), state)", lambda: f(params, x, train)),
        ("takes (params, state, inputs)", f"f(params, state, batch{at})", of_inputs(partial(f, params, state))),
        ("takes (params, state, batch)", "f(params, state, batch)", lambda: f(params, state, batch)),
        ("takes (batch, params)", "(f(batch, params), state)", lambda: f(batch, params)),
        ("takes (inputs, params)", f"(f(batch{at}, params), state)", lambda: f(x, params)),
    ):
        yield "loss", _advise(text, names, call), made
    variables = {"params": params, **(state if isinstance(state, dict) else {})}
    yield (
        "loss",
        (
            'It takes the variables of a Flax module, {"params": ...}: use lla.from_linen(module, variables, '
            f'criterion), or apply=lambda {names}: (f({{"params": params}}, batch{at}), state)'
        ),
        lambda: f(variables, x),
    )


def of_function(f: Callable[..., Any], given: Mapping[str, Any]) -> Found | None:
    """The slip in a plain ``f(params, batch)`` that failed: its arguments, or the data."""
    params, batch = given["params"], given["batch"]

    def tries() -> Iterator[Try]:
        for remedy, other in _other_data(batch):
            yield "data", remedy, partial(f, params, other)
        for remedy, other in _with_other_labels(batch, 0):
            yield "data", remedy, partial(f, params, other)
        names = "params, batch"
        yield "loss", _advise("takes (batch, params)", names, "f(batch, params)"), lambda: f(batch, params)
        if type(batch) in (tuple, list):
            text = "takes the entries of the batch one by one"
            yield "loss", _advise(text, names, "f(params, *batch)"), lambda: f(params, *batch)
        for key, part in _entries(batch)[:1]:
            text = "takes the inputs in place of the batch"
            yield "loss", _advise(text, names, f"f(params, batch[{key!r}])"), _with_all_of(part, partial(f, params))
        text = "takes the parameters alone"
        yield "loss", _advise(text, names, "f(params)") + "; if there are no data, data=None", lambda: f(params)

    return _first(tries(), lambda result: hasattr(result, "shape") and result.shape == ()) or _of_criterion_as_loss(f)


def _of_criterion_as_loss(f: Callable[..., Any]) -> Found | None:
    """The slip of passing a criterion, whose first argument is named after outputs, in place of a loss."""
    first = next(iter(parameters(function_of(f))), "")
    if first not in OUTPUTS:
        return None
    return Found(
        "loss",
        f"Its first argument, {first}, is that of a criterion, not of a loss: use lla.Loss(apply, lambda outputs, "
        "batch: f(outputs, batch[1])) with apply=lambda params, state, batch, train: (model(params, batch[0]), state), "
        "or lla.from_linen, lla.from_nnx, lla.from_equinox",
    )


def of_data(given: Mapping[str, Any], error: Exception) -> Found:
    """What the data alone tell, where nothing else was found."""
    batch = given.get("batch", ())
    if batch is None:
        return Found("data", "The data are None, for a loss without data; pass (inputs, labels) if it reads some")
    if "outputs" in given and given["outputs"] is None:
        return Found("loss", "The outputs are None: apply must return (outputs, new_state), in this order")
    if given.get("state", ()) is None and "NoneType" in str(error):
        return Found("loss", "The state is None: if the model has statistics, pass them, lla.Loss(..., state=...)")
    if _is_list_of_batches(batch):
        return Found("data", "A list of batches is not a data set: wrap it, lla.stream(batches)")
    if any(entry is None for entry in (batch if type(batch) in (tuple, list) else ())):
        return Found("data", "An entry of the data is None; pass an array for each that is read, (inputs, labels)")
    if "batch" in given and (hasattr(batch, "shape") or (type(batch) in (tuple, list) and len(batch) == 1)):
        return Found("data", "The data are one array; where labels are read too, pass a pair, data=(inputs, labels)")
    return Found(
        "loss",
        "Its own error above names the line; compare these shapes with those that it takes (the leading axis counts "
        "the examples; a list of batches is not a data set: wrap it, lla.stream(batches))",
    )


# --- what is tried


def _advise(takes: str, names: str, call: str) -> str:
    return f"It {takes}; wrap it: lambda {names}: {call}"


def _other_data(batch: Any) -> Iterator[tuple[str, Any]]:
    """(remedy, batch) for data that the model might take in place of these."""
    if _is_list_of_batches(batch):
        yield "A list of batches is not a data set: wrap it, lla.stream(batches)", batch[0]
    if type(batch) in (tuple, list) and len(batch) == 2:
        yield "The data seem swapped, with the labels first; pass (inputs, labels)", type(batch)(reversed(batch))
    if isinstance(batch, Mapping) and len(batch) > 1:
        names = list(batch)
        for order in (names, names[::-1]):
            shown = ", ".join(f"data[{name!r}]" for name in order)
            yield f"The data are a dict, and it takes a tuple; pass ({shown})", tuple(batch[name] for name in order)
    if hasattr(batch, "shape"):
        text = "The data are one array, and it takes the first of several; pass a tuple, (inputs, labels)"
        yield text, (batch,)
        yield text, (batch, jnp.zeros(batch.shape[:1], jnp.int32))
    elif type(batch) in (tuple, list) and len(batch) == 1:
        text = "The data have one entry, and it takes more; pass (inputs, labels)"
        yield text, (*batch, jnp.zeros(np.shape(jax.tree.leaves(batch)[0])[:1], jnp.int32))
    for path, x, put in _leaves(batch):
        for text, other in _other_inputs(path, x):
            yield text, put(other)


def _other_inputs(path: str, x: Any) -> Iterator[tuple[str, Any]]:
    """(remedy, array) for inputs in another layout or type."""
    shape = tuple(x.shape)
    if len(shape) == 4:
        text = f"{path} has shape {shape}; it works with the channels"
        yield f"{text} last (NHWC, as in Flax): pass np.moveaxis({path}, 1, -1)", jnp.moveaxis(x, 1, -1)
        yield f"{text} first (NCHW, as in torch): pass np.moveaxis({path}, -1, 1)", jnp.moveaxis(x, -1, 1)
    if len(shape) == 3:
        text = f"{path} has shape {shape}; it works with an axis of channels"
        yield f"{text}: pass {path}[..., None]", x[..., None]
        yield f"{text}: pass {path}[:, None]", x[:, None]
    if len(shape) > 2:
        yield (
            f"{path} has shape {shape}; it works with flat rows: pass {path}.reshape(len({path}), -1)",
            x.reshape(shape[0], -1),
        )
    if len(shape) > 1 and shape[-1] == 1:
        yield f"{path} has shape {shape}; it works without the last axis: pass {path}[..., 0]", x[..., 0]
    if len(shape) == 1:
        yield f"{path} has shape {shape}; it works with (N, 1): pass {path}[:, None]", x[:, None]
    if jnp.issubdtype(x.dtype, jnp.integer):
        yield f"{path} holds integers; it works with floats: pass {path}.astype(np.float32)", x.astype(jnp.float32)
    elif jnp.issubdtype(x.dtype, jnp.floating):
        yield f"{path} holds {x.dtype}; it works with integers: pass {path}.astype(np.int32)", x.astype(jnp.int32)
        if x.dtype != jnp.float32:
            text = f"{path} holds {x.dtype}; it works with float32: pass {path}.astype(np.float32)"
            yield text, x.astype(jnp.float32)


def _with_other_labels(batch: Any, classes: int) -> Iterator[tuple[str, Any]]:
    """(remedy, batch) for labels that the criterion might take in place of these."""
    for path, x, put in [] if hasattr(batch, "shape") else reversed(list(_leaves(batch))):
        for text, other in _other_labels(path, x, classes):
            yield text, put(other)


def _other_labels(path: str, x: Any, classes: int) -> Iterator[tuple[str, Any]]:
    shape, floating = tuple(x.shape), jnp.issubdtype(x.dtype, jnp.floating)
    given = f"{path} has type {x.dtype} and shape {shape}"
    if x.dtype == bool:
        yield f"{given}; class numbers must be integers: pass {path}.astype(np.int32)", x.astype(jnp.int32)
    if floating:
        text = f"{given}; class numbers must be integers: pass {path}.astype(np.int32)"
        yield text, x.astype(jnp.int32)
    if len(shape) > 1 and shape[-1] == 1:
        yield f"{given}; it works with one label per example, (N,): pass {path}[..., 0]", x[..., 0]
        text = f"{given}; it works with integers of shape (N,): pass {path}[..., 0].astype(np.int32)"
        yield text, x[..., 0].astype(jnp.int32)
    if len(shape) > 1 and shape[-1] > 1:
        yield f"{given}, one-hot; it works with class numbers: pass {path}.argmax(-1)", x.argmax(-1)
    if jnp.issubdtype(x.dtype, jnp.integer) and classes > 1:
        text = f"{given}; it works with one-hot rows: pass np.eye({classes}, dtype=np.float32)[{path}]"
        yield text, jax.nn.one_hot(x.astype(jnp.int32), classes)
    if len(shape) == 1:
        yield f"{given}; it works with shape (N, 1): pass {path}[:, None]", x[:, None]


# --- how it is tried


def _first(tries: Iterable[Try], suits: Callable[[Any], bool]) -> Found | None:
    """The first try that goes through, with a result that suits."""
    end = time.monotonic() + SECONDS
    remaining = iter(tries)
    while time.monotonic() < end:
        try:
            argument, remedy, call = next(remaining)
        except Exception:  # no more are left, or none can be made of such arguments
            return None
        try:
            if suits(jax.eval_shape(call)):
                return Found(argument, remedy)
        except Exception:  # whatever a user's function says to arguments that were never meant for it
            continue
    return None


def _with_all_of(x: Any, call: Callable[[Any], Any]) -> Callable[[], Any]:
    """A try of ``call(x)`` that does not go through if it takes single rows of x, as ``batch[0]`` does of an array."""

    def made() -> Any:
        if hasattr(x, "shape"):
            closed = jax.make_jaxpr(call)(x)
            readers = {eqn.primitive.name for eqn in closed.eqns if closed.jaxpr.invars[0] in eqn.invars}
            if readers <= ROWS_TAKEN:
                raise ValueError("it takes single rows")
        return call(x)

    return made


def _are_values(result: Any, rows: int) -> bool:
    """Whether a criterion may return this: a number, or one for each example."""
    result = result[0] if isinstance(result, tuple) and result else result
    if not hasattr(result, "shape") or jnp.issubdtype(result.dtype, jnp.complexfloating):
        return False
    return result.shape == () or (result.shape[0] == rows and (rows < 2 or rows not in result.shape[1:]))


def _are_outputs(result: Any, rows: int) -> bool:
    """Whether a model may return this: arrays whose leading axis are the examples, perhaps with a state."""
    leaves = jax.tree.leaves(result)
    return bool(leaves) and hasattr(leaves[0], "shape") and leaves[0].shape[:1] == (rows,)


def _rows(tree: Any) -> int:
    leaves = jax.tree.leaves(tree)
    return int(leaves[0].shape[0]) if leaves and np.ndim(leaves[0]) else 1


def _entries(tree: Any) -> list[tuple[Any, Any]]:
    """(key, entry) of a dict, a tuple or a list, in order; an empty list for an array and other objects."""
    if isinstance(tree, Mapping):
        return list(tree.items())
    return list(enumerate(tree)) if isinstance(tree, tuple | list) else []


def _leaves(batch: Any) -> Iterator[tuple[str, Any, Callable[[Any], Any]]]:
    """(its path in the data, the array, a function that puts another one in its place) of the first leaves."""
    paths = [f"data{jax.tree_util.keystr(path)}" for path, _ in jax.tree.leaves_with_path(batch)]
    leaves, structure = jax.tree.flatten(batch)

    def put(i: int, new: Any) -> Any:
        return jax.tree.unflatten(structure, [*leaves[:i], new, *leaves[i + 1 :]])

    for i, (path, x) in enumerate(zip(paths[:4], leaves[:4], strict=True)):
        if hasattr(x, "shape") and hasattr(x, "astype"):
            yield path, x, partial(put, i)


def _is_list_of_batches(batch: Any) -> bool:
    """Whether the data are several entries of one structure, each a batch of several arrays."""
    if type(batch) not in (tuple, list) or len(batch) < 2 or any(hasattr(x, "shape") or x is None for x in batch):
        return False
    return len({jax.tree.structure(entry) for entry in batch}) == 1
