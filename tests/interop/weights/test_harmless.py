"""Objects beside tensors in a checkpoint: read as data, whatever the file says of them."""

import argparse
import collections
import concurrent.futures
import datetime
import decimal
import pathlib
import pickle
import sys
import time
import types
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lla_torch.weights.checkpoint import load_checkpoint
from lla_torch.weights.harmless import HARMLESS, Array, Dtype, harmless_types
from lla_torch.weights.pickles import read_pickle

from tests.interop.weights.cases import net_of, same, save, trained

SAME = {
    "numpy scalars": [
        np.float64(0.9),
        np.float32(0.5),
        np.float16(2),
        np.int64(3),
        np.uint8(7),
        np.bool_(True),
        np.str_("x"),
    ],
    "collections": [
        collections.OrderedDict(a=1),
        collections.Counter("aab"),
        {1, 2},
        frozenset({1}),
        (1, [2], {3: None}),
    ],
    "defaultdict": collections.defaultdict(list, a=[1]),
    "numbers": [1j, 10**40, -1, 2.5, True, decimal.Decimal("1.5"), b"abc", b"", bytearray(b"ab")],
    "types of torch": [torch.float16, torch.Size([2, 3]), torch.device("cpu"), torch.strided],
    "dates": [
        datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
        datetime.date(2024, 1, 2),
        datetime.timedelta(3),
    ],
    "records": [argparse.Namespace(lr=0.1, layers=[1]), types.SimpleNamespace(a=1)],
}
OTHERWISE = {
    "paths": (pathlib.Path("runs") / "a", "runs/a"),
    "deque": (collections.deque([1, 2], 3), [1, 2]),
    "range": (range(10**15), (0, 10**15, 1)),
    "slice": (slice(1, 2), (1, 2, None)),
    "dates of numpy": ([np.datetime64("1970-01-03", "D"), np.timedelta64(3, "s")], [2, 3]),
    "version of torch": (torch.__version__, str(torch.__version__)),
}
ARRAYS = [
    np.arange(6.0).reshape(2, 3),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.arange(3, dtype=">i4"),
    np.array(2.5),
    np.zeros((0, 3)),
    np.array(["a", "bc"]),
    np.array(["a", None], dtype=object),
    np.array([True]),
    np.array([1 + 2j]),
]


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("kind", [*SAME, *OTHERWISE])
def test_what_is_read(tmp_path, kind, new):
    given, expected = OTHERWISE.get(kind, (SAME.get(kind),) * 2)
    path = save({"x": given}, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    assert read_pickle(path, 0)["x"] == expected


@pytest.mark.parametrize("array", ARRAYS, ids=str)
def test_arrays(tmp_path, array):
    got = read_pickle(save(array, tmp_path / "a.pth"), 0)
    assert got.shape == array.shape
    assert got.dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
    assert got.tolist() == array.tolist()


def test_names_that_numpy_has_had(tmp_path):
    path = save({"acc": np.float64(0.25), "w": np.ones(2)}, tmp_path / "a.pth")
    renamed = save({"acc": np.float64(0.25), "w": np.ones(2)}, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    renamed.write_bytes(renamed.read_bytes().replace(b"numpy._core.", b"numpy.core."))
    for each in (path, renamed):
        got = read_pickle(each, 0)
        assert got["acc"] == 0.25
        assert got["w"].tolist() == [1, 1]


def test_the_settings_of_other_packages_are_dicts():
    with harmless_types():
        names = torch.serialization.get_safe_globals()
    kinds = {name: kind for kind, name in (each for each in names if isinstance(each, tuple))}
    assert kinds["lightning_fabric.utilities.data.AttributeDict"] is collections.OrderedDict


class Setting:
    """Stands for omegaconf's classes, which need not be installed."""


@pytest.mark.parametrize("new", [True, False])
def test_settings_of_hydra_and_fairseq(tmp_path, monkeypatch, new):
    classes = {}
    for name in ("dictconfig.DictConfig", "base.ContainerMetadata", "base.Metadata", "nodes.AnyNode"):
        module, kind = name.split(".")
        classes[kind] = type(kind, (Setting,), {"__module__": f"omegaconf.{module}"})
        place = sys.modules.get(f"omegaconf.{module}", types.ModuleType(f"omegaconf.{module}"))
        setattr(place, kind, classes[kind])
        monkeypatch.setitem(sys.modules, f"omegaconf.{module}", place)
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))

    def made(kind, **state):
        result = classes[kind]()
        result.__dict__.update(state)
        return result

    rate = made("AnyNode", _val=0.1, _metadata=made("Metadata", ref_type=Any, object_type=None, key="lr"))
    about = made("ContainerMetadata", ref_type=Any, object_type=dict, resolver_cache=collections.defaultdict(dict))
    settings = made("DictConfig", _metadata=about, _content={"lr": rate}, _parent=None)
    rate._parent = settings
    net, state = net_of(trained(0)), trained().state_dict()
    content = {"model": state, "cfg": settings, "hparams_type": classes["DictConfig"]}
    path = save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    same(load_checkpoint(path, net), state)
    assert read_pickle(path, 0)["cfg"]._content["lr"]._val == 0.1


def test_beside_weights(tmp_path):
    net, state = net_of(trained(0)), trained().state_dict()
    content = {"state_dict": state, "best_acc": np.float64(0.9), **SAME, "history": ARRAYS}
    content["types"] = [np.float32, np.uint32, np.complex64, np.str_, np.datetime64, int]
    same(load_checkpoint(save(content, tmp_path / "a.pth"), net), state)


def test_the_caller_keeps_what_it_allowed():
    before = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([np.dtype, collections.UserDict]):
        with harmless_types():
            inside = torch.serialization.get_safe_globals()
            assert collections.UserDict in inside
            assert np.dtype not in inside  # ours is taken
            assert set(HARMLESS) <= set(inside)
        assert {np.dtype, collections.UserDict} <= set(torch.serialization.get_safe_globals())
    assert set(torch.serialization.get_safe_globals()) == set(before)


def test_what_a_file_may_not_say_of_arrays(tmp_path):
    array = Array(10**12, "O")
    assert array.shape == (0,)  # nothing is allocated
    for shape, text, content in (
        ((10**9,), "f8", b"12345678"),
        ((-1,), "f8", b""),
        ((1,), "O", b"1"),
        ((1,), "f8", [1]),
    ):
        with pytest.raises(pickle.UnpicklingError, match="shape and content disagree"):
            array.__setstate__((1, shape, Dtype(text), False, content))
    for text in ("V8", "M9", "f8,f8", b"f8", 3, "S" + "9" * 20):
        with pytest.raises(pickle.UnpicklingError, match="which are no numbers"):
            Dtype(text)
    path = save(np.zeros(2, dtype=[("a", "f4")]), tmp_path / "a.pth")
    with pytest.raises(
        ValueError, match="numpy entries of type 'V4', which are no numbers; nothing of it was executed"
    ):
        read_pickle(path, 0)


def test_readers_in_several_threads_leave_torchs_list_as_it_was():
    before = torch.serialization.get_safe_globals()

    def enter(_):
        with harmless_types():
            time.sleep(0.01)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(8)))
    assert torch.serialization.get_safe_globals() == before
