from lla_jax.core.losses import as_loss as as_loss
from lla_jax.core.static import static as static
from lla_jax.models.calling import Options as Options
from lla_jax.models.equinox import from_equinox as from_equinox
from lla_jax.models.linen import from_linen as from_linen
from lla_jax.models.nnx import from_nnx as from_nnx
