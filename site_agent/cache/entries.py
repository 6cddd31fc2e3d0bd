"""One cached entry: tokens and skips of one frame as a safetensors file, checked when it is read."""

import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from site_agent.damage import Damaged
from site_agent.models.backbone import Prefix

NAMES = Prefix._fields
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}

Allocate = Callable[[int], torch.Tensor]
"""Number of bytes → memory for them, uint8."""


def write(key: bytes, entry: Prefix) -> bytes:
    """Return the file of an entry; `key`, canonical JSON, says what it was computed from."""
    tensors = {name: value.contiguous() for name, value in zip(NAMES, entry, strict=True)}
    return save(tensors, {"key": key.decode(), "crc32": str(_checksum(tensors.values()))})


def read(path: Path, key: bytes, allocate: Allocate | None = None) -> Prefix | None:
    """Return an entry; None if there is none. Its numbers lie in the mapped file, or are read into what `allocate` gives.

    Raises Damaged if the file is not whole, is of another key, or its numbers are not those that were written (CRC-32 of them
    all, their types and shapes, looked at on every reading: it costs a millisecond for 7 MB).
    """
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            if facts.get("key") != key.decode():
                raise Damaged(path, "it is another entry than its name says")
            entry = Prefix(*map(file.get_tensor, NAMES)) if allocate is None else _read_into(allocate, path, file)
    except FileNotFoundError:
        return None
    except RuntimeError as error:
        if "unable to open" in str(error):  # by torch: it was removed since it was found
            return None
        raise  # memory ran out, and nothing is wrong with the file
    except (OSError, SafetensorError, KeyError) as error:
        raise Damaged(path, f"it cannot be read: {error}") from error
    if facts.get("crc32") != str(_checksum(entry)):
        raise Damaged(path, "its checksum differs from the one it was written with")
    return entry


def _read_into(allocate: Allocate, path: Path, file: Any) -> Prefix:
    """Read the numbers in one go: to have them mapped and then copied costs a page fault for every few of them."""
    slices = {name: file.get_slice(name) for name in file.offset_keys()}
    shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    dtypes = {name: DTYPES[part.get_dtype()] for name, part in slices.items()}
    sizes = {name: torch.Size(shapes[name]).numel() * dtypes[name].itemsize for name in slices}
    memory = allocate(sum(sizes.values()))
    with path.open("rb", buffering=0) as raw:
        # safe_open has seen to it that the numbers are the file's end, without a gap
        raw.seek(-len(memory), os.SEEK_END)
        if raw.readinto(memory.numpy().data) != len(memory):
            raise Damaged(path, "it ends too soon")
    parts = dict(zip(slices, torch.split(memory, list(sizes.values())), strict=True))
    return Prefix(*(parts[name].view(dtypes[name]).reshape(shapes[name]) for name in NAMES))


def _checksum(tensors: Iterable[torch.Tensor]) -> int:
    """Of types and shapes, which a damaged header may change, and of all numbers."""
    found = 0
    for tensor in tensors:
        found = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), found)
        found = zlib.crc32(tensor.view(torch.uint8).numpy().data, found)
    return found
