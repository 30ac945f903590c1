"""``python -m lla_jax.cli`` is ``lla-jax``."""

import sys

from lla_jax.cli.main import main

sys.exit(main())
