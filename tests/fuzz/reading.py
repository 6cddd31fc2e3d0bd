"""Targets that read bytes: adapter files, contracts, update payloads."""

import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from random import Random

from aggregator import payload
from shared.adapter import Adapter, AdapterManifest
from shared.contract import Contract, RoundPolicy
from shared.layout import Layout
from shared.recipe import make
from tests.fuzz import adapter_files, json_texts, payloads
from tests.fuzz.target import ACCEPTED, Ready
from tests.support import adapters


class AdapterFiles:
    """`Adapter.read` and `Adapter.from_bytes`, by which both sides read a file. Its manifest cannot say more than the file has."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz-")
        self._path = Path(self._folder.name) / "adapter.safetensors"

    def seeds(self) -> list[bytes]:
        """Return files of several kinds of adapter."""
        made = adapters.adapter()
        nested = adapters.adapter(residual=adapters.RESIDUAL_RANK)
        later = made.successor(adapters.tensors(seed=5), 7)
        dense, _ = adapters.fitting("full")
        return [one.to_bytes() for one in (made, nested, later, dense, adapters.adapter(width=30, blocks=4))]

    def mutated(self, data: bytes, rng: Random) -> bytes:
        """Return another file."""
        return adapter_files.mutated(data, rng)

    def ready(self, data: bytes) -> Ready:
        """Write the file, if it is to be read as one: one in sixteen, since a disk takes longer than the parser."""
        if len(data) % 16:
            return Ready(len(data), lambda: self._same(Adapter.from_bytes(data)))
        self._path.write_bytes(data)
        return Ready(len(data), lambda: self._same(Adapter.read(self._path)))

    def _same(self, read: Adapter) -> str:
        """What is read must be written as the same adapter."""
        assert Adapter.from_bytes(read.to_bytes()).digest == read.digest
        return ACCEPTED

    def close(self) -> None:
        """Remove the file."""
        self._folder.cleanup()


class Contracts:
    """The manifest and the whole contract, as JSON that the other side or a file holds. A byte says which."""

    def seeds(self) -> list[bytes]:
        """Return manifests and contracts."""
        made = []
        for name in ("med-duallora", "fedex-lora"):
            adapter, parameters = adapters.fitting(name)
            contract = Contract(
                federation="demo",
                adapter_digest=adapter.digest,
                manifest=adapter.manifest,
                recipe=make(name, parameters),
                policy=RoundPolicy(),
            )
            made += [b"m" + adapter.manifest.to_bytes(), b"c" + contract.to_bytes()]
        return made

    def mutated(self, data: bytes, rng: Random) -> bytes:
        """Return another text."""
        return data[:1] + json_texts.mutated(data[1:], rng)

    def ready(self, data: bytes) -> Ready:
        """No tensors come with a manifest, and none may be made of it: its size is that of its text."""
        return Ready(len(data), partial(_contract if data[:1] == b"c" else _manifest, data[1:]))

    def close(self) -> None:
        """Nothing is held."""


class Payloads:
    """`payload.checked`, by which the aggregator reads an update before it counts."""

    def seeds(self) -> list[bytes]:
        """Return a payload for every codec."""
        return payloads.seeds()

    def mutated(self, data: bytes, rng: Random) -> bytes:
        """Return another payload."""
        return payloads.mutated(data, rng)

    def ready(self, data: bytes) -> Ready:
        """Choose the layout."""
        data = data.ljust(2, b"\0")
        layout = payloads.layout_of(data)
        return Ready(layout.size, partial(_checked, layout, payloads.pieces(data)))

    def close(self) -> None:
        """Nothing is held."""


def _contract(text: bytes) -> str:
    """Read a contract; it must have one hash."""
    read = Contract.from_bytes(text)
    assert Contract.from_bytes(read.to_bytes()).sha256 == read.sha256
    return ACCEPTED


def _manifest(text: bytes) -> str:
    """Read a manifest; it must have one digest."""
    read = AdapterManifest.from_bytes(text)
    assert AdapterManifest.from_bytes(read.to_bytes()).digest == read.digest
    return ACCEPTED


def _checked(layout: Layout, pieces: Iterable[bytes]) -> str:
    for _ in payload.checked(layout, pieces):
        continue
    return ACCEPTED
