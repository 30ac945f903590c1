"""Files and folders of checkpoints: shards and their index, and files of other kinds."""

import gzip
import json
import os
import struct
import tarfile

import numpy as np
import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from lla_torch.weights.checkpoint import load_checkpoint

from tests.interop.weights.cases import net_of, same, save, trained, write_shards


@pytest.fixture
def net():
    return net_of(trained(0))


@pytest.fixture
def state():
    return trained().state_dict()


WRITERS = {"model.safetensors": safetensors_torch.save_file, "pytorch_model.bin": torch.save}


@pytest.mark.parametrize("whole", WRITERS)
def test_shards(tmp_path, net, state, whole):
    write_shards(state, tmp_path, whole, WRITERS[whole])
    stem, suffix = whole.split(".")
    shard, index = tmp_path / f"{stem}-00001-of-00002.{suffix}", tmp_path / f"{whole}.index.json"
    for path in (tmp_path, index):
        same(load_checkpoint(path, net), state)
    with pytest.raises(ValueError, match=r"missing: .* it is one of several shards: pass their folder"):
        load_checkpoint(shard, net)
    table = json.loads(index.read_text())
    table["weight_map"]["lost.weight"] = shard.name
    index.write_text(json.dumps(table))
    with pytest.raises(ValueError, match=r"lists \['lost.weight'\], which their shards do not hold"):
        load_checkpoint(tmp_path, net)
    index.unlink()
    same(load_checkpoint(tmp_path, net), state)  # all shards are there
    WRITERS[whole](state, shard)
    with pytest.raises(ValueError, match="in several shards"):
        load_checkpoint(tmp_path, net)
    shard.unlink()
    with pytest.raises(ValueError, match="holds 1 of 2 shards"):
        load_checkpoint(tmp_path, net)


def test_shards_beside_another_checkpoint(tmp_path, net, state):
    write_shards(state, tmp_path, "model.safetensors", safetensors_torch.save_file)
    safetensors_torch.save_file(state, tmp_path / "consolidated.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    with pytest.raises(ValueError, match=r"one of \['consolidated.safetensors', 'model.safetensors.index.json'\]$"):
        load_checkpoint(tmp_path, net)
    same(load_checkpoint(index, net), state)
    index.unlink()
    with pytest.raises(ValueError, match=r"one of \['consolidated.safetensors'\]; for the shards of .* them alone"):
        load_checkpoint(tmp_path, net)
    for shard in sorted(tmp_path.glob("model-*")):
        (tmp_path / shard.name.replace("model", "ema")).write_bytes(shard.read_bytes())
    (tmp_path / "consolidated.safetensors").unlink()
    with pytest.raises(ValueError, match=r"in shards, \['ema.safetensors', 'model.safetensors'\]; pass a folder"):
        load_checkpoint(tmp_path, net)


def test_links_as_in_a_cache(tmp_path, net, state):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    write_shards(state, tmp_path / "blobs", "model.safetensors", safetensors_torch.save_file)
    for file in sorted((tmp_path / "blobs").iterdir()):
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    same(load_checkpoint(tmp_path / "snapshot", net), state)
    (tmp_path / "blobs" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lists \['model-00002-of-00002.safetensors'\], but there are no such"):
        load_checkpoint(tmp_path / "snapshot", net)
    with pytest.raises(FileNotFoundError, match="the file that this link leads to is missing"):
        load_checkpoint(tmp_path / "snapshot" / "model-00002-of-00002.safetensors", net)


@pytest.mark.parametrize(
    "file",
    ["../../etc/passwd", "/etc/passwd", "..\\a.bin", "C:a.bin", "sub/a.safetensors", "passwd", "", "..", "a.bin\0"],
)
def test_an_index_stays_in_its_folder(tmp_path, net, file):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"fc.weight": file}}))
    for path in (tmp_path, index):
        with pytest.raises(ValueError, match="shards must be checkpoint files beside their index"):
            load_checkpoint(path, net)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no complete JSON file"),
        ("[" * 10**5, "no complete JSON file"),
        ("\xff", "no complete JSON file"),
        ("{}", "without a 'weight_map'"),
        ("[]", "without a 'weight_map'"),
        ('{"weight_map": {}}', "without a 'weight_map'"),
        ('{"weight_map": {"a": 3}}', "without a 'weight_map'"),
        (" " * (2**26 + 1), "too many for an index"),
    ],
)
def test_an_index_that_is_none(tmp_path, net, text, said):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text, "latin-1")
    with pytest.raises(ValueError, match=said):
        load_checkpoint(path, net)


def test_folders(tmp_path, net, state):
    with pytest.raises(ValueError, match=r"holds no checkpoint file, such as model.safetensors; pass one"):
        load_checkpoint(tmp_path, net)
    inner = tmp_path / "checkpoints"
    inner.mkdir()
    save(state, inner / "epoch=3-step=9.ckpt")
    with pytest.raises(ValueError, match=r"its folders \['checkpoints/'\] do; pass one of these"):
        load_checkpoint(tmp_path, net)
    same(load_checkpoint(inner, net), state)
    save(state, inner / "last.ckpt")
    with pytest.raises(ValueError, match=r"several checkpoints; .* of \['epoch=3-step=9.ckpt', 'last.ckpt'\]"):
        load_checkpoint(inner, net)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):  # of a trainer
        save({}, tmp_path / name)
    safetensors_torch.save_file(state, tmp_path / "model.safetensors")
    same(load_checkpoint(tmp_path, net), state)
    (tmp_path / "model.safetensors").rename(tmp_path / "__0_0.distcp")
    (tmp_path / ".metadata").touch()
    with pytest.raises(ValueError, match=r"torch.distributed; .*dcp_to_torch_save"):
        load_checkpoint(tmp_path, net)


def pack(path):
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "a.py")


def write_numpy(path, write, array):
    with path.open("wb") as file:
        write(file, array)


OTHERS = {  # what another file is called: what writes it
    "a pointer of Git LFS": lambda p: p.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    ),
    "a web page": lambda p: p.write_text("\n<!DOCTYPE html><html><body>Sign in</body></html>"),
    "a web page;": lambda p: p.write_text("<?xml version='1.0'?><Error>AccessDenied</Error>"),
    "a compressed file": lambda p: p.write_bytes(gzip.compress(bytes(99))),
    "an archive": pack,
    "an HDF5 file": lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n"),
    "a GGUF file": lambda p: p.write_bytes(b"GGUF" + bytes(9)),
    "a .npy file": lambda p: write_numpy(p, np.save, np.ones(3)),
    "a .npz file": lambda p: write_numpy(p, np.savez, np.ones(3)),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", OTHERS)
def test_files_of_other_kinds(tmp_path, net, kind, suffix):
    path = tmp_path / f"a{suffix}"
    OTHERS[kind](path)
    with pytest.raises(ValueError, match=f"is not a checkpoint of torch.save.* but .*{kind}"):
        load_checkpoint(path, net)


def test_paths_of_other_kinds(tmp_path, net):
    (tmp_path / "empty.pth").touch()
    with pytest.raises(ValueError, match="empty"):
        load_checkpoint(tmp_path / "empty.pth", net)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_checkpoint(tmp_path / "none.pth", net)
    os.mkfifo(tmp_path / "a.pth")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        load_checkpoint(tmp_path / "a.pth", net)


def header(content, body=b""):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_damaged_safetensors(tmp_path, net, state):
    path = tmp_path / "a.safetensors"
    safetensors_torch.save_file(state, path)
    whole, entry = path.read_bytes(), {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    contents = {
        "cut": whole[:-3],
        "short": b"xx",
        "zeros": bytes(20),
        "a header of many bytes": struct.pack("<Q", 10**15) + b"{}",
        "more than there is": header({"a": {**entry, "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}),
        "overlapping": header({"a": entry, "b": entry}, bytes(4)),
        "unknown": header({"a": {**entry, "dtype": "X"}}, bytes(4)),
        "nested": header(b'{"a":' * 10**5),
        "longer": whole + bytes(9),
    }
    for content in contents.values():
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a complete safetensors file"):
            load_checkpoint(path, net)
