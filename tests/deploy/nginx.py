"""A real nginx in front of replicas, with the configuration that `deploy/` documents or another one."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import haproxy

DOCUMENTED = haproxy.CONFIGURATION.with_name("nginx.conf")
MODULES = Path("/usr/lib/nginx/modules")


def binary() -> str:
    """Return the program. Fails the test, naming what to install, where it or its stream module is not."""
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None or not (MODULES / "ngx_stream_module.so").is_file():
        pytest.fail("nginx with its stream module is not installed: apt install nginx libnginx-mod-stream")
    return found


def documented(folder: Path, listen: str, first: str, second: str) -> Path:
    """Write the documented configuration with these addresses and files in `folder` for its own; nothing else is changed."""
    text = DOCUMENTED.read_text()
    for theirs, ours in (
        ("10.0.0.11:50051", first),
        ("10.0.0.12:50051", second),
        ("listen 50051", f"listen {listen}"),
        ("/run/med-duallora-nginx.pid", str(folder / "nginx.pid")),
        ("/dev/stdout", str(folder / "connections.log")),
    ):
        text, count = re.subn(re.escape(theirs), ours, text)
        assert count == 1, f"{theirs} stands {count} times in {DOCUMENTED}"
    return written(folder, text)


def written(folder: Path, text: str) -> Path:
    """Write a configuration where nginx can run with it; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "modules").exists():
        (folder / "modules").symlink_to(MODULES)
    (folder / "nginx.conf").write_text(text)
    return folder / "nginx.conf"


def command(configuration: Path) -> list[str]:
    """Return the words that run nginx in the foreground with this configuration."""
    return [binary(), "-p", f"{configuration.parent}/", "-e", "stderr", "-c", str(configuration), "-g", "daemon off;"]


@contextmanager
def running(configuration: Path, port: int) -> Iterator[None]:
    """Run nginx until the block ends."""
    log = configuration.with_suffix(".log")
    with (
        log.open("ab") as output,
        subprocess.Popen(command(configuration), stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        try:
            haproxy.wait_for(port, process)
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
