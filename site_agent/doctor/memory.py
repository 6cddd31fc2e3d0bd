"""How much memory is free: of the machine, and within the limits of the control groups that this process is in."""

import os
from pathlib import Path

from site_agent.training.memory import CGROUPS, OWN_CGROUP, limit_files, number_in

MEMINFO = Path("/proc/meminfo")
USED = {"memory.max": ("memory.current", ""), "memory.limit_in_bytes": ("memory.usage_in_bytes", "total_")}
"""Beside a group's limit, what all in it use, and how memory.stat begins a number that is of them all (the kernel's documentation,
cgroup-v2.rst and cgroup-v1/memory.rst)."""
CACHED = ("inactive_file", "active_file")


def free_bytes(meminfo: Path = MEMINFO, cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> int:
    """Return what could be had without swapping, as MemAvailable of proc(5) counts it: cached files are free."""
    left = [_left(file, limit) for file in limit_files(cgroups, own) if (limit := number_in(file)) is not None]
    return min([_machine(meminfo), *left])


def _machine(meminfo: Path) -> int:
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) << 10
    except (OSError, StopIteration, ValueError):  # no Linux
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _left(limit_file: Path, limit: int) -> int:
    """Return what a group's limit leaves to others of the group."""
    name, begins = USED[limit_file.name]
    used = number_in(limit_file.with_name(name)) or 0
    try:
        lines = limit_file.with_name("memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    numbers = {kind: int(value) for kind, _, value in (line.partition(" ") for line in lines)}
    cached = sum(numbers.get(begins + kind, 0) for kind in CACHED)
    return max(0, limit - max(0, used - cached))
