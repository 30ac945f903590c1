"""Recording the training of a torch module: what is counted, kept and left as it was."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core.arguments import Misuse

torch = pytest.importorskip("torch")
lla_torch = pytest.importorskip("lla_torch")
nn = torch.nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.bn = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.2)
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, x):
        return self.drop(self.bn(self.fc(x)))


def train(module, optimizer, steps, accumulate=1, after=lambda i, loss: None):
    generator = torch.Generator().manual_seed(1)
    for i in range(steps):
        for _ in range(accumulate):
            loss = module(torch.randn(8, 4, generator=generator)).square().mean()
            loss.backward()
        after(i, loss)
        optimizer.step()
        optimizer.zero_grad()
    return module


def make(seed=0, named=False):
    torch.manual_seed(seed)
    module = Network()
    parameters = module.named_parameters() if named else module.parameters()
    return module, torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def bits(module):
    return {name: x.clone() for name, x in module.state_dict().items()}


def test_a_recorded_training_is_the_same_to_the_bit(tmp_path):
    plain, optimizer = make()
    train(plain, optimizer, 12)
    numbers = torch.rand(3)
    module, optimizer = make()
    with lla_torch.record_training(module, tmp_path, every=2) as recording:
        train(module, optimizer, 12, after=lambda i, loss: recording.note(loss))
    assert torch.equal(torch.rand(3), numbers)
    for name, tensor in bits(plain).items():
        assert torch.equal(tensor, module.state_dict()[name])
    assert all(x.grad is None for x in module.parameters())


@pytest.mark.parametrize("way", ["module", "optimizer", "names"])
def test_weights_after_each_step_are_recorded_by_their_torch_names(tmp_path, way):
    module, optimizer = make(named=way == "names")
    seen, losses = [bits(module)], []
    record = {
        "module": lambda: lla_torch.record_training(module, tmp_path, 2),
        "optimizer": lambda: lla_torch.record_training(optimizer, tmp_path, 2, module=module),
        "names": lambda: lla_torch.record_training(optimizer, tmp_path, 2),
    }[way]
    with record() as recording:

        def after(i, loss):
            recording.note(loss)
            losses.append(float(loss.detach()))
            if i:
                seen.append(bits(module))

        train(module, optimizer, 5, accumulate=3, after=after)
        assert recording.step == 5
    seen.append(bits(module))
    path = lla.paths.load(tmp_path)
    np.testing.assert_array_equal(path.steps, [0, 2, 4, 5])  # the first and the last too
    np.testing.assert_array_equal(path.losses, [np.nan, losses[1], losses[3], np.nan])
    for i, step in enumerate(path.steps):
        params = path[i]
        assert sorted(params) == sorted(name for name, _ in module.named_parameters())
        for name, array in params.items():
            np.testing.assert_array_equal(array, seen[step][name])
        if way == "names":
            assert not path.has_states
    if way != "names":
        assert sorted(path.state(0)) == ["bn.num_batches_tracked", "bn.running_mean", "bn.running_var"]
        assert path.state(-1)["bn.num_batches_tracked"] == 15


def test_the_last_loss_is_recorded_with_the_last_step(tmp_path):
    module, optimizer = make()
    recording = lla_torch.record_training(module, tmp_path, every=1)
    recording.note(torch.tensor([0.5]))
    optimizer.step()
    recording.note(0.25)
    optimizer.step()
    recording.close()
    recording.close()
    optimizer.step()
    path = lla.paths.load(tmp_path)
    np.testing.assert_array_equal(path.losses, [np.nan, 0.5, 0.25])


def test_of_several_optimizers_a_step_is_one_of_each_and_others_do_not_count(tmp_path):
    module, _ = make()
    one = torch.optim.SGD(module.fc.parameters(), lr=0.1)
    two = torch.optim.Adam(module.bn.parameters(), lr=0.1)
    foreign = make(1)[1]
    recording = lla_torch.record_training(module, tmp_path, every=100)
    for _ in range(4):
        foreign.step()
        one.step()
        two.step()
    assert recording.step == 4
    recording.close()
    assert recording.step == 4


def test_an_optimizer_that_takes_the_place_of_another_counts(tmp_path):
    module, first = make()
    recording = lla_torch.record_training(module, tmp_path, every=100)
    for _ in range(3):
        first.step()
    second = torch.optim.Adam(module.parameters())
    for _ in range(3):
        second.step()
    assert recording.step in (5, 6)
    recording.close()


def test_a_step_that_is_skipped_does_not_count(tmp_path):
    module, optimizer = make()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    recording = lla_torch.record_training(module, tmp_path)
    for factor in (1.0, float("inf"), 1.0):
        loss = factor * module(torch.ones(2, 4)).sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert recording.step == 2
    recording.close()


def test_no_hook_is_left_and_a_module_that_is_gone_ends_its_recording(tmp_path):
    from torch.optim import optimizer as base

    before = len(base._global_optimizer_post_hooks)
    module, optimizer = make()

    def fail(module=module, optimizer=optimizer):
        with lla_torch.record_training(module, tmp_path / "a", every=5):
            optimizer.step()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert len(base._global_optimizer_post_hooks) == before
    np.testing.assert_array_equal(lla.paths.load(tmp_path / "a").steps, [0])  # perhaps in the middle of a step
    lla_torch.record_training(module, tmp_path / "b")
    assert len(base._global_optimizer_post_hooks) == before + 1
    alive = weakref.ref(module)
    del module, optimizer, fail
    gc.collect()
    assert alive() is None
    make()[1].step()
    assert len(base._global_optimizer_post_hooks) == before


def test_a_continued_training_goes_on(tmp_path):
    module, optimizer = make()
    with lla_torch.record_training(module, tmp_path, every=1):
        train(module, optimizer, 3)
    with (
        pytest.warns(UserWarning, match="recorded anew from step 2 on, so 2 later"),
        lla_torch.record_training(module, tmp_path, every=1, start=2),
    ):
        train(module, optimizer, 2)
    np.testing.assert_array_equal(lla.paths.load(tmp_path).steps, [0, 1, 2, 3, 4])


def test_tensors_that_are_no_real_weights_are_kept_beside_them(tmp_path):
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    module.phase = nn.Parameter(torch.tensor([1 + 2j]))
    module.count = nn.Parameter(torch.tensor([3]), requires_grad=False)
    lla_torch.record_training(module, tmp_path).close()
    path = lla.paths.load(tmp_path)
    assert path[0]["weight"].dtype.name == "bfloat16"
    np.testing.assert_array_equal(path.state(0)["phase"], [1 + 2j])
    np.testing.assert_array_equal(path.state(0)["count"], [3])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: lla_torch.record_training("net.pth", f), "optimizer_or_module: 'net.pth' given; it must be a torch"),
        (
            lambda f: lla_torch.record_training(make()[1], f),
            "SGD given, whose parameters have no names; pass the module",
        ),
        (lambda f: lla_torch.record_training(make()[1], f, module=make(1)[0]), "module: has none of the optimizer's"),
        (lambda f: lla_torch.record_training(make()[1], f, module=3), "module: 3 given"),
        (lambda f: lla_torch.record_training(make()[0], f, module=make()[0]), "module: given beside a module"),
        (lambda f: lla_torch.record_training(nn.LazyLinear(3), f), "weight has no shape yet; run the module once"),
        (lambda f: lla_torch.record_training(make()[0].to("meta"), f), "fc.weight is on the meta device"),
        (lambda f: lla_torch.record_training(make()[0], f, every=0), "every: 0 given"),
        (lambda f: lla_torch.record_training(make()[0], f, start=-1), "start: -1 given"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_misuse_is_explained(tmp_path, call, message):
    with pytest.raises(Misuse, match=message):
        call(tmp_path)
