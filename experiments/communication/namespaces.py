"""Network namespaces: a hub and sites around it, each on a line of its own with a rate in both directions.

Made with `ip` and `tc` as root, with names and private addresses of their own, and taken away when the block ends.
"""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from shared.errors import InputError

SYSTEM_FOLDERS = "/usr/sbin:/sbin"
"""Where the programs lie; not everybody who may run them has these in PATH."""
HUB_ADDRESS = "10.213.255.1"
"""Of the hub, whichever line one comes by."""
BURST_BYTES = 15_000
"""What the token bucket lets pass at once: ten packets; less would keep it from its rate."""
QUEUE_MS = 200
"""How long a packet may wait in the queue before it is dropped: more than a full window takes."""


@dataclass(frozen=True, slots=True)
class Star:
    """Prefixes of commands that are to run in the hub, or at a site."""

    hub: Sequence[str]
    sites: Sequence[Sequence[str]]


def check() -> None:
    """Raise InputError unless namespaces can be made here."""
    missing = [name for name in ("ip", "tc") if shutil.which(name, path=_path()) is None]
    if missing:
        raise InputError(
            f"network namespaces need the programs ip and tc, {missing[0]} is not there: apt install iproute2"
        )
    if os.geteuid() != 0:
        raise InputError("network namespaces are made by root only; run this as root, or in: unshare -Urnm")


@asynccontextmanager
async def star(sites: int, bits_per_s: int) -> AsyncIterator[Star]:
    """Make a hub and so many sites, and take them away again."""
    check()
    prefix = f"mdl{os.getpid()}"
    hub, names = f"{prefix}h", [f"{prefix}s{number}" for number in range(sites)]
    try:
        await _run("ip", "netns", "add", hub)
        await _run(*_in(hub), "ip", "link", "set", "lo", "up")
        await _run(*_in(hub), "ip", "address", "add", f"{HUB_ADDRESS}/32", "dev", "lo")
        for number, name in enumerate(names):
            await _line(hub, name, number, bits_per_s)
        yield Star(_in(hub), [_in(name) for name in names])
    finally:
        for name in (*names, hub):  # the ends of a line go with the namespaces they lie in
            await _run("ip", "netns", "delete", name, check=False)


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:{SYSTEM_FOLDERS}"


def _in(namespace: str) -> list[str]:
    return ["ip", "netns", "exec", namespace]


async def _line(hub: str, name: str, number: int, bits_per_s: int) -> None:
    """Add a site: a pair of virtual devices, an address at each end, a rate each way."""
    near, far = f"to{number}", "hub"
    await _run("ip", "netns", "add", name)
    await _run(*_in(name), "ip", "link", "set", "lo", "up")
    await _run("ip", "link", "add", near, "netns", hub, "type", "veth", "peer", "name", far, "netns", name)
    for namespace, device, end in ((hub, near, 1), (name, far, 2)):
        await _run(*_in(namespace), "ip", "address", "add", f"10.213.{number}.{end}/24", "dev", device)
        await _run(*_in(namespace), "ip", "link", "set", device, "up")
        limits = ("rate", f"{bits_per_s}bit", "burst", f"{BURST_BYTES}", "latency", f"{QUEUE_MS}ms")
        await _run(*_in(namespace), "tc", "qdisc", "add", "dev", device, "root", "tbf", *limits)
    await _run(*_in(name), "ip", "route", "add", HUB_ADDRESS, "via", f"10.213.{number}.1")


async def _run(*command: str, check: bool = True) -> None:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PATH": _path()},
    )
    _, said = await process.communicate()
    if check and process.returncode:
        raise InputError(f"{' '.join(command)} failed: {said.decode().strip() or process.returncode}; are you root?")
