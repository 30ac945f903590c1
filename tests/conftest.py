"""Settings of all tests: four CPU devices and a shared compilation cache, before jax starts, and hypothesis."""

import os
import pathlib

import hypothesis

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "lla_jax" / "tests"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

hypothesis.settings.register_profile("lla_jax", deadline=None, max_examples=25, derandomize=True, database=None)
hypothesis.settings.load_profile("lla_jax")
