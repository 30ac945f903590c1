"""Every network of the zoo against torch: outputs, gradient, Hessian product and statistics in float64."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lla_torch

from tests import helpers
from tests.interop.parity import (
    Reference,
    arrays,
    assert_named,
    assert_outputs,
    computed,
    direction,
    leaves,
    mixing,
    plain_torch,
    reference,
)
from tests.interop.zoo import ZOO, Entry

EXPORTED, CHECKED = 7, 4
BY_NAME = {entry.name: entry for entry in ZOO}

pytestmark = pytest.mark.usefixtures("x64")


class Untouched(NamedTuple):
    """All that a conversion must leave alone."""

    state: dict[str, Any]
    modes: list[bool]
    requires: list[bool]
    grads: list[bool]
    rng: Any
    grad_mode: bool
    dtype: Any


def snapshot(module: Any) -> Untouched:
    return Untouched(
        {name: t.detach().clone() for name, t in module.state_dict().items()},
        [m.training for m in module.modules()],
        [p.requires_grad for p in module.parameters()],
        [p.grad is None for p in module.parameters()],
        torch.get_rng_state(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
    )


class Case(NamedTuple):
    """A converted entry with inputs at another batch size, shared by its tests."""

    entry: Entry
    module: Any
    net: Any
    before: Untouched
    after: Untouched
    args: tuple
    kwargs: dict
    tangent: Any


@functools.cache
def case_of(name: str) -> Case:
    entry = BY_NAME[name]
    module = entry.factory(0)
    if entry.has_train:  # modes that differ from one submodule to the next are to be kept
        next(reversed(list(module.children()))).train()
    before = snapshot(module)
    net = lla_torch.convert(
        module,
        entry.inputs(EXPORTED, 0),
        example_kwargs=entry.kwargs(EXPORTED, 0),
        train=entry.has_train,
    )
    after = snapshot(module)
    module.eval()
    args, kwargs = entry.inputs(CHECKED, 1), entry.kwargs(CHECKED, 1)
    return Case(entry, module, net, before, after, args, kwargs, direction(net.variables["params"]))


class Run(NamedTuple):
    """torch's results and JAX's, for one mode."""

    torch: Reference
    outputs: Any
    grads: Any
    hvp: Any
    state: Any
    draws: Any


@functools.cache
def run_of(name: str, train: bool) -> Run:
    """Both sides, once; the Hessian product in eval mode only."""
    case = case_of(name)
    module = case.module.train(train)
    draws = None
    try:
        if train or case.entry.samples:
            with plain_torch(), torch.random.fork_rng():
                torch.manual_seed(0)
                recorded, draws = lla_torch.record(module, *case.args, **case.kwargs)
            weights = mixing(recorded)
        else:
            with plain_torch(), torch.no_grad():
                weights = mixing(module(*case.args, **case.kwargs))
        tangent = None if train else lla_torch.to_state_dict(case.net, case.tangent)
        expected = reference(
            module, case.args, case.kwargs, tangent=tangent, double=case.entry.torch_double_backward, seed=0
        )
    finally:
        module.eval()
    args, kwargs = arrays(case.args), arrays(case.kwargs)
    results = computed(
        case.net.apply, case.net.variables, args, kwargs, weights, case.tangent, draws, train=train, second=not train
    )
    return Run(expected, *results, draws)


@pytest.fixture(scope="module", params=list(BY_NAME))
def name(request) -> str:
    """Of an entry; its tests run one after the other."""
    return request.param


@pytest.fixture
def case(name, x64) -> Case:
    return case_of(name)


TRAINED = [entry.name for entry in ZOO if entry.has_train]


def by_torch_name(case: Case, tree: Any) -> dict[str, np.ndarray]:
    return {name: t.numpy() for name, t in lla_torch.to_state_dict(case.net, tree).items()}


def test_ordinary_networks_need_neither_64_bit_integers_nor_barriers(case):
    programs = [p for p in (case.net.function.eval, case.net.function.train) if p is not None]
    assert not [i.operator.name for p in programs for i in p.instructions if i.wide or i.kept]


def test_the_users_module_is_untouched(case):
    before, after = case.before, case.after
    assert list(before.state) == list(after.state)
    assert all(torch.equal(before.state[name], after.state[name]) for name in before.state)
    assert torch.equal(before.rng, after.rng)
    assert before._replace(state={}, rng=None) == after._replace(state={}, rng=None)


def test_state_dict_comes_back_bit_for_bit(case):
    there, back = case.module.state_dict(), lla_torch.to_state_dict(case.net)
    assert list(back) == list(there)
    for name, tensor in there.items():
        assert back[name].dtype == tensor.dtype, name
        assert torch.equal(back[name], tensor), name


def test_outputs(case):
    run = run_of(case.entry.name, False)
    assert_outputs(run.outputs, run.torch.outputs, 1e-12, "outputs")


def test_gradient(case):
    run = run_of(case.entry.name, False)
    assert_named(by_torch_name(case, run.grads), run.torch.grads, 1e-10, "gradient")


def test_hessian_product(case):
    run = run_of(case.entry.name, False)
    rtol = 1e-9 if case.entry.torch_double_backward else 1e-6
    assert_named(by_torch_name(case, run.hvp), run.torch.hvp, rtol, "Hessian product")


def test_a_stack_of_weights_is_run_by_vmap(case):
    run = run_of(case.entry.name, False)
    rest = {name: tree for name, tree in case.net.variables.items() if name != "params"}
    args, kwargs = arrays(case.args), arrays(case.kwargs)

    def forward(params, args, kwargs, rest, draws):
        return case.net.apply({"params": params, **rest}, *args, draws=draws, **kwargs)

    params = case.net.variables["params"]
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.1 * leaf]), params)
    both = jax.jit(jax.vmap(forward, in_axes=(0, None, None, None, None)))(stack, args, kwargs, rest, run.draws)
    with torch.no_grad():
        scaled = case.entry.factory(0)
        for parameter in scaled.parameters():
            parameter.mul_(1.1)
    expected = reference(scaled, case.args, case.kwargs).outputs
    pick = lambda i: jax.tree.map(lambda leaf: leaf[i], both)  # noqa: E731
    assert_outputs(pick(0), run.torch.outputs, 1e-12, "first of the stack")
    assert_outputs(pick(1), expected, 1e-12, "second of the stack")


@pytest.mark.parametrize("name", TRAINED, indirect=True, scope="module")
def test_train_mode_gives_outputs_gradient_and_statistics(case):
    run = run_of(case.entry.name, True)
    assert_outputs(run.outputs, run.torch.outputs, 1e-12, "outputs")
    assert_named(by_torch_name(case, run.grads), run.torch.grads, 1e-10, "gradient")
    rest = {name: tree for name, tree in case.net.variables.items() if name != "params"}
    assert jax.tree.structure(run.state) == jax.tree.structure(rest)
    state = lla_torch.to_state_dict(case.net, state=run.state)
    after = {name: t.numpy() for name, t in state.items()}
    assert_named(after, run.torch.state, 1e-12, "statistics")


def test_record_leaves_the_module_and_the_generator_alone():
    entry = BY_NAME["vgg"]
    module = entry.factory(0).train()
    torch.manual_seed(5)
    before = snapshot(module)
    _, draws = lla_torch.record(module, *entry.inputs(CHECKED, 1))
    after = snapshot(module)
    assert len(draws) == 2
    assert all(torch.equal(before.state[name], after.state[name]) for name in before.state)
    assert torch.equal(before.rng, after.rng)
    assert before._replace(state={}, rng=None) == after._replace(state={}, rng=None)


@pytest.mark.parametrize("name", ["mlp", "resnet-basic", "gpt"], ids=str)
def test_a_second_instance_compiles_nothing(name):
    entry = BY_NAME[name]
    run = jax.jit(lambda function, variables, args: function(variables, args, {})[0], static_argnums=0)
    args = arrays(entry.inputs(CHECKED, 1))
    first = lla_torch.convert(entry.factory(0), entry.inputs(EXPORTED, 0))
    jax.block_until_ready(run(first.function, first.variables, args))
    module = entry.factory(1)
    second = lla_torch.convert(module, entry.inputs(EXPORTED, 1))
    with helpers.compilations() as seen:
        outputs = jax.block_until_ready(run(second.function, second.variables, args))
    assert seen.count == 0
    with plain_torch(), torch.no_grad():
        expected = arrays(module(*entry.inputs(CHECKED, 1)))
    assert_outputs(outputs, expected, 1e-12, "outputs of the second")


def test_new_random_numbers_come_from_a_key():
    case = case_of("vae")
    args = arrays(case.args)

    def outputs(key: int) -> list[np.ndarray]:
        return [np.asarray(x) for x in leaves(case.net.apply(case.net.variables, *args, key=jax.random.key(key)))]

    first, again, other = outputs(0), outputs(0), outputs(1)
    assert np.array_equal(first[0], again[0])
    assert not np.allclose(first[0], other[0])
    assert np.array_equal(first[1], other[1])  # the mean does not sample
    with pytest.raises(ValueError, match="key"):
        case.net.apply(case.net.variables, *args)
