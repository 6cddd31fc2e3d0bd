"""Making a file's tensors fit a network, as far as that is the same for all networks: report, structure, first kernel."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from shared.errors import InputError
from site_agent.models.config import Frames

_NAMED_AT_MOST = 3

Kind = Literal["encoder", "classifier", "pretraining"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What was done with each tensor of a weights file."""

    kind: Kind
    loaded: tuple[str, ...]
    rebuilt: tuple[str, ...]
    """Made for the model's own size instead of read."""
    ignored: tuple[str, ...]
    kernel_repeated: bool
    frames_see_same_kernel: bool
    """Stacked frames share one kernel, so the stem computes f(ED + ES)."""


def check_structure(
    usable: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], optional: Collection[str], source: str
) -> None:
    """Raise InputError naming the first tensors that are missing, unexpected or of another shape than in `target`."""
    missing = sorted(set(target) - set(usable) - set(optional))
    unexpected = sorted(set(usable) - set(target))
    reshaped = [
        f"{name} is {list(usable[name].shape)}, expected {list(target[name].shape)}"
        for name in sorted(set(usable) & set(target))
        if usable[name].shape != target[name].shape
    ]
    faults = [
        f"{len(names)} {what}: {', '.join(names[:_NAMED_AT_MOST])}{', …' if len(names) > _NAMED_AT_MOST else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("reshaped", reshaped))
        if names
    ]
    if faults:
        raise InputError(
            f"{source} does not fit the model: {'; '.join(faults)}. Check that --size or config.json describes this file"
        )


def over_frames(kernel: torch.Tensor, chans: int, n_frames: int, frames: Frames, where: str) -> torch.Tensor:
    """A one-frame kernel (O, chans, h, w, d) repeated over the network's frames and not divided; any other as it is.

    `where` names file and tensor. Raises InputError for siamese frames and a kernel that sees more than one.
    """
    if kernel.ndim != 5 or kernel.shape[1] == chans * n_frames:
        return kernel
    if frames == "siamese" and kernel.shape[1] > chans:
        raise InputError(
            f"{where} takes {kernel.shape[1]} channels, so these weights see frames stacked; "
            f"siamese frames need a kernel of {chans}, as in a pre-training checkpoint. "
            "Use weights of a network that saw single frames, or an adapter made with --frames stacked"
        )
    return (
        kernel.repeat(1, n_frames, 1, 1, 1) if kernel.shape[1] == chans else kernel
    )  # else the structure check names it


def of_one_frame(kernel: torch.Tensor, n_frames: int) -> torch.Tensor:
    """The kernel of one frame if all frames have the same, else the kernel as it is."""
    return kernel.chunk(n_frames, dim=1)[0] if is_repeated(kernel, n_frames) else kernel


def is_repeated(kernel: torch.Tensor, n_frames: int) -> bool:
    """Whether there are several frames and one kernel for all."""
    first, *others = kernel.chunk(n_frames, dim=1)
    return bool(others) and all(torch.equal(first, other) for other in others)
