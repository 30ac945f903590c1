from lla_jax.paths.trajectories import Trajectory as Trajectory
from lla_jax.paths.trajectories import as_trajectory as as_trajectory
from lla_jax.paths.trajectories import given as given
