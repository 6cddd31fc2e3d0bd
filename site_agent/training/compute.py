"""Where and in which numbers a site computes: its device, and float32 or bfloat16 matrix products."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from shared.errors import InputError
from site_agent.config import Device, Precision

WIDE = 128
"""Width from which bfloat16 pays on a GPU, or a CPU that multiplies it natively; narrower networks lose more by converting than
they gain. `python -m experiments.training precision` measures it."""


@dataclass(frozen=True, slots=True)
class Compute:
    """A device and the precision of its matrix products; parameters and sums stay float32."""

    device: torch.device
    bfloat16: bool = False

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which the trained part runs."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)


def pick(device: Device, precision: Precision, width: int, gpu: int | None = None) -> Compute:
    """Return what to compute with; `width` is the network's embedding dimension, `gpu` the number of a process's own GPU.

    auto: CUDA if torch sees a GPU; bfloat16 there and on a CPU that multiplies it natively, if the network is wide. Raises
    InputError if CUDA is asked for and not there, or there are fewer GPUs than processes.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda' but torch sees no GPU; install a CUDA build of torch or set device = 'cpu'")
    chosen = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    if gpu is not None and chosen.type == "cuda":
        if gpu >= torch.cuda.device_count():
            raise InputError(
                f"process {gpu} of this machine has no GPU of its own, torch sees {torch.cuda.device_count()}; give torchrun "
                "--nproc-per-node that number, or set device = 'cpu'"
            )
        chosen = torch.device("cuda", gpu)
    if precision == "auto":
        native = chosen.type == "cuda" or _multiplies_bfloat16()
        return Compute(chosen, native and width >= WIDE)
    return Compute(chosen, precision == "bfloat16")


def _multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for it (AVX512-BF16 or AMX); torch has no public name for the question."""
    return any(
        bool(getattr(torch.cpu, name, bool)()) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
