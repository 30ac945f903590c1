"""A small vision transformer and a small GPT-like model, equal in torch and in Flax; not trained: only speed is asked.

Pre-norm blocks (Vaswani et al. 2017; Dosovitskiy et al. 2021 with mean pooling; Radford et al. 2019): two of them, 64
wide, 4 heads. torch uses its fused attention.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
from cases import curvature

WIDTH, HEADS, DEPTH, PATCH, LETTERS, LENGTH = 64, 4, 2, 4, 128, 64
EPS = 1e-5
TEXT = pathlib.Path(__file__).parents[2] / "LICENSE"


# -- data --------------------------------------------------------------------------------------------------------------


def letters(batch: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Rows of 64 letters of this project's licence and, as labels, the letters that follow them."""
    text = np.frombuffer(TEXT.read_bytes(), np.uint8).astype(np.int32) % LETTERS
    start = np.linspace(0, len(text) - LENGTH - 1, batch).astype(int)[:, None] + np.arange(LENGTH)
    return text[start], text[start + 1], f"{batch} rows of {LENGTH} letters"


# -- torch -------------------------------------------------------------------------------------------------------------


def torch_transformer(name: str, size: int = 32) -> Any:
    """The network "vit" (images of ``size`` pixels a side) or "gpt"; classes are on axis 1, as torch's losses ask."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self, causal: bool):
            super().__init__()
            self.causal = causal
            self.norm1, self.norm2 = nn.LayerNorm(WIDTH, EPS), nn.LayerNorm(WIDTH, EPS)
            self.qkv, self.mixed = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x):
            q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            seen = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
            x = x + self.mixed(seen.transpose(1, 2).flatten(2))
            return x + self.narrow(functional.gelu(self.wide(self.norm2(x)), approximate="tanh"))

    class ViT(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Linear(3 * PATCH**2, WIDTH)
            self.position = nn.Embedding((size // PATCH) ** 2, WIDTH)
            self.blocks = nn.ModuleList(Block(False) for _ in range(DEPTH))
            self.norm, self.head = nn.LayerNorm(WIDTH, EPS), nn.Linear(WIDTH, 10)

        def forward(self, x):
            x = x.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 4, 5, 1)
            x = self.patch(x.flatten(3).flatten(1, 2)) + self.position.weight
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x).mean(1))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.position = nn.Embedding(LETTERS, WIDTH), nn.Embedding(LENGTH, WIDTH)
            self.blocks = nn.ModuleList(Block(True) for _ in range(DEPTH))
            self.norm, self.head = nn.LayerNorm(WIDTH, EPS), nn.Linear(WIDTH, LETTERS)

        def forward(self, tokens):
            x = self.token(tokens) + self.position.weight
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x)).transpose(1, 2)

    torch.manual_seed(0)
    return (ViT() if name == "vit" else GPT()).eval()


# -- Flax --------------------------------------------------------------------------------------------------------------


def flax_transformer(name: str) -> Any:
    """The same in Flax; classes are on the last axis."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    def block(x, at, causal):
        def norm(name):
            return nn.LayerNorm(epsilon=EPS, name=f"{at}_{name}")

        qkv = nn.Dense(3 * WIDTH, name=f"{at}_qkv")(norm("norm1")(x))
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, HEADS, -1), 2, 0)
        scores = jnp.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
        if causal:
            scores = jnp.where(jnp.tri(x.shape[1], dtype=bool), scores, -jnp.inf)
        seen = jnp.einsum("bhij,bjhd->bihd", jax.nn.softmax(scores), v).reshape(x.shape)
        x = x + nn.Dense(WIDTH, name=f"{at}_mixed")(seen)
        inner = nn.gelu(nn.Dense(4 * WIDTH, name=f"{at}_wide")(norm("norm2")(x)), approximate=True)
        return x + nn.Dense(WIDTH, name=f"{at}_narrow")(inner)

    def through(x, causal):
        for i in range(DEPTH):
            x = block(x, f"blocks_{i}", causal)
        return nn.LayerNorm(epsilon=EPS, name="norm")(x)

    class ViT(nn.Module):
        @nn.compact
        def __call__(self, x):
            batch, side = x.shape[0], x.shape[1] // PATCH
            x = x.reshape(batch, side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 2, 4, 5).reshape(batch, side**2, -1)
            x = nn.Dense(WIDTH, name="patch")(x)
            x = x + nn.Embed(x.shape[1], WIDTH, name="position")(jnp.arange(x.shape[1]))
            return nn.Dense(10, name="head")(through(x, False).mean(1))

    class GPT(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            x = nn.Embed(LETTERS, WIDTH, name="token")(tokens)
            x = x + nn.Embed(LENGTH, WIDTH, name="position")(jnp.arange(LENGTH))
            return nn.Dense(LETTERS, name="head")(through(x, True))

    return ViT() if name == "vit" else GPT()


# -- both --------------------------------------------------------------------------------------------------------------


def problem(name: str, net: Any, inputs: np.ndarray, labels: np.ndarray) -> tuple[Any, Any, Any]:
    """(lla_jax's loss, parameters, data) with a torch network's weights; the loss of a row of letters is their mean."""
    import optax

    import lla_jax as lla

    def criterion(scores: Any, batch: Any) -> Any:
        found = optax.softmax_cross_entropy_with_integer_labels(scores, batch[1])
        return found.reshape(found.shape[0], -1).mean(-1)

    variables = curvature.to_flax({key: w.numpy() for key, w in net.state_dict().items()})
    return lla.from_linen(flax_transformer(name), variables, criterion), variables["params"], (inputs, labels)
