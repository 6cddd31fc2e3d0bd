"""How much memory there is, and how much of it one sample of a training step takes.

For CPUs: a GPU says when its memory is full, a kernel kills. What is answered is the same on the same machine at any time.
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


RAN_OUT = (
    "DefaultCPUAllocator",  # "can't allocate memory", or on Windows "not enough memory"
    "bad_alloc",
    "could not create a primitive",  # oneDNN says no more than that when it finds no room for its code
    "could not create a memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""What a RuntimeError says that is one of memory, where torch has no class of its own for it."""


def for_training(processes: int) -> int:
    """Return what each of so many processes of this machine may take: together half of all, not of what is free just now."""
    return total_bytes() // 2 // processes


def total_bytes(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> int:
    """Return the machine's memory, or the least limit that this process's control groups (version 1 or 2) set."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = (number_in(file) for file in limit_files(cgroups, own))
    return min([machine, *(limit for limit in limits if limit is not None)])


def limit_files(cgroups: Path, own: Path) -> list[Path]:
    """Return where the limits of this process's control groups stand, if they have any."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return []
    files = []
    for line in lines:  # 0::/system.slice/site.service, or 9:memory:/docker/0123
        _, controllers, path = line.split(":", 2)
        within = Path(path.lstrip("/"))
        for group in (
            within,
            *within.parents,
        ):  # in a container the path may be that of the host: then only "." is there
            if not controllers:
                files.append(cgroups / group / "memory.max")
            elif "memory" in controllers.split(","):
                files.append(cgroups / "memory" / group / "memory.limit_in_bytes")
    return files


def number_in(file: Path) -> int | None:
    """Return what a file says; None if it is not there, not ours to read, or says `max`."""
    try:
        text = file.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def saved_bytes(model: nn.Module, forward: Callable[[], torch.Tensor]) -> int:
    """Return the bytes that a forward pass keeps for its backward pass, without the model's own."""
    own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself, it would hold the operation that holds it, and never be freed

    with saved_tensors_hooks(note, lambda tensor: tensor):
        output = forward()
    del output  # until here no storage could take the place of another
    return sum(kept.values())


def ran_out(error: BaseException) -> bool:
    """Return whether it was memory that there was not enough of."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in RAN_OUT)
