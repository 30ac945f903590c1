"""Networks of the tests of weights."""

from __future__ import annotations

from torch import nn


class Flattens(nn.Module):
    """The rows of its linear layer are stored in another order than torch's."""

    def __init__(self, features=12):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 2)
        self.fc = nn.Linear(features, 4)

    def forward(self, x):
        return self.fc(self.conv(x).flatten(1))
