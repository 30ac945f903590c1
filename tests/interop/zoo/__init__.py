"""Small torch networks of the usual kinds, as users write them, and the table ZOO with inputs for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.interop.zoo.convolutional import (
    VGG,
    AudioNet,
    BasicBlock,
    Bottleneck,
    ConvNeXt,
    DenseNet,
    Inception,
    LeNet,
    MobileNet,
    ResNet,
    SuperResolution,
    UNet,
    VideoNet,
)
from tests.interop.zoo.others import (
    MLP,
    PINN,
    VAE,
    BagClassifier,
    GraphNet,
    Mixer,
    Nested,
    Recurrent,
    Siamese,
    WeightNorm,
    old_weight_norm,
)
from tests.interop.zoo.transformers import BERT, GPT, Swin, ViT, ViTFused


def randomized(module: nn.Module) -> nn.Module:
    """Vectors (biases, norm weights) off their zeros and ones, BatchNorm statistics as after training; float64."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for each in module.modules():
            if isinstance(each, nn.modules.batchnorm._BatchNorm):
                each.running_mean.copy_(0.3 * torch.randn_like(each.running_mean))
                each.running_var.copy_(0.5 + torch.rand_like(each.running_var))
                each.num_batches_tracked.fill_(3)
    return module


@dataclass(frozen=True)
class Entry:
    """A network of the zoo.

    Args:
      name: for messages.
      build: makes the module, drawing weights from torch's global generator.
      draw: (batch) -> inputs by position, from torch's global generator.
      keywords: (batch) -> inputs by name.
      has_train: whether training mode computes something else (BatchNorm or dropout).
      samples: whether it draws random numbers in eval mode.
      torch_double_backward: False where torch's own is wrong (weight_norm) or missing (EmbeddingBag), so that
        differences of gradients stand in.
    """

    name: str
    build: Callable[[], nn.Module]
    draw: Callable[[int], tuple[Tensor, ...]]
    keywords: Callable[[int], dict] = lambda batch: {}
    has_train: bool = False
    samples: bool = False
    torch_double_backward: bool = True

    def factory(self, seed: int) -> nn.Module:
        """The module in eval mode, float64, with weights and statistics by ``seed``."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return randomized(self.build()).eval()

    def inputs(self, batch: int, seed: int) -> tuple[Tensor, ...]:
        """Inputs by position for a batch."""
        with torch.random.fork_rng():
            torch.manual_seed(1000 + seed)
            return self.draw(batch)

    def kwargs(self, batch: int, seed: int) -> dict:
        """Inputs by name for a batch."""
        with torch.random.fork_rng():
            torch.manual_seed(2000 + seed)
            return self.keywords(batch)


def real(*shape: int) -> Callable[[int], tuple[Tensor, ...]]:
    """Normal numbers of a shape, with the batch in front."""
    return lambda batch: (torch.randn(batch, *shape, dtype=torch.float64),)


def tokens(count: int, length: int) -> Callable[[int], tuple[Tensor, ...]]:
    """Sequences of integers below ``count``."""
    return lambda batch: (torch.randint(0, count, (batch, length)),)


def bert_inputs(batch: int) -> tuple[Tensor, ...]:
    """Tokens, segments, and a mask of the padding."""
    lengths = torch.randint(2, 6, (batch, 1))
    return (torch.randint(0, 13, (batch, 5)), torch.randint(0, 2, (batch, 5)), torch.arange(5) >= lengths)


def nested_keywords(batch: int) -> dict:
    """Arguments by name, nested."""
    scales = {"a": torch.randn(6, dtype=torch.float64), "b": torch.randn(batch, 1, dtype=torch.float64)}
    return {"mask": torch.rand(batch, 6) > 0.3, "shift": torch.randn(batch, 5, dtype=torch.float64), "scales": scales}


ZOO = (
    Entry("mlp", MLP, real(6)),
    Entry("lenet", LeNet, real(1, 12, 12)),
    Entry("resnet-basic", lambda: ResNet(BasicBlock, (4, 6), 1), real(3, 8, 8), has_train=True),
    Entry("resnet-bottleneck", lambda: ResNet(Bottleneck, (3, 4), 1), real(3, 8, 8), has_train=True),
    Entry("vgg", VGG, real(3, 8, 8), has_train=True),
    Entry("densenet", DenseNet, real(3, 8, 8), has_train=True),
    Entry("mobilenet", MobileNet, real(3, 8, 8), has_train=True),
    Entry("inception", Inception, real(3, 8, 8), has_train=True),
    Entry("unet", UNet, real(1, 8, 8)),
    Entry("vae", VAE, real(1, 8, 8), samples=True),
    Entry("vit-multihead", ViT, real(3, 8, 8), has_train=True),
    Entry("vit-fused", ViTFused, real(3, 8, 8), has_train=True),
    Entry("swin", Swin, real(3, 8, 8)),
    Entry("gpt", GPT, tokens(11, 5), has_train=True),
    Entry("bert", BERT, bert_inputs, has_train=True),
    Entry(
        "lstm", lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True, dropout=0.2), real(5, 4), has_train=True
    ),
    Entry("gru", lambda: Recurrent(nn.GRU), real(5, 4)),
    Entry("rnn", lambda: Recurrent(nn.RNN, nonlinearity="tanh"), real(5, 4)),
    Entry("graph", GraphNet, real(6, 4)),
    Entry("pinn", PINN, real(2)),
    Entry("embedding-bag", BagClassifier, tokens(11, 5), torch_double_backward=False),
    Entry(
        "weight-norm",
        lambda: WeightNorm(nn.utils.parametrizations.weight_norm),
        real(2, 6),
        torch_double_backward=False,
    ),
    Entry("weight-norm-old", lambda: WeightNorm(old_weight_norm), real(2, 6), torch_double_backward=False),
    Entry("audio", AudioNet, real(1, 16), has_train=True),
    Entry("video", VideoNet, real(1, 4, 6, 6), has_train=True),
    Entry("convnext", ConvNeXt, real(3, 8, 8)),
    Entry("super-resolution", SuperResolution, real(1, 5, 5)),
    Entry("mixer", Mixer, real(3, 8, 8)),
    Entry("siamese", Siamese, lambda batch: real(6)(batch) + real(6)(batch), has_train=True),
    Entry("nested", Nested, real(5), nested_keywords),
)
