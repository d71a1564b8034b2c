import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("worker.py")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "grpc_proxy")


class Devices:
    """Runs `worker.py` in processes of their own, and reads what they found."""

    def __init__(self, folder):
        self.folder = folder

    def run(self, *arguments, devices=1, processes=1, **options):
        """Waits for processes that work as one; all of them have to end well."""
        started = self.start([str(WORKER), str(self.folder), *arguments], devices, processes, **options)
        said = [process.communicate(timeout=380)[0] for process in started]
        assert all(process.returncode == 0 for process in started), said[0]
        return said[0]

    def start(self, command, devices=1, processes=1):
        flags = f"--xla_force_host_platform_device_count={devices}"
        environment = {name: value for name, value in os.environ.items() if name.lower() not in _PROXIES}
        environment |= {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        if processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_COORDINATOR_BIND_ADDRESS": address}
            environment |= {"JAX_NUM_PROCESSES": str(processes)}
        return [
            subprocess.Popen(
                [sys.executable, *command],
                env=environment | ({"JAX_PROCESS_ID": str(number)} if processes > 1 else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in range(processes)
        ]

    def numbers(self, family, mesh):
        with np.load(self.folder / f"{family}-{mesh}.npz") as stored:
            return dict(stored)

    def about(self, family, mesh):
        return json.loads((self.folder / f"{family}-{mesh}.json").read_text())

    def agree(self, family, mesh, reference="none"):
        """Asserts that a mesh gives what one device does."""
        one, many = self.numbers(family, reference), self.numbers(family, mesh)
        assert one.keys() == many.keys()
        for name, wanted in one.items():
            np.testing.assert_allclose(many[name], wanted, rtol=1e-5, atol=1e-5, err_msg=f"{family} {mesh} {name}")


@pytest.fixture(scope="module")
def devices(tmp_path_factory):
    return Devices(tmp_path_factory.mktemp("devices"))


@pytest.fixture
def ends():
    """Processes that a test kills itself, or that are killed behind it."""
    started = []
    yield started
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.communicate()
