"""Transformers for images and text."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
