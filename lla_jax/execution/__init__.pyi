from lla_jax.core.types import Execution as Execution
from lla_jax.execution.plans import Plan as Plan
