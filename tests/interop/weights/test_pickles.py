"""Files of torch.save: what is read of them, what is refused, and damage that is found."""

import collections
import json
import os
import pickle
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lla_torch.weights.checkpoint import load_checkpoint
from torch import nn

from tests.interop.weights.cases import Hostile, net_of, same, save, trained, write_shards


@pytest.fixture
def net():
    return net_of(trained(0))


class Config:
    def __init__(self, lr):
        self.lr = lr


def save_old(content, path):
    return save(content, path, _use_new_zipfile_serialization=False)


def save_plainly(content, path):
    path.write_bytes(pickle.dumps(content, 2))
    return path


WRITERS = {
    "zip": lambda x, folder: save(x, folder / "a.pth"),
    "old": lambda x, folder: save_old(x, folder / "a.pth"),
    "pickle": lambda x, folder: save_plainly(x, folder / "a.pkl"),
    "folder": lambda x, folder: save(x, folder / "pytorch_model.bin").parent,
    "shard": lambda x, folder: write_shards(
        trained().state_dict(), folder, "pytorch_model.bin", lambda part, path: save({**part, "x": x}, path)
    ),
    "old shard": lambda x, folder: write_shards(
        trained().state_dict(), folder, "pytorch_model.bin", lambda part, path: save_old({**part, "x": x}, path)
    ),
}
HIDING = {
    "itself": lambda x: x,
    "nested": lambda x: {"state_dict": {"fc.weight": [({"a": (x,)},)]}},
    "key": lambda x: {x: 1},
    "defaultdict": lambda x: collections.defaultdict(list, a=x),
    "OrderedDict": lambda x: collections.OrderedDict(a=x),
    "set": lambda x: {x},
    "deque": lambda x: collections.deque([x]),
    "array": lambda x: np.array([x, None], dtype=object),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("hiding", HIDING)
def test_nothing_of_a_file_is_executed(tmp_path, net, writer, hiding):
    target = tmp_path / "executed"
    content = HIDING[hiding](Hostile(target))
    path = WRITERS[writer](content, tmp_path)
    with pytest.raises(ValueError, match=r"refused, .*\['posix.system'\].*save\(module.state_dict\(\)") as error:
        load_checkpoint(path, net)
    assert isinstance(error.value.__cause__, pickle.UnpicklingError)
    assert "weights_only" not in str(error.value)
    assert not target.exists()


@pytest.mark.parametrize("writer", ["zip", "old"])
def test_the_factory_of_a_dict_is_no_function(tmp_path, net, writer):
    path = WRITERS[writer]({"state_dict": trained().state_dict(), "x": collections.defaultdict(os.getcwd)}, tmp_path)
    with pytest.raises(ValueError, match=r"\['posix.getcwd'\]"):
        load_checkpoint(path, net)


def test_newer_protocols(tmp_path, net):
    path = save({"state_dict": trained().state_dict()}, tmp_path / "a.pth", pickle_protocol=4)
    with pytest.raises(ValueError, match=r"no pickle of protocol 2, torch.save's default; nothing of it was executed"):
        load_checkpoint(path, net)
    path.write_bytes(pickle.dumps(Hostile(tmp_path / "executed")))
    with pytest.raises(ValueError, match=r"not a checkpoint of torch.save.*nothing of it was executed"):
        load_checkpoint(path, net)
    assert not (tmp_path / "executed").exists()
    save_plainly({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"written by pickle.dump"):
        load_checkpoint(path, net)


BOMBS = {
    "bytearray": b"cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x01\x85R",
    "bytearray of Python 2": b"c__builtin__\nbytearray\n\x8a\x05\0\0\0\0\x01\x85R",
    "bytearray by number": b"cbuiltins\nbytearray\nq\x010h\x01\x8a\x05\0\0\0\0\x01\x85R",
    "punycode": b"c_codecs\nencode\nX\x02\0\0\0\xc3\xa9X\x08\0\0\0PunyCode\x86R",
    "levels of tuples": b"}" + b")" + b"\x85" * 200_000 + b"K\x01s",
    "levels of pairs": b"})" + b"K\x01\x86" * 200_000 + b"K\x01s",
    "doubled tuples": b"})" + b"q\x01h\x01\x86" * 40 + b"K\x01s",
    "idna": b"X\x04\0\0\0idna0c_codecs\nencode\nX\x02\0\0\0\xc3\xa9X\x04\0\0\0idna\x86R",
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kind", BOMBS)
def test_small_pickles_that_would_take_all_memory_or_time(tmp_path, net, kind, old):
    path = save_old({}, tmp_path / "a.pth") if old else tmp_path / "a.pth"
    content = b"\x80\x02" + BOMBS[kind] + b"."
    if old:
        whole, empty = path.read_bytes(), pickle.dumps({}, 2)
        assert empty in whole
        path.write_bytes(whole.replace(empty, content))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", content)
            archive.writestr("a/version", "3")
    with pytest.raises(
        ValueError, match=r"refused, because it holds .*(bytearray|punycode|PunyCode|idna|nest of tuples)"
    ):
        load_checkpoint(path, net)


@pytest.mark.parametrize("writer", ["zip", "old"])
def test_a_state_dict_at_many_keys_is_one(tmp_path, net, writer):
    state = trained().state_dict()
    content = {"other": torch.ones(1)}
    for _ in range(3):  # a million ways to it
        content = {f"k{i}": content for i in range(100)}
    path = WRITERS[writer]({**content, "model": state, "state_dict": state, "b": [b"a", bytearray(b"a")]}, tmp_path)
    same(load_checkpoint(path, net), state)
    same(load_checkpoint(path, net, key="state_dict"), state)


def test_whatever_a_reader_raises(tmp_path, net):
    whole = save_old({"x": np.float64(0.9), **trained().state_dict()}, tmp_path / "a.pth").read_bytes()
    contents = [whole[:56], whole.replace(b"latin1", b"lati~1"), b"\x80\x02cdecimal\nDecimal\nX\x01\0\0\0x\x85R."]
    for content in contents:  # struct.error, LookupError, ArithmeticError
        (tmp_path / "b.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"not a checkpoint of torch.save, or a damaged one"):
            load_checkpoint(tmp_path / "b.pth", net)


def test_other_objects_in_files(tmp_path, net):
    module = trained()
    with pytest.raises(ValueError, match=r"Linear'\].*save\(module.state_dict\(\)"):
        load_checkpoint(save(nn.Linear(2, 2), tmp_path / "module.pth"), net)
    path = save({"model": module.state_dict(), "args": Config(0.1)}, tmp_path / "args.pth")
    with pytest.raises(ValueError, match=r"\['tests.interop.weights.test_pickles.Config'\]"):
        load_checkpoint(path, net)
    with torch.serialization.safe_globals([Config]):  # the caller's own decision
        same(load_checkpoint(path, net), module.state_dict())
    for content, said in (([1, 2], "list"), ({"lr": 0.1}, r"\['lr'\]"), (torch.ones(2), "Tensor")):
        with pytest.raises(ValueError, match=f"holds no state_dict.*{said}"):
            load_checkpoint(save(content, tmp_path / "b.pth"), net)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::FutureWarning")
def test_programs(tmp_path, net):
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"TorchScript.*state_dict\(\)"):
        load_checkpoint(tmp_path / "a.pt", net)
    with zipfile.ZipFile(tmp_path / "a.pt2", "w") as archive:  # as torch.export.save lays it out
        archive.writestr("a/archive_format", "pt2")
        archive.writestr("a/models/model.json", json.dumps({}))
    with pytest.raises(ValueError, match=r"a program of torch.export; save the weights"):
        load_checkpoint(tmp_path / "a.pt2", net)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("weights.pth", b"")
    with pytest.raises(ValueError, match=r"a zip archive; unpack it"):
        load_checkpoint(tmp_path / "a.zip", net)


def flip(path, place, bit=1):
    content = bytearray(path.read_bytes())
    content[place] ^= bit
    path.write_bytes(content)


@pytest.mark.parametrize("entry", ["data/1", "data/7", "data.pkl"])
def test_a_flipped_bit(tmp_path, net, entry):
    path = save(trained().state_dict(), tmp_path / "a.pth")
    with zipfile.ZipFile(path) as archive:
        name = next(each for each in archive.namelist() if each.endswith(entry))
        content = archive.read(name)
    flip(path, path.read_bytes().index(content) + len(content) // 2)
    with pytest.raises(ValueError, match=f"is damaged: the checksum of its entry 'a/{entry}' is wrong"):
        load_checkpoint(path, net)


def test_an_entry_that_torch_would_take_for_a_folder(tmp_path, net):
    path = save(trained().state_dict(), tmp_path / "a.pth")
    flip(path, path.read_bytes().rindex(b"a/data/1") - 8, 0x10)  # an attribute in the table at the end
    with pytest.raises(ValueError, match="is damaged"):
        load_checkpoint(path, net)


def test_checksums_that_torch_was_told_to_leave_out(tmp_path, net):
    state = trained().state_dict()
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        path = save(state, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    same(load_checkpoint(path, net), state)


def compress(path, **entries):
    """Write the archive again with compressed entries, some of another content."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, entries.get(name.split("/")[-1], content))


def test_compressed_files(tmp_path, net):
    state = trained().state_dict()
    path = save(state, tmp_path / "a.pth")
    compress(path)
    same(load_checkpoint(path, net), state)
    compress(path, **{"0": bytes(2**27)})
    with pytest.raises(ValueError, match=r"would unpack to 1342\d+, far more than the network has"):
        load_checkpoint(path, net)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_entries_that_overlap(tmp_path, net):
    path = save(trained().state_dict(), tmp_path / "a.pth")
    with zipfile.ZipFile(path, "a") as archive:
        for _ in range(100):
            archive.filelist.append(archive.filelist[0])
        archive._didModify = True
    with pytest.raises(ValueError, match=r"would unpack to|not a checkpoint of torch.save"):
        load_checkpoint(path, net)


def test_damaged_files(tmp_path, net):
    state = trained().state_dict()
    new = save(state, tmp_path / "new.pth").read_bytes()
    old = save_old(state, tmp_path / "old.pth").read_bytes()
    contents = {"cut": new[:-200], "half": new[: len(new) // 2], "old": old[:-9], "text": b"hello world"}
    for name, content in {**contents, "0": bytes(99)}.items():
        path = tmp_path / f"{name}.pth"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"path: .*{name}.pth' is not a checkpoint of torch.save") as error:
            load_checkpoint(path, net)
        assert "weights_only" not in str(error.value)
