"""Deprecated alias of ``lla_torch.program.views``; importing it warns, and it is removed in the next release."""

import warnings

from lla_torch.program.views import View, aligned, as_view, channels_last, inverse, merge_tail, plain

__all__ = ["View", "aligned", "as_view", "channels_last", "inverse", "merge_tail", "plain"]

warnings.warn(
    "lla_torch.views is now lla_torch.program.views; import that. The former path goes with the next release",
    DeprecationWarning,
    stacklevel=2,
)
