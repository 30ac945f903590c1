"""Several processes as one: two real ones on this machine give what one gives, and end if the other is killed."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.execution import processes as hosts
from tests import helpers
from tests.execution import host_process

SCRIPT = pathlib.Path(host_process.__file__)
ENVIRONMENT = {  # of a process; compiling is what takes the time there
    "XLA_FLAGS": "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true",
    "JAX_PLATFORMS": "cpu",
}
LIMIT_S = 150  # of a pair of processes, on a busy machine


def together(mode, folder, num=2):
    """(exit codes, texts of stderr, seconds after the first ended that the last did) of a group of processes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    logs = [folder / f"{mode}.{p}.log" for p in range(num)]
    running = []
    for p, log in enumerate(logs):
        with open(log, "w") as file:
            command = [sys.executable, str(SCRIPT), mode, str(p), str(num), str(port), str(folder)]
            running.append(subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | ENVIRONMENT))
    ended, limit = {}, time.monotonic() + LIMIT_S
    try:
        while len(ended) < num and time.monotonic() < limit:
            ended |= {
                p: time.monotonic() for p, each in enumerate(running) if p not in ended and each.poll() is not None
            }
            time.sleep(0.05)
    finally:
        for each in running:
            each.kill()
            each.wait()
    texts = [log.read_text() for log in logs]
    assert len(ended) == num, f"not all ended within {LIMIT_S} s: {texts}"
    return [each.returncode for each in running], texts, max(ended.values()) - min(ended.values())


def read(folder, mode, process):
    with np.load(folder / f"{mode}.{process}.npz") as file:
        return dict(file)


def test_two_processes_are_one(tmp_path):
    codes, texts, _ = together("numbers", tmp_path)
    assert codes == [0, 0], texts
    both = [read(tmp_path, "numbers", p) for p in (0, 1)]
    one = host_process.numbers(0, (sum(host_process.SIZES),))
    for name, expected in one.items():
        assert np.array_equal(both[0][name], both[1][name]), name  # the same bits in both
        tolerance = 1e-4 if name in ("basis", "betas") else 1e-5
        assert np.abs(both[0][name] - expected).max() < tolerance * np.abs(expected).max(), name
    for found in both:
        params, selection, vector, elsewhere = found["said"]
        assert "params: differ between the processes: process 0 has others than [1]" in params
        assert "select: differ between the processes" in selection
        assert "v: process 0 multiplies another vector than [1]" in vector
        assert "params: differ between the processes: process 0 has others than [1]" in elsewhere


def test_killed_and_continued(tmp_path):
    codes, texts, seconds = together("8", tmp_path)
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, None)
    assert seconds < 30
    assert "lost process 1 of 2" in texts[0]
    kept = lla.load(tmp_path / "partial.npz", like=helpers.params())
    assert kept.recipe["stopped"] == "interrupted"  # by the loss: saved once more, after the last on the way
    assert 7 <= kept.products <= 8
    codes, texts, _ = together("0", tmp_path)  # continues, and nobody is killed
    assert codes == [0, 0], texts
    one, two = (read(tmp_path, "0", p) for p in (0, 1))
    data = host_process.own(0, (sum(host_process.SIZES),))
    H = lla.hessian(host_process.loss(), helpers.params(), data)
    uninterrupted = lla.eigenpairs(H, jax.random.key(host_process.SEED), 4, tol=1e-5)
    assert np.array_equal(one["values"], two["values"])
    assert one["products"][0] == kept.products
    assert one["products"][1] <= uninterrupted.products + 2  # all in all; those before the kill were not repeated
    assert np.abs(one["values"] - uninterrupted.values).max() < 1e-5 * np.abs(uninterrupted.values).max()


def test_coordinator_killed_while_the_others_are_busy(tmp_path):
    codes, texts, seconds = together("idle", tmp_path, num=3)
    assert codes[0] == -signal.SIGKILL
    assert seconds < 30
    for code, text in zip(codes[1:], texts[1:]):
        assert code not in (0, None)
        assert "leader task was preempted/died" in text  # jax's own words: process 0


def test_misuse_of_start_and_of_processes():
    for arguments, message in (
        ({"coordinator": "localhost:1"}, "coordinator, num, process: 'localhost:1', None, None given; pass all three"),
        (
            {"coordinator": "localhost:1", "num": 2, "process": 2},
            "process: 2 given; it must be an integer from 0 to 1, another one",
        ),
        ({"heartbeat": 0}, "heartbeat: 0 given; it must be an integer of at least 1, the seconds"),
        ({"coordinator_address": "localhost:1"}, r"coordinator_address: start\(\) has .* did you mean coordinator\?"),
        ({"heartbeat_timeout_seconds": 3}, r"heartbeat_timeout_seconds: start\(\) has .* did you mean heartbeat\?"),
    ):
        with pytest.raises(ValueError, match=message):
            hosts.start(**arguments)
    with pytest.raises(ValueError, match=r"execution.processes: 2 given; it must be one of 'all', 'own'"):
        lla.hessian(helpers.mlp_loss(), helpers.params(), helpers.dataset(), execution=lla.Execution(processes=2))
    assert jax.process_count() == 1
    assert isinstance(lla.hessian(helpers.mlp_loss(), helpers.params(), helpers.dataset()), lla.LinearOperator)
