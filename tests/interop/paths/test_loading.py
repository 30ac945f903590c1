"""Recordings and checkpoints of torch as trajectories of the converted network."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core.arguments import Misuse

torch = pytest.importorskip("torch")
lla_torch = pytest.importorskip("lla_torch")
nn = torch.nn


class Network(nn.Module):
    """Rows behind the flatten have another order than torch's, and its last weight is tied to the first."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 2)
        self.bn = nn.BatchNorm2d(2)
        self.fc = nn.Linear(8, 3)
        self.out = nn.Linear(8, 3)
        self.out.weight = self.fc.weight

    def forward(self, x):
        x = self.bn(self.conv(x)).flatten(1)
        return self.fc(x) + self.out(x)


def fill(module, value):
    with torch.no_grad():
        for i, x in enumerate(module.parameters()):
            x.copy_(torch.arange(x.numel()).reshape(x.shape) + 100 * i + value)
        module.bn.running_mean.fill_(value)
    return module


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return lla_torch.convert(Network(), torch.ones(2, 1, 3, 3))


def expected(net, value):
    return lla_torch.load_checkpoint(fill(Network(), value).state_dict(), net)


def check(path, net, values):
    assert len(path) == len(values)
    state = net.loss(nn.CrossEntropyLoss()).state
    for i, value in enumerate(values):
        wanted = expected(net, value)
        jax.tree.map(np.testing.assert_array_equal, path[i], wanted.variables["params"])
        assert jax.tree.structure(path[i]) == jax.tree.structure(net.variables["params"])
        assert jax.tree.structure(path.state(i)) == jax.tree.structure(state)
        assert float(path.state(i)["batch_stats"]["bn"]["mean"][0]) == value


@pytest.fixture
def files(tmp_path):
    """Checkpoints 2 and 10 of torch.save, the latter of a training with DataParallel, and 11 of safetensors."""
    save_file = pytest.importorskip("safetensors.torch").save_file
    torch.save(fill(Network(), 2).state_dict(), tmp_path / "epoch2.pth")
    state = {f"module.{name}": x for name, x in fill(Network(), 10).state_dict().items()}
    torch.save({"model": state, "epoch": 10}, tmp_path / "epoch10.pth")
    save_file(
        dict(fill(Network(), 11).named_parameters()) | dict(fill(Network(), 11).named_buffers()),
        tmp_path / "11.safetensors",
    )
    return tmp_path


def test_checkpoint_files_are_a_trajectory_in_the_order_of_their_numbers(files, net):
    path = lla_torch.load_path(str(files / "epoch*.pth"), net)
    check(path, net, [2, 10])
    np.testing.assert_array_equal(path.steps, [2, 10])
    assert path.names == ("epoch2.pth", "epoch10.pth")
    path = lla_torch.load_path([files / "epoch10.pth", str(files / "epoch2.pth"), files / "11.safetensors"], net)
    check(path, net, [10, 2, 11])
    np.testing.assert_array_equal(path.steps, [0, 1, 2])


def test_a_recording_is_a_trajectory_of_the_network(tmp_path, net):
    module = fill(Network(), 0)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    with lla_torch.record_training(module, tmp_path, every=1) as recording:
        for value in (1, 2):
            recording.note(value)
            fill(module, value)
            optimizer.step()
    path = lla_torch.load_path(tmp_path, net)
    check(path, net, [0, 1, 2])
    np.testing.assert_array_equal(path.steps, [0, 1, 2])
    np.testing.assert_array_equal(path.losses, [np.nan, 1, 2])
    wrapped = nn.DataParallel(module)  # whose names have a level more
    lla_torch.record_training(wrapped, tmp_path / "wrapped").close()
    check(lla_torch.load_path(tmp_path / "wrapped", net), net, [2])


def test_a_checkpoint_of_another_network_and_one_that_is_not_finite_are_named(files, net):
    torch.save(nn.Linear(3, 4).state_dict(), files / "epoch3.pth")
    path = lla_torch.load_path(str(files / "epoch*.pth"), net)
    with pytest.raises(ValueError, match=r"epoch3.pth.* does not fit the network"):
        path[1]
    with torch.no_grad():
        module = fill(Network(), 1)
        module.fc.weight[0, 0] = torch.nan
        torch.save(module.state_dict(), files / "epoch3.pth")
    with pytest.warns(UserWarning, match="not finite"), pytest.raises(Misuse, match=r"path\[1\] \(epoch3.pth\)\['fc/k"):
        path[1]
    lla_torch.record_training(nn.Linear(3, 4), files / "traj").close()
    with pytest.raises(Misuse, match=r"step 0: path: the state_dict does not fit"):
        lla_torch.load_path(files / "traj", net)


@pytest.mark.parametrize(
    ("name", "message"),
    [("none*.pth", "matches no file"), ("none.pth", "there is no such file"), ("a.npz", "entries|not a|holds")],
)
def test_files_that_are_no_checkpoints_are_named(tmp_path, net, name, message):
    np.savez(tmp_path / "a.npz", weight=np.ones(3))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        lla_torch.load_path(str(tmp_path / name), net)


def test_a_net_is_asked_for(tmp_path):
    with pytest.raises(Misuse, match=r"net: .*the converted network"):
        lla_torch.load_path([], Network())


def test_no_files_are_refused(net):
    with pytest.raises(Misuse, match="files: none given"):
        lla_torch.load_path([], net)


def test_a_path_of_torch_is_a_path_as_any_other(files, net):
    path = lla.paths.as_trajectory(lla_torch.load_path(str(files / "epoch*.pth"), net), least=2)
    assert path.has_states
