"""Objects beside tensors in a checkpoint: read as data, whatever the file says of them."""

import argparse
import collections
import concurrent.futures
import datetime
import decimal
import pathlib
import pickle
import time
import types

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
    "numbers": [1j, 10**40, -1, 2.5, True, decimal.Decimal("1.5"), b"abc", b""],
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


def test_beside_weights(tmp_path):
    net, state = net_of(trained(0)), trained().state_dict()
    content = {"state_dict": state, "best_acc": np.float64(0.9), **SAME, "history": ARRAYS}
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
    for text in ("V8", "M8", "f8,f8", b"f8", 3, "S" + "9" * 20):
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
