"""Published packages with the weights they carry: converted and certified. Optional: CI does not install them."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import lla_torch

INSTALL = "pip install --no-deps facenet-pytorch==2.6.0 torchcrepe==0.0.24 Resemblyzer==0.1.4"


@pytest.fixture
def forget() -> Iterator[None]:
    """No module that a test brings in stays."""
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        if name.split(".")[0] in ("facenet_pytorch", "torchcrepe", "resemblyzer", "requests"):
            del sys.modules[name]


def bare(package: str, **attributes: Any) -> pathlib.Path:
    """The package without running its __init__, which wants torchvision, librosa and more; where it lies."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed: {INSTALL}")
    folder = pathlib.Path(found.origin).parent
    standing = types.ModuleType(package)
    standing.__path__ = [str(folder)]
    vars(standing).update(attributes)
    sys.modules[package] = standing
    return folder


def absent(name: str, *attributes: str) -> None:
    """A stand-in for a module that is imported, but not used here."""
    module = types.ModuleType(name)
    vars(module).update(dict.fromkeys(attributes))
    sys.modules[name] = module


def weights(file: pathlib.Path) -> dict[str, Any]:
    return torch.load(file, map_location="cpu", weights_only=True)


def random(*shape: int) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def check(module: Any, inputs: Any, labels: Any = None) -> None:
    """Converts with all rows and certifies with fewer, in both precisions. Outputs of unit length need labels: their
    mean square has no gradient."""
    module.eval()
    net = lla_torch.convert(module, inputs)
    batch, criterion = (inputs[:-1], None) if labels is None else ((inputs[:-1], labels[:-1]), torch.nn.MSELoss())
    certificate = lla_torch.certify(module, net, batch, criterion)
    assert certificate.ok, str(certificate)
    state, back = module.state_dict(), lla_torch.to_state_dict(net)
    assert list(back) == list(state)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("PNet", 14), ("RNet", 24), ("ONet", 48)], ids=str)
def test_mtcnn_trained(name, size, forget):
    folder = bare("facenet_pytorch")
    absent("facenet_pytorch.models.utils.detect_face", "detect_face", "extract_face")
    module = getattr(importlib.import_module("facenet_pytorch.models.mtcnn"), name)(pretrained=False)
    module.load_state_dict(weights(folder / "data" / f"{name.lower()}.pt"))
    check(module, random(3, 3, size, size))


@pytest.mark.slow
def test_inception_resnet(forget):
    bare("facenet_pytorch")
    absent("requests")
    absent("requests.adapters", "HTTPAdapter")
    torch.manual_seed(0)
    module = importlib.import_module("facenet_pytorch.models.inception_resnet_v1").InceptionResnetV1()
    check(module, random(3, 3, 80, 80), random(3, 512))


@pytest.mark.slow
def test_crepe_trained(forget):
    folder = bare("torchcrepe", PITCH_BINS=360)
    module = importlib.import_module("torchcrepe.model").Crepe("tiny")
    module.load_state_dict(weights(folder / "assets" / "tiny.pth"))
    check(module, random(3, 1024))


@pytest.mark.slow
def test_voice_encoder_trained(forget):
    folder = bare("resemblyzer")
    absent("resemblyzer.audio")
    encoder = importlib.import_module("resemblyzer.voice_encoder").VoiceEncoder
    module = encoder("cpu", verbose=False, weights_fpath=folder / "pretrained.pt")
    check(module, random(3, 12, 40), random(3, 256))
