"""The machine: room on disks, shared memory, GPU and memory."""

import os
import shutil
from pathlib import Path

from shared.contract import Contract
from site_agent.cache.folder import LEFT_FREE_BYTES, CacheFolder
from site_agent.doctor.finding import Examined, Finding, failed, passed, warned

MB, GB = 1_000_000, 1_000_000_000
LEAST_STATE_BYTES = 100 * MB
COPIES_A_ROUND, COPIES_BESIDE = 3, 8
"""Of the adapter in a state folder: local part, update and residual of each round; beside them versions and checkpoints."""
SHARED_BYTES, SHARED_BYTES_OF_SEVERAL = 60 * MB, GB
"""Containers get 64 MiB by default. NCCL, which several GPUs talk by, wants a gigabyte (NCCL user guide, troubleshooting)."""
LEAST_MEMORY_BYTES = 2 * GB
NVIDIA = Path("/proc/driver/nvidia/version")


def disk(examined: Examined) -> Finding:
    """Look for room where the state and the frozen activations go, and whether this user may write there."""
    config = examined.config
    needed = _state_bytes(examined.contract)
    folders = {"state": config.state} | ({"cache": config.cache_folder} if config.cache_mb else {})
    free: dict[str, int] = {}
    for name, folder in folders.items():
        there = _nearest(folder)
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            why = "not open to this user" if there.is_dir() else "a file"
            return failed(
                f"{name} folder {folder} cannot be written to: {there} is {why}",
                f"give this user rights on {there}, or set `{name}` in site.toml to another folder",
            )
        free[name] = shutil.disk_usage(there).free
    facts = {"free_bytes": free, "state_needs_bytes": needed}
    words = ", ".join(f"{size / GB:,.1f} GB free for {name}" for name, size in free.items())
    if free["state"] < needed:
        return failed(
            f"{free['state'] / MB:,.1f} MB free for the state folder {config.state}, {needed / MB:,.0f} MB are needed",
            "make room there, or set `state` in site.toml to a larger disk: a full one stops the site until there is room",
            **facts,
        )
    if config.cache_mb:
        wanted = config.cache_mb * MB - _held(config.cache_folder) + LEFT_FREE_BYTES
        if free["cache"] < wanted:
            return warned(
                f"{words}; cache_mb = {config.cache_mb} may take {wanted / GB:,.1f} GB with what is left to others",
                "set `cache` to a larger disk, or lower cache_mb: what does not fit is computed again in every epoch",
                **facts,
            )
    return passed(words, **facts)


def shared_memory(examined: Examined) -> Finding:
    """Look how large /dev/shm is. A site of one process does without; the processes of several GPUs do not."""
    import torch

    gpus = torch.cuda.device_count() if examined.config.device != "cpu" else 0
    wanted = SHARED_BYTES_OF_SEVERAL if gpus > 1 else SHARED_BYTES
    remedy = "in a container: --shm-size=1g (docker), shm_size (compose), an emptyDir of medium Memory (Kubernetes)"
    try:
        size = shutil.disk_usage(examined.shared_memory).total
    except OSError as error:
        return warned(f"{examined.shared_memory} cannot be looked at: {error.strerror}", remedy)
    words = f"{examined.shared_memory} has {size / MB:,.0f} MB"
    if size < wanted:
        who = f"{gpus} GPUs under torchrun want" if gpus > 1 else "torch expects"
        return warned(f"{words}, {who} {wanted / MB:,.0f} MB", remedy, bytes=size, wanted_bytes=wanted)
    return passed(words, bytes=size, wanted_bytes=wanted)


def gpu(examined: Examined) -> Finding:
    """Look for what `device` asks for, and how much memory of it is free."""
    import torch

    from site_agent.training.memory import total_bytes

    config = examined.config
    if config.device != "cpu" and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        facts: dict[str, object] = {"device": "cuda", "free_bytes": free, "total_bytes": total}
        facts |= {"gpus": torch.cuda.device_count(), "name": torch.cuda.get_device_name()}
        words = f"{facts['name']}, {free / GB:,.1f} of {total / GB:,.1f} GB free"
        if free < total / 2:
            return warned(
                f"{words}: other programs use it",
                "end what else runs there (nvidia-smi names it); with less memory the agent takes fewer samples at a time",
                **facts,
            )
        return passed(words, **facts)
    driver = NVIDIA.exists()
    if config.device == "cuda":
        return failed(
            f"device is 'cuda', and torch {torch.__version__} sees no GPU",
            "install a CUDA build of torch and look at nvidia-smi (in a container: --gpus all); or set device = 'cpu' in site.toml"
            if driver
            else "install NVIDIA's driver (nvidia-smi shows whether it works); or set device = 'cpu' in site.toml",
            device="cuda",
            driver=driver,
        )
    total, free = total_bytes(), _available_bytes()
    facts = {
        "device": "cpu",
        "free_bytes": free,
        "total_bytes": total,
        "threads": config.threads,
        "cores": os.cpu_count(),
    }
    cores = f"{config.threads} of {os.cpu_count()} cores used (`threads`)"
    words = f"CPU, {cores}, {free / GB:,.1f} of {total / GB:,.1f} GB memory free"
    if driver and config.device == "auto":
        return warned(
            f"{words}; there is an NVIDIA driver, and torch {torch.__version__} sees no GPU",
            "install a CUDA build of torch, or set device = 'cpu' in site.toml if the GPU is not meant for this",
            **facts,
        )
    if free < LEAST_MEMORY_BYTES:
        return warned(words, "end what else runs here, or take a machine with more memory", **facts)
    return passed(words, **facts)


def _state_bytes(contract: Contract | None) -> int:
    if contract is None:
        return LEAST_STATE_BYTES
    copies = COPIES_A_ROUND * contract.policy.rounds + COPIES_BESIDE
    return max(LEAST_STATE_BYTES, copies * contract.manifest.layout.size)


def _nearest(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that is there."""
    whole = folder.absolute()
    return next(one for one in (whole, *whole.parents) if one.exists())


def _held(cache: Path) -> int:
    return sum(usage.size for usage in CacheFolder(cache, 0).usage()) if cache.is_dir() else 0


def _available_bytes() -> int:
    """Return what the kernel could give without swapping (MemAvailable of proc(5)), within the limit of this process's group."""
    from site_agent.training.memory import total_bytes

    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(found << 10, total_bytes())
