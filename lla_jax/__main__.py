"""Runs the command line ``lla-jax`` as ``python -m lla_jax``."""

import sys

from lla_jax.cli.start import main

sys.exit(main())
