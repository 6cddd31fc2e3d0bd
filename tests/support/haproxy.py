"""A real HAProxy in front of replicas, with the configuration that `deploy/` documents."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "haproxy.cfg"
SETTLED_S = 10.0


def binary() -> str:
    """Return the program. Fails the test, naming what to install, where it is not."""
    found = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        pytest.fail("HAProxy is not installed, and the documented balancer is tested with it: apt install haproxy")
    return found


@contextmanager
def balancing(listen_port: int, first: str, second: str, log: Path) -> Iterator[str]:
    """Balance 127.0.0.1:`listen_port` over two replicas until the block ends; yield its address."""
    address = f"127.0.0.1:{listen_port}"
    environment = {**os.environ, "MED_DUALLORA_LISTEN": address, "REPLICA_1": first, "REPLICA_2": second}
    with (
        log.open("ab") as output,
        subprocess.Popen(
            [binary(), "-db", "-f", str(CONFIGURATION)], env=environment, stdout=output, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            wait_for(listen_port, process)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return when somebody listens on the port; fail if the process that should is gone."""
    end = time.monotonic() + SETTLED_S
    while time.monotonic() < end:
        assert process.poll() is None, f"the balancer ended with {process.returncode}"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"the balancer does not listen on port {port}")
