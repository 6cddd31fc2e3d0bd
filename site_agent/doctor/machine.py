"""The machine: room on disks, and shared memory."""

import shutil
from pathlib import Path

from shared.contract import Contract
from site_agent.cache.folder import LEFT_FREE_BYTES, CacheFolder
from site_agent.doctor import rights
from site_agent.doctor.finding import Examined, Finding, failed, passed, warned

MB, GB = 1_000_000, 1_000_000_000
LEAST_STATE_BYTES = 100 * MB
COPIES_A_ROUND, COPIES_BESIDE = 3, 8
"""Of the adapter in a state folder: local part, update and residual of each round; beside them versions and checkpoints."""
SHARED_BYTES, SHARED_BYTES_OF_SEVERAL = 60 * MB, GB
"""Containers get 64 MiB by default. NCCL, which several GPUs talk by, wants a gigabyte (NCCL user guide, troubleshooting)."""


def disk(examined: Examined) -> Finding:
    """Look for room where the state and the frozen activations go, and whether this user may write there."""
    config = examined.config
    needed = _state_bytes(examined.contract)
    folders = {"state": config.state} | ({"cache": config.cache_folder} if config.cache_mb else {})
    if closed := rights.closed(folders):
        return failed("; ".join(words for words, _ in closed), "; ".join(remedy for _, remedy in closed))
    free = {name: shutil.disk_usage(rights.nearest(folder)).free for name, folder in folders.items()}
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


def _state_bytes(contract: Contract | None) -> int:
    if contract is None:
        return LEAST_STATE_BYTES
    copies = COPIES_A_ROUND * contract.policy.rounds + COPIES_BESIDE
    return max(LEAST_STATE_BYTES, copies * contract.manifest.layout.size)


def _held(cache: Path) -> int:
    return sum(usage.size for usage in CacheFolder(cache, 0).usage()) if cache.is_dir() else 0
