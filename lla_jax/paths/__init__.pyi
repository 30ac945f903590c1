from lla_jax.paths.checkpoints import from_checkpoints as from_checkpoints
from lla_jax.paths.recording import load as load
from lla_jax.paths.recording import record as record
from lla_jax.paths.trajectories import Checkpoint as Checkpoint
from lla_jax.paths.trajectories import Trajectory as Trajectory
from lla_jax.paths.trajectories import as_trajectory as as_trajectory
from lla_jax.paths.trajectories import given as given
