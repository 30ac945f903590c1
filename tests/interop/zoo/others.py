"""Dense, recurrent, sampling, graph and nested networks."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import nn


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 12), nn.LeakyReLU(0.1), nn.Linear(12, 9))
        self.norm = nn.LayerNorm(9)
        self.head = nn.Linear(9, 4, bias=False)

    def forward(self, x):
        return self.head(F.softplus(self.norm(self.body(x)), beta=2.0))


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 12), nn.ReLU())
        self.mean, self.logvar = nn.Linear(12, 3), nn.Linear(12, 3)
        self.decode = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Unflatten(1, (2, 4, 4)))
        self.deconv = nn.ConvTranspose2d(2, 1, 3, stride=2, padding=1, output_padding=1)

    def forward(self, x):
        h = self.encoder(x)
        mean, logvar = self.mean(h), self.logvar(h)
        std = torch.exp(0.5 * logvar)
        z = mean + torch.randn_like(std) * std
        return torch.sigmoid(self.deconv(self.decode(z))), mean, logvar


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(4, 5, batch_first=True, **options)
        self.head = nn.Linear(5 * (1 + options.get("bidirectional", False)), 3)

    def forward(self, x):
        outputs, hidden = self.rnn(x)
        last = hidden[0] if isinstance(hidden, tuple) else hidden
        return self.head(outputs[:, -1]) + self.head(outputs.mean(1)), last.transpose(0, 1)


class GraphNet(nn.Module):
    def __init__(self):
        super().__init__()
        edges = [[0, 1, 2, 3, 4, 5, 0, 2, 4, 1], [1, 2, 3, 4, 5, 0, 3, 5, 1, 4]]
        self.register_buffer("edge_index", torch.tensor(edges))
        self.message = nn.Sequential(nn.Linear(8, 10), nn.SiLU(), nn.Linear(10, 6))
        self.update = nn.Linear(10, 4)
        self.second = nn.Linear(4, 4)
        self.readout = nn.Linear(8, 3)

    def forward(self, x):
        source, target = self.edge_index
        messages = self.message(torch.cat([x[:, source], x[:, target]], dim=-1))
        gathered = torch.zeros(x.size(0), x.size(1), 6, dtype=x.dtype).index_add(1, target, messages)
        h = torch.tanh(self.update(torch.cat([x, gathered], dim=-1)))
        sent = self.second(h).index_select(1, source)
        index = target.view(1, -1, 1).expand_as(sent)
        degree = torch.zeros(6, dtype=x.dtype).scatter_add_(0, target, torch.ones(target.numel(), dtype=x.dtype))
        h = h + torch.zeros_like(h).scatter_add_(1, index, sent) / degree.clamp(min=1).view(1, -1, 1)
        return self.readout(torch.cat([h.mean(1), h.amax(1)], dim=-1))


class PINN(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("frequencies", torch.randn(2, 5))
        self.lift, self.out = nn.Linear(12, 10), nn.Linear(10, 1)
        self.hidden = nn.ModuleList(nn.Linear(10, 10) for _ in range(2))
        self.omega = nn.Parameter(torch.tensor(1.7))

    def forward(self, points):
        x, t = points[:, :1], points[:, 1:]
        phases = 2 * torch.pi * points @ self.frequencies
        h = torch.sin(self.omega * self.lift(torch.cat([x, t, phases.sin(), phases.cos()], 1)))
        for layer in self.hidden:
            h = h + torch.tanh(layer(h))
        return self.out(h).squeeze(1) * x[:, 0] * (1 - x[:, 0]) + torch.exp(-t[:, 0])


class BagClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows = nn.EmbeddingBag(11, 6, mode="mean")
        self.flat = nn.EmbeddingBag(11, 6, mode="sum", padding_idx=2)
        self.fc = nn.Linear(12, 4)

    def forward(self, tokens):
        offsets = torch.arange(0, tokens.numel(), tokens.size(1))
        both = torch.cat([self.rows(tokens), self.flat(tokens.reshape(-1), offsets)], 1)
        return self.fc(torch.tanh(both))


class WeightNorm(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.conv = wrap(nn.Conv1d(2, 5, 3, padding=1))
        self.linear = wrap(nn.Linear(30, 8))
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.linear(F.silu(self.conv(x)).flatten(1))))


def old_weight_norm(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it deprecated; checkpoints with weight_g and weight_v live on
        return nn.utils.weight_norm(module)


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 4, stride=4)
        self.norm1, self.norm2, self.norm = nn.LayerNorm(6), nn.LayerNorm(6), nn.LayerNorm(6)
        self.tokens = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
        self.channels = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x)
        x = x.view(x.size(0), x.size(1), -1).permute(0, 2, 1)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(self.norm(x).mean(dim=1))


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Linear(10, 5))
        self.scale = nn.Parameter(torch.tensor([0.7]))

    def forward(self, left, right):
        a, b = F.normalize(self.tower(left), dim=1), self.tower(right)
        return self.scale * F.cosine_similarity(a, b, dim=1), torch.linalg.vector_norm(a - b, dim=1)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x, mask=None, *, shift, scales):
        a = torch.sigmoid(self.first(x + shift))
        if mask is not None:
            a = torch.where(mask, a, torch.zeros_like(a))
        b = torch.sin(self.second(a)) * scales["b"] + scales["a"]
        logits = self.head(b)
        return {"logits": logits, "features": [a, (b, a * b)], "label": logits.argmax(-1), "none": None}
