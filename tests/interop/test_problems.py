"""torch's loaders as streams, and trained networks as problems."""

import subprocess
import sys
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lla_torch.problems import arrays, problem, stream
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

import lla_jax
from lla_jax.cli import main as cli

torch.manual_seed(0)
X, Y = torch.randn(10, 3), torch.arange(10) % 4
DATA = TensorDataset(X, Y)


class Noisy(Dataset):
    """Random augmentation."""

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return torch.randn(2), i


class Endless(IterableDataset):
    """Knows no length."""

    def __iter__(self):
        return iter(DATA)


def test_batches_of_a_loader():
    data = stream(DataLoader(DATA, 4))
    batches = list(data)
    assert data.num_batches == 3
    assert all(isinstance(b, tuple) and isinstance(b[0], np.ndarray) for b in batches)
    assert [len(b[0]) for b in batches] == [4, 4, 2]
    assert np.array_equal(np.concatenate([b[0] for b in batches]), X)
    assert batches[0][1].dtype == np.int64
    assert len(list(data)) == 3  # again from the start


def test_other_sources():
    for source in (
        [(X[:5], Y[:5]), (X[5:], Y[5:])],
        lambda: iter([(X, Y)]),
        stream([(X, Y)]),
        DataLoader(Endless(), 5),
    ):
        batches = list(stream(source))
        assert np.array_equal(np.concatenate([b[0] for b in batches]), X)
    assert stream(DataLoader(Endless(), 5)).num_batches is None
    with pytest.raises(ValueError, match="one-shot iterator"):
        stream(iter([X]))
    with pytest.raises(ValueError, match="stream: 3 given; it must be a loader"):
        stream(3)
    with pytest.raises(ValueError, match="yielded no batch"):
        stream([])


class Sharded(IterableDataset):
    def __iter__(self):
        return (torch.ones(4, n) for n in (3, 5))


def test_a_data_set_that_is_iterated_and_batches_of_other_lengths():
    for loader in (Sharded(), list(Sharded())):
        assert [x.shape for x in stream(loader)] == [(4, 3), (4, 5)]
        assert [x.shape for x in lla_jax.stream(loader)] == [(4, 3), (4, 5)]


def test_nested_batches():
    Pair = namedtuple("Pair", ["a", "b"])
    batch = {"x": [X, {"y": Y}], "pair": Pair(X.bfloat16(), X.requires_grad_()), "n": np.ones(10), "none": None}
    found = arrays(batch)
    assert isinstance(found["x"], tuple)
    assert isinstance(found["pair"], Pair)
    assert found["pair"].a.dtype == "bfloat16"
    assert np.array_equal(found["pair"].a.astype(np.float32), X.detach().bfloat16().float())
    X.requires_grad_(False)
    assert np.shares_memory(found["x"][0], X.numpy())
    assert np.shares_memory(found["x"][1]["y"], Y.numpy())
    half = X.bfloat16()
    assert np.shares_memory(arrays(half), half.view(torch.uint16).numpy())
    assert np.array_equal(arrays(torch.ones(2, dtype=torch.complex64).conj() * 1j), np.full(2, 1j))
    assert arrays(torch.ones(2, dtype=torch.float8_e4m3fn)).dtype == "float8_e4m3fn"
    with pytest.raises(ValueError, match=r"batch\[1\]\[0\]: a str given; it must be a tensor.*collate_fn"):
        arrays([X, ["cat", "dog"]])
    with pytest.raises(ValueError, match=r"batch: a torch.sparse_coo tensor given; it must be dense"):
        arrays(X.to_sparse())


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(DATA, 4, shuffle=True),
        DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 4, False)),
        DataLoader(DATA, 4, sampler=torch.utils.data.SubsetRandomSampler(range(8))),
    ],
)
def test_shuffling(loader):
    with pytest.raises(ValueError, match=r"shuffle=True or the like \(.*RandomSampler\).*shuffle_ok=True"):
        stream(loader)
    assert sum(len(b[0]) for b in stream(loader, shuffle_ok=True)) in (8, 10)


def test_data_that_differ_from_time_to_time():
    state = torch.get_rng_state()
    for loader in (DataLoader(Noisy(), 3), lambda: iter([torch.randn(3)])):
        with pytest.raises(ValueError, match=r"first batch is another one.*shuffle_ok=True"):
            stream(loader)
        assert len(list(stream(loader, shuffle_ok=True))) > 0
        torch.set_rng_state(state)
    stream(DataLoader(DATA, 4))
    assert torch.equal(torch.get_rng_state(), state)


def test_examples_left_out():
    with pytest.warns(UserWarning, match="drop_last=True leaves out 2 of 10 examples"):
        stream(DataLoader(DATA, 4, drop_last=True))
    sampler = BatchSampler(range(9), 4, drop_last=True)
    with pytest.warns(UserWarning, match="drop_last=True leaves out 1 of 9 examples"):
        stream(DataLoader(DATA, batch_sampler=sampler))
    with pytest.warns(UserWarning, match="drop_last=True may leave out"):
        stream(DataLoader(Endless(), 4, drop_last=True))
    stream(DataLoader(DATA, 5, drop_last=True))  # nothing is left out


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    start = {name: x.clone() for name, x in module.state_dict().items()}
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(X), Y).backward()
        optimizer.step()
    return module, optimizer, start


def cross_entropy(outputs, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), labels[:, None], 1)[:, 0]


def accuracy(outputs, batch):
    return outputs.argmax(-1) == batch[1]


def test_problem(trained, tmp_path):
    module, optimizer, start = trained
    torch.save(start, tmp_path / "start.pth")
    made = problem(
        module,
        cross_entropy,
        DataLoader(DATA, 4),
        optimizer,
        metrics={"accuracy": accuracy},
        extra_data={"test": (X[:6], Y[:6])},
        checkpoints=[tmp_path / "start.pth", {k: v.double() for k, v in start.items()}],
    )
    alone = problem(module, cross_entropy, (X, Y), checkpoints=tmp_path / "start.pth").checkpoints
    assert len(alone) == 1
    jax.tree.map(np.testing.assert_array_equal, alone[0], made.checkpoints[0])
    assert isinstance(made, lla_jax.Problem)
    before, now = (torch.func.functional_call(module, s, (X,)).detach() for s in (start, module.state_dict()))
    moments = lla_jax.directions.adam_moments(made.opt_state, made.params)
    axes = lla_jax.directions.between(made.params, made.checkpoints[0])
    grid = lla_jax.grid(extent=1, points=3, dims=1)
    found = lla_jax.evaluate(
        made.loss, made.params, made.data, axes, grid, metrics=made.metrics, extra_data=made.extra_data
    )
    loss = nn.functional.cross_entropy
    assert found.values["loss"][1] == pytest.approx(float(loss(now, Y)), rel=1e-5)
    assert found.values["loss"][2] == pytest.approx(float(loss(before, Y)), rel=1e-5)
    assert found.values["test_loss"][1] == pytest.approx(float(loss(now[:6], Y[:6])), rel=1e-5)
    assert found.values["accuracy"][1] == pytest.approx(float((now.argmax(-1) == Y).float().mean()), rel=1e-6)
    assert moments.num == 2
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, *made.checkpoints)))


@pytest.mark.parametrize("data", [(X, Y), DATA, (X.numpy(), Y.numpy())])
def test_problem_in_memory(trained, data):
    module = trained[0]
    made = problem(module, cross_entropy, data, example_inputs=X[:3])
    assert isinstance(made.data, tuple)
    assert made.opt_state is None
    assert made.checkpoints == ()
    with torch.no_grad():
        want = float(nn.functional.cross_entropy(module(X), Y))
    single = problem(module, cross_entropy, (X[:1], Y[:1]))  # the conversion does not take 1 for a fixed size
    assert single.loss.apply(single.params, single.loss.state, made.data, False)[0].shape == (10, 4)
    outputs = made.loss.apply(made.params, made.loss.state, made.data, False)[0]
    assert float(made.loss.criterion(outputs, made.data).mean()) == pytest.approx(want, rel=1e-5)


def test_problem_with_batches_as_dicts(trained):
    module, optimizer, _ = trained
    loader = [{"x": X[:6], "y": Y[:6]}, {"x": X[6:], "y": Y[6:]}]
    with pytest.raises(ValueError, match=r"dicts with \['x', 'y'\]; pass inputs=lambda"):
        problem(module, cross_entropy, loader)
    names = [name for name, _ in module.named_parameters()]
    made = problem(
        module,
        cross_entropy,
        loader,
        optimizer.state_dict(),
        optimizer_params=names,
        inputs=lambda b: {"input": b["x"]},
        labels=lambda b: b["y"],
    )
    batch = next(iter(made.data))
    outputs = made.loss.apply(made.params, made.loss.state, batch, False)[0]
    assert made.loss.criterion(outputs, batch).shape == (6,)
    assert int(made.opt_state.count) == 3


def test_problem_misuse(trained):
    module = trained[0]
    with pytest.raises(ValueError, match=r"loader: a list of tensors can mean"):
        problem(module, cross_entropy, [X, Y])
    with pytest.raises(ValueError, match=r"extra_data\['test'\]: a Noisy yields single examples"):
        problem(module, cross_entropy, (X, Y), extra_data={"test": Noisy()})
    with pytest.raises(ValueError, match="leaves of different length"):
        problem(module, cross_entropy, (X, Y[:5]))
    with pytest.raises(ValueError, match="optimizer_params: given without optimizer"):
        problem(module, cross_entropy, (X, Y), optimizer_params=["a"])
    with pytest.raises(ValueError, match="shuffle=True"):
        problem(module, cross_entropy, DataLoader(DATA, 4, shuffle=True))


def test_the_command_line_takes_a_torch_factory(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch, lla_torch\n"
        "def factory():\n"
        "    torch.manual_seed(0)\n"
        "    module = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))\n"
        "    x, y = torch.randn(20, 5), torch.randint(3, (20,))\n"
        "    optimizer = torch.optim.Adam(module.parameters())\n"
        "    torch.nn.functional.cross_entropy(module(x), y).backward(); optimizer.step()\n"
        "    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)\n"
        "    return lla_torch.problem(module, torch.nn.CrossEntropyLoss(), loader, optimizer)\n"
    )
    out = tmp_path / "run"
    command = [sys.executable, "-m", "lla_jax", "landscape", "--problem", f"{tmp_path}/mine.py:factory"]
    subprocess.run([*command, "--axes", "adam", "--points", "3", "--out", str(out)], check=True, capture_output=True)
    plane = lla_jax.load(next(p for p in out.glob("*.npz")))
    assert plane.shape == (3, 3)
    assert np.isfinite(plane.values["loss"]).all()


def test_a_problem_has_the_statistics_of_its_checkpoints_and_reads_more(tmp_path):
    module = nn.Sequential(nn.Linear(X.shape[1], 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()
    for i in (0, 2):
        module[1].running_mean.fill_(float(i))
        torch.save(module.state_dict(), tmp_path / f"step{i}.pth")
    module[1].running_mean.fill_(5.0)
    made = problem(module, cross_entropy, (X, Y), checkpoints=[tmp_path / "step0.pth", tmp_path / "step2.pth"])
    assert jax.tree.structure(made.states[0]) == jax.tree.structure(made.loss.state)
    path = made.read(str(tmp_path / "*.pth"))
    assert path.steps.tolist() == [0, 2]
    for i in range(2):
        jax.tree.map(np.testing.assert_array_equal, path.state(i), made.states[i])
        jax.tree.map(np.testing.assert_array_equal, path[i], made.checkpoints[i])


def test_a_curve_needs_a_network_with_a_train_mode(tmp_path, monkeypatch, capsys):
    (tmp_path / "nets.py").write_text(
        "import torch, lla_torch\n"
        "module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)).eval()\n"
        "torch.save(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))"
        ".state_dict(), 'other.pth')\n"
        "def make():\n"
        "    data = torch.randn(8, 3), torch.arange(8) % 2\n"
        "    return lla_torch.problem(module, torch.nn.CrossEntropyLoss(), data, checkpoints='other.pth')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "prepare_jax", lambda devices: None)
    assert cli.main(["connect", "--problem", "nets.py:make", "--steps", "1"]) == 2
    assert "Problem.loss: has no train mode" in capsys.readouterr().err
