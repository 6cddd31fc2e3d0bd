"""What the site would compute on: GPUs and the memory that is free on them, else the CPU and its memory."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from shared.names import plain
from site_agent.doctor.finding import Examined, Finding, failed, passed, warned

GB = 1_000_000_000
LEAST_MEMORY_BYTES = 2 * GB
HIDES = "CUDA_VISIBLE_DEVICES"
MOST_TEXT = 160


@dataclass(frozen=True, slots=True)
class Gpu:
    """One that torch sees. `wrong`: what CUDA said when it was asked for its memory."""

    number: int
    name: str
    free_bytes: int = 0
    total_bytes: int = 0
    wrong: str = ""

    def __str__(self) -> str:
        said = f"cannot be used ({self.wrong})" if self.wrong else f"{_share(self.free_bytes, self.total_bytes)} free"
        return f"GPU {self.number} ({self.name}): {said}"

    @property
    def is_short(self) -> bool:
        """Whether others have most of it."""
        return bool(self.wrong) or self.free_bytes < self.total_bytes / 2


def computing(examined: Examined) -> Finding:
    """Look for what `device` asks for, and how much memory of it is free."""
    import torch

    device = examined.config.device
    if device != "cpu" and torch.cuda.is_available():
        return _gpus([_seen(number) for number in range(torch.cuda.device_count())])
    if device == "cuda":
        why, remedy = _unseen(examined)
        driver = examined.nvidia.exists()
        return failed(f"device is 'cuda', and torch sees no GPU: {why}", remedy, device="cuda", driver=driver)
    return _cpu(examined)


def _seen(number: int) -> Gpu:
    """Ask CUDA for a GPU's memory. For that it needs some of it itself, and the right to use it."""
    import torch

    name = "unknown"
    try:
        name = torch.cuda.get_device_name(number)
        return Gpu(number, name, *torch.cuda.mem_get_info(number))
    except RuntimeError as error:
        return Gpu(number, name, wrong=_first_line(error))


def _gpus(seen: Sequence[Gpu]) -> Finding:
    """Judge what is free. Without torchrun an agent uses the first one."""
    words = "; ".join(map(str, seen))
    facts = {
        "device": "cuda",
        "gpus": [
            {"name": gpu.name, "free_bytes": gpu.free_bytes, "total_bytes": gpu.total_bytes, "wrong": gpu.wrong}
            for gpu in seen
        ],
    }
    short = [gpu for gpu in seen if gpu.is_short]
    if not short:
        return passed(words, **facts)
    which = " and ".join(str(gpu.number) for gpu in short)
    remedy = f"end what else runs on GPU {which} (nvidia-smi names it)"
    if len(short) < len(seen):
        remedy += f", or name in {HIDES} those that the agent shall use (nvidia-smi -L lists them)"
    if seen[0].wrong:
        return failed(words, f"{remedy}; or set device = 'cpu' in site.toml", **facts)
    return warned(
        f"{words}: other programs use it",
        f"{remedy}; with less memory the agent takes fewer samples at a time",
        **facts,
    )


def _cpu(examined: Examined) -> Finding:
    from site_agent.doctor import memory  # torch
    from site_agent.training.memory import total_bytes

    total, free, config = total_bytes(), memory.free_bytes(), examined.config
    facts = {
        "device": "cpu",
        "free_bytes": free,
        "total_bytes": total,
        "threads": config.threads,
        "cores": os.cpu_count(),
    }
    cores = f"{config.threads} of {os.cpu_count()} cores used (`threads`)"
    said, remedies = [f"CPU, {cores}, {_share(free, total)} memory free"], list[str]()
    if config.device == "auto" and examined.nvidia.exists():
        why, remedy = _unseen(examined)
        said.append(f"there is an NVIDIA driver, and torch sees no GPU: {why}")
        remedies.append(remedy)
    if free < LEAST_MEMORY_BYTES:
        said.append(f"less than the {LEAST_MEMORY_BYTES / GB:g} GB that training may take")
        remedies.append(
            "end what else runs here (ps aux --sort=-rss names it), give a container more (--memory), or take another machine"
        )
    if remedies:
        return warned("; ".join(said), "; ".join(remedies), **facts)
    return passed("; ".join(said), **facts)


def _unseen(examined: Examined) -> tuple[str, str]:
    """Return why torch sees no GPU, and what to do about it."""
    import torch

    if not examined.nvidia.exists():
        why, remedy = "there is no NVIDIA driver here", "install the driver (nvidia-smi shows whether it works)"
    elif torch.version.cuda is None:
        why = f"{torch.__version__} is a build without CUDA"
        remedy = f"install one with it: pip install --force-reinstall torch=={torch.__version__.partition('+')[0]}"
    elif HIDES in examined.environ:
        why = f"{HIDES} is '{plain(examined.environ[HIDES], MOST_TEXT)}'"
        remedy = f"unset {HIDES}, or name in it one of those that nvidia-smi -L lists"
    else:
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
            why = "it does not say why"
        except RuntimeError as error:
            why = _first_line(error)
        remedy = f"see nvidia-smi (in a container: --gpus all); the driver must be one for CUDA {torch.version.cuda} or later"
    return why, f"{remedy}; or set device = 'cpu' in site.toml, if no GPU is meant for this"


def _first_line(error: Exception) -> str:
    return plain(str(error).partition("\n")[0], MOST_TEXT)


def _share(free: int, total: int) -> str:
    return f"{free / GB:,.1f} of {total / GB:,.1f} GB"
