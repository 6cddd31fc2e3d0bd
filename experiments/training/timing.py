"""Seconds of several things that are done in turns, so that what disturbs the machine disturbs all of them alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from experiments import output

Work = Callable[[], object]
Name = TypeVar("Name")


def interleaved(variants: Mapping[Name, Work], repetitions: int, device: torch.device) -> dict[Name, list[float]]:
    """Return the seconds of every repetition of each variant, after a first turn that is not counted."""
    for work in variants.values():
        work()
    taken: dict[Name, list[float]] = {name: [] for name in variants}
    for _ in range(repetitions):
        for name, work in variants.items():
            taken[name].append(seconds(work, device))
    return taken


def seconds(work: Work, device: torch.device) -> float:
    """Return how long it takes until it is done, on a GPU too."""
    _finish(device)
    began = time.perf_counter()
    work()
    _finish(device)
    return time.perf_counter() - began


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine() -> dict[str, Any]:
    """Return what the figures hang on beside the code."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {**output.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__, "gpu": gpu}


def heading(what: str, machine: Mapping[str, Any]) -> str:
    """Return the line above a table."""
    load = f"load average before: {machine['load_average'][0]:.2f} on {machine['cores']} cores"
    return f"{what}; {machine['threads']} threads, torch {machine['torch']}; {load}"


def spreads(taken: Mapping[Name, Sequence[float]]) -> dict[Name, Any]:
    """Return seconds as JSON values."""
    return {name: {**output.spread(values), "seconds": list(values)} for name, values in taken.items()}
