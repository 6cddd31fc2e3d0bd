"""One cached entry: tokens and skips of one frame as a safetensors file, mapped into memory and checked when it is read."""

import zlib
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from site_agent.damage import Damaged
from site_agent.models.backbone import Prefix

NAMES = Prefix._fields


def write(key: bytes, entry: Prefix) -> bytes:
    """Return the file of an entry; `key`, canonical JSON, says what it was computed from."""
    tensors = {name: value.contiguous() for name, value in zip(NAMES, entry, strict=True)}
    return save(tensors, {"key": key.decode(), "crc32": str(_checksum(tensors.values()))})


def read(path: Path, key: bytes) -> Prefix | None:
    """Return an entry, its numbers lying in the file; None if there is none.

    Raises Damaged if the file is not whole, is of another key, or its numbers are not those that were written (CRC-32 of them
    all, looked at on every reading: it costs a millisecond for 7 MB).
    """
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            if facts.get("key") != key.decode():
                raise Damaged(path, "it is another entry than its name says")
            entry = Prefix(*(file.get_tensor(name) for name in NAMES))
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        raise Damaged(path, f"it cannot be read: {error}") from error
    if facts.get("crc32") != str(_checksum(entry)):
        raise Damaged(path, "its checksum differs from the one it was written with")
    return entry


def _checksum(tensors: Iterable[torch.Tensor]) -> int:
    found = 0
    for tensor in tensors:
        found = zlib.crc32(tensor.view(torch.uint8).numpy().data, found)
    return found
