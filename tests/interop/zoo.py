"""Small torch networks of the usual kinds, as users write them, and the table ZOO with inputs for each."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 12), nn.LeakyReLU(0.1), nn.Linear(12, 9))
        self.norm = nn.LayerNorm(9)
        self.head = nn.Linear(9, 4, bias=False)

    def forward(self, x):
        return self.head(F.softplus(self.norm(self.body(x)), beta=2.0))


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 5, padding=2)
        self.conv2 = nn.Conv2d(4, 6, 3)
        self.fc1 = nn.Linear(24, 16)
        self.fc2 = nn.Linear(16, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, self.fc1.in_features)
        return F.log_softmax(self.fc2(F.relu(self.fc1(x))), dim=1)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inside, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inside != width:
            self.downsample = nn.Sequential(nn.Conv2d(inside, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    expansion = 2

    def __init__(self, inside, width, stride):
        super().__init__()
        outside = width * self.expansion
        self.conv1, self.bn1 = nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outside, 1, bias=False), nn.BatchNorm2d(outside)
        self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


class ResNet(nn.Module):
    def __init__(self, block, widths, blocks):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        inside, stages = 4, []
        for width, stride in zip(widths, (1, 2)):
            layers = [
                block(inside if i == 0 else width * block.expansion, width, stride if i == 0 else 1)
                for i in range(blocks)
            ]
            stages.append(nn.Sequential(*layers))
            inside = width * block.expansion
        self.layer1, self.layer2 = stages
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(inside, 5)

    def forward(self, x):
        x = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class VGG(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(True), nn.MaxPool2d(2, 2)),
            *(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(True), nn.MaxPool2d(2, 2)),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            *(nn.Linear(32, 16), nn.ReLU(True), nn.Dropout(0.4)),
            *(nn.Linear(16, 12), nn.ReLU(True), nn.Dropout(0.2)),
            nn.Linear(12, 5),
        )

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class DenseLayer(nn.Module):
    def __init__(self, inside, growth):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inside), nn.Conv2d(inside, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features):
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(x)))


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block = nn.ModuleDict({f"layer{i}": DenseLayer(4 + 3 * i, 3) for i in range(2)})
        self.transition = nn.Sequential(nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 5, 1), nn.AvgPool2d(2, 2))
        self.head = nn.Linear(5 * 4 * 4, 4)

    def forward(self, x):
        features = [self.stem(x)]
        for layer in self.block.values():
            features.append(layer(features))
        return self.head(self.transition(torch.cat(features, 1)).flatten(1))


class SqueezeExcite(nn.Module):
    """Gated by a hard sigmoid, spelt out: the derivative of F.hardsigmoid is a float32 sixth, in float64 too."""

    def __init__(self, width):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(width, 3, 1), nn.Conv2d(3, width, 1)

    def forward(self, x):
        return x * (F.relu6(self.fc2(F.relu(self.fc1(self.pool(x)))) + 3.0) / 6.0)


class InvertedResidual(nn.Module):
    def __init__(self, inside, outside, stride, activation):
        super().__init__()
        hidden = 2 * inside
        self.residual = stride == 1 and inside == outside
        self.conv = nn.Sequential(
            *(nn.Conv2d(inside, hidden, 1, bias=False), nn.BatchNorm2d(hidden), activation()),
            *(nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), activation()),
            SqueezeExcite(hidden),
            *(nn.Conv2d(hidden, outside, 1, bias=False), nn.BatchNorm2d(outside)),
        )

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.Hardswish())
        self.blocks = nn.Sequential(InvertedResidual(4, 4, 1, nn.ReLU6), InvertedResidual(4, 6, 2, nn.Hardswish))
        self.classifier = nn.Sequential(nn.Linear(6, 8), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(8, 3))

    def forward(self, x):
        return self.classifier(self.blocks(self.stem(x)).mean([2, 3]))


class ConvNorm(nn.Module):
    def __init__(self, inside, outside, **options):
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, bias=False, **options)
        self.bn = nn.BatchNorm2d(outside, eps=1e-3, momentum=0.3)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch1 = ConvNorm(3, 2, kernel_size=1)
        self.branch3 = nn.Sequential(ConvNorm(3, 3, kernel_size=1), ConvNorm(3, 4, kernel_size=3, padding=1))
        self.left = ConvNorm(4, 2, kernel_size=(1, 3), padding=(0, 1))
        self.right = ConvNorm(4, 2, kernel_size=(3, 1), padding=(1, 0))
        self.pool = ConvNorm(3, 2, kernel_size=1)
        self.fc = nn.Linear(11, 4)

    def forward(self, x):
        x = 0.5 * x + 0.1
        tall = self.branch3(x)
        mean = self.pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        branches = [self.branch1(x), self.left(tall), self.right(tall), mean, F.max_pool2d(x, 3, stride=1, padding=1)]
        return self.fc(F.adaptive_avg_pool2d(torch.cat(branches, 1), (1, 1)).squeeze(-1).squeeze(-1))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU())
        self.down2 = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.GroupNorm(3, 6), nn.SiLU())
        self.middle = nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect")
        self.up2 = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.up1 = nn.ConvTranspose2d(8, 4, 3, stride=1, padding=1)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = F.interpolate(self.middle(F.avg_pool2d(b, 2)), scale_factor=2, mode="nearest") + b
        d = torch.cat([self.up2(c), a], dim=1)
        coarse = F.interpolate(c[:, :4], size=a.shape[-2:], mode="bilinear", align_corners=False)
        return self.out(F.elu(self.up1(d)) + coarse)


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


class EncoderBlock(nn.Module):
    """Pre-norm attention with torch's own MultiheadAttention."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )

    def forward(self, x):
        y = self.norm1(x)
        attended, _ = self.attention(y, y, y, need_weights=True)
        x = x + attended
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(0.5 * torch.randn(1, 5, 8))
        self.block = EncoderBlock(8, 2, 0.1)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.2, activation="gelu", batch_first=True)
        self.norm = nn.LayerNorm(8, eps=1e-6)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        return self.head(self.norm(self.layer(self.block(x)))[:, 0])


class Attention(nn.Module):
    """Fused projections and scaled_dot_product_attention, as in timm and nanoGPT."""

    def __init__(self, width, heads, causal=False, dropout=0.0):
        super().__init__()
        self.heads, self.causal, self.dropout = heads, causal, dropout
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x, mask=None):
        batch, length, width = x.shape
        q, k, v = (
            self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        rate = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate, is_causal=self.causal)
        return self.proj(y.transpose(1, 2).reshape(batch, length, width))


class ViTFused(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.position = nn.Parameter(0.5 * torch.randn(1, 4, 8))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(4))
        self.attentions = nn.ModuleList(Attention(8, 2, dropout=0.25) for _ in range(2))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.GELU(approximate="tanh"), nn.Linear(16, 8)) for _ in range(2)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.patches(x).flatten(2).mT + self.position
        for i, (attention, mlp) in enumerate(zip(self.attentions, self.mlps)):
            x = x + attention(self.norms[2 * i](x))
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.head(x.mean(dim=1))


def windows(x: Tensor, size: int) -> Tensor:
    """(B, H, W, C) cut into (B * windows, size * size, C)."""
    b, h, w, c = x.shape
    x = x.view(b, h // size, size, w // size, size, c)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, size * size, c)


class WindowAttention(nn.Module):
    def __init__(self, width, heads, size):
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * size - 1) ** 2, heads))
        grid = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).flatten(1)
        offsets = grid[:, :, None] - grid[:, None, :] + size - 1
        self.register_buffer("relative_position_index", offsets[0] * (2 * size - 1) + offsets[1])
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x, mask):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(n, n, -1)
        scores = scores + bias.permute(2, 0, 1).contiguous().unsqueeze(0)
        if mask is not None:
            count = mask.shape[0]
            scores = scores.view(b // count, count, self.heads, n, n) + mask.unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, self.heads, n, n)
        return self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, n, c))


class SwinBlock(nn.Module):
    def __init__(self, width, side, shift):
        super().__init__()
        self.side, self.shift, self.size = side, shift, 2
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = WindowAttention(width, 2, 2)
        self.mlp = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width))
        mask = None
        if shift:
            regions = torch.zeros(1, side, side, 1)
            cuts = (slice(0, -2), slice(-2, -shift), slice(-shift, None))
            for i, rows in enumerate(cuts):
                for j, columns in enumerate(cuts):
                    regions[:, rows, columns] = 3 * i + j
            flat = windows(regions, 2).squeeze(-1)
            mask = (flat[:, None] - flat[:, :, None]).ne(0) * -100.0
        self.register_buffer("attn_mask", mask)

    def forward(self, x):
        b, n, c = x.shape
        side = self.side
        y = self.norm1(x).view(b, side, side, c)
        if self.shift:
            y = torch.roll(y, shifts=(-self.shift, -self.shift), dims=(1, 2))
        y = self.attn(windows(y, self.size), self.attn_mask).view(b, side // 2, side // 2, 2, 2, c)
        y = y.permute(0, 1, 3, 2, 4, 5).contiguous().view(b, side, side, c)
        if self.shift:
            y = torch.roll(y, shifts=(self.shift, self.shift), dims=(1, 2))
        x = x + y.view(b, n, c)
        return x + self.mlp(self.norm2(x))


class Swin(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 2, stride=2)
        self.blocks = nn.ModuleList([SwinBlock(6, 4, 0), SwinBlock(6, 4, 1)])
        self.reduction = nn.Linear(24, 8, bias=False)
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        x = x.view(-1, 4, 4, 6)
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1).flatten(1, 2)
        return self.head(self.reduction(self.norm(x)).mean(1))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(11, 8), nn.Embedding(6, 8)
        self.drop = nn.Dropout(0.1)
        self.ln1, self.ln2, self.lnf = nn.LayerNorm(8), nn.LayerNorm(8), nn.LayerNorm(8, bias=False)
        self.attn = Attention(8, 2, causal=True)
        self.masked = nn.Linear(8, 24)
        self.register_buffer("tril", torch.tril(torch.ones(6, 6)).view(1, 1, 6, 6))
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.lm_head = nn.Linear(8, 11, bias=False)
        self.lm_head.weight = self.wte.weight

    def manual(self, x):
        b, t, c = x.size()
        q, k, v = (y.view(b, t, 2, c // 2).transpose(1, 2) for y in self.masked(x).split(c, dim=2))
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.tril[:, :, :t, :t] == 0, float("-inf"))
        return (F.softmax(scores, dim=-1) @ v).transpose(1, 2).contiguous().view(b, t, c)

    def forward(self, tokens):
        positions = torch.arange(0, tokens.size(1), dtype=torch.long, device=tokens.device)
        x = self.drop(self.wte(tokens) + self.wpe(positions))
        x = x + self.attn(self.ln1(x))
        x = x + self.mlp(self.ln2(x)) + self.manual(x)
        return self.lm_head(self.lnf(x))


class BERT(nn.Module):
    def __init__(self):
        super().__init__()
        self.word = nn.Embedding(13, 8, padding_idx=0)
        self.position, self.segment = nn.Embedding(5, 8), nn.Embedding(2, 8)
        self.register_buffer("position_ids", torch.arange(5).expand((1, -1)), persistent=False)
        self.norm = nn.LayerNorm(8, eps=1e-12)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 12, 0.1, activation=act, batch_first=True, norm_first=first)
            for act, first in (("gelu", False), ("relu", True))
        )
        self.pooler, self.classifier = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, tokens, segments, padding):
        x = self.norm(self.word(tokens) + self.position(self.position_ids) + self.segment(segments))
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        keep = (~padding).unsqueeze(-1).to(x.dtype)
        mean = (x * keep).sum(1) / keep.sum(1)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])) + mean)


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


class AudioNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.front = nn.Conv1d(1, 6, 5, stride=2, padding=2)
        self.norm = nn.BatchNorm1d(6)
        self.dilated = nn.Conv1d(6, 12, 3, padding="same", dilation=2, groups=2)
        self.act = nn.PReLU(6)
        self.post = nn.InstanceNorm1d(6, affine=True)
        self.up = nn.ConvTranspose1d(6, 3, 4, stride=2, padding=1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        x = self.act(self.norm(self.front(x)))
        x = self.post(F.glu(self.dilated(x), dim=1) + x)
        pooled = F.adaptive_max_pool1d(x, 1).squeeze(-1)
        return self.fc(F.dropout(pooled, 0.3, self.training)), self.up(x)


class VideoNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn = nn.Conv3d(1, 3, 3, padding=1, stride=(1, 2, 2)), nn.BatchNorm3d(3)
        self.conv2 = nn.Conv3d(3, 4, (2, 3, 3), padding=(0, 1, 1))
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        x = F.max_pool3d(F.mish(self.bn(self.conv1(x))), 2, stride=1, padding=1)
        x = F.avg_pool3d(F.celu(self.conv2(x)), (2, 2, 2), stride=(1, 1, 1))
        return self.fc(F.adaptive_avg_pool3d(x, (1, 2, 2)).flatten(1))


class ConvNeXtBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gamma = nn.Parameter(0.3 * torch.ones(width))

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 2, stride=2)
        self.blocks = nn.Sequential(ConvNeXtBlock(6), ConvNeXtBlock(6))
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.stem(x)).mean([-2, -1])))


class SuperResolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x):
        sharp = self.shuffle(self.conv2(torch.tanh(self.conv1(x))))
        return sharp + F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)


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
    return lambda batch: (torch.randn(batch, *shape, dtype=torch.float64),)


def tokens(count: int, length: int) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda batch: (torch.randint(0, count, (batch, length)),)


def bert_inputs(batch: int) -> tuple[Tensor, ...]:
    lengths = torch.randint(2, 6, (batch, 1))
    return (torch.randint(0, 13, (batch, 5)), torch.randint(0, 2, (batch, 5)), torch.arange(5) >= lengths)


def nested_keywords(batch: int) -> dict:
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
