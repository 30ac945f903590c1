from lla_jax.paths.components import pca as pca
from lla_jax.paths.projections import Projection as Projection
from lla_jax.paths.projections import project as project
from lla_jax.paths.surroundings import grid_around as grid_around
from lla_jax.paths.trajectories import Trajectory as Trajectory
from lla_jax.paths.trajectories import as_trajectory as as_trajectory
from lla_jax.paths.trajectories import given as given
