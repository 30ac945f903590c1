"""Loss landscapes of neural networks in JAX: where did training end up, and will it generalize?

Names are loaded when they are first used (PEP 562), so that ``import lla_jax`` is instant and imports no jax.
"""

from lla_jax import _former, _lazy
from lla_jax._version import __version__ as __version__

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
_former.find_former(__name__, __all__, __getattr__)
