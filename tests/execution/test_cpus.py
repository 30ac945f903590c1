"""One call gives jax a CPU device per core; it never overrules what is set, and says where jax has started."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core import cores
from lla_jax.execution import cpus

DEVICES = jax.local_device_count()

FRESH = """
import json
import lla_jax as lla

found = [lla.use_cpu_devices(3), lla.use_cpu_devices(), lla.use_cpu_devices(3)]
try:
    lla.use_cpu_devices(2)
except ValueError as error:
    found.append(str(error))
import jax
print(json.dumps([*found, len(jax.local_devices(backend="cpu"))]))
"""


def test_jax_starts_with_the_devices_that_were_asked_for():
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    told = subprocess.check_output([sys.executable, "-W", "ignore", "-c", FRESH], env=environment, text=True)
    *numbers, refusal, devices = json.loads(told.splitlines()[-1])
    assert numbers == [3, 3, 3]
    assert refusal.startswith("num: 2 given; it must be 3, which jax_num_cpu_devices has already")
    assert devices == 3


def test_the_number_in_xla_flags_stays(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=x --{cores.DEVICE_COUNT}={DEVICES} --y")
    assert lla.use_cpu_devices() == lla.use_cpu_devices(DEVICES) == DEVICES
    with pytest.raises(ValueError, match=rf"^num: 9 given; it must be {DEVICES}, which XLA_FLAGS has already"):
        lla.use_cpu_devices(9)


def test_where_jax_has_started_the_error_says_when_to_call_it(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert lla.use_cpu_devices(DEVICES) == DEVICES
    with pytest.raises(ValueError, match=rf"started with {DEVICES}; call lla.use_cpu_devices\(\) right after"):
        lla.use_cpu_devices(DEVICES + 1)
    assert jax.config.values["jax_num_cpu_devices"] < 0


@pytest.mark.parametrize("num", [0, -1, 1.5, "2", True])
def test_a_number_that_is_none_is_refused(num):
    with pytest.raises(ValueError, match="num: "):
        lla.use_cpu_devices(num)


def test_one_device_for_several_cores_is_mentioned_once(monkeypatch, caplog):
    def line(**execution):
        params, data = np.ones(2, np.float32), np.ones((4, 2), np.float32)
        axes = lla.directions.given(np.array([1, 2], np.float32))
        execution = lla.Execution(chunk=3, microbatch=4, loop="map", share=False, **execution)
        lla.evaluate(lambda p, b: (b @ p).mean(), params, data, axes, lla.grid(points=3, dims=1), execution=execution)
        return sum("lla.use_cpu_devices()" in record.message for record in caplog.records)

    caplog.set_level(logging.INFO, "lla_jax")
    monkeypatch.setattr(cpus, "count_cores", lambda: 2)
    cpus.mention_one_device.cache_clear()
    assert line(devices=1) == 0  # asked for
    one = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one)
    assert line() == line() == 1
    cpus.mention_one_device.cache_clear()
