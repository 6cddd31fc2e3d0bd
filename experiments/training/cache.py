"""Reading and writing the cache of frozen activations: speed, and how often a number is copied on its way into a batch.

Entries are of CineMA-base's size. They are made by a network of its width without frozen blocks, which is quicker: what they say
is of no matter here.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments import output
from experiments.output import Target
from experiments.training import devices, synthetic, timing
from experiments.training.synthetic import BASE
from site_agent.cache.activations import Cache
from site_agent.cache.folder import CacheFolder
from site_agent.models.backbone import Prefix
from site_agent.models.classifier import ADAPTED_BLOCKS
from site_agent.training.activations import Activations
from site_agent.training.compute import Compute
from site_agent.training.views import View

LEAST_GB_S = 1.0
VIEWS = 8
ONE, ALL, COLD, WRITE = "read, one at a time", f"read, batches of {VIEWS}", "read, not in memory", "write, not synced"


def run(repetitions: int, out: Path, which: devices.Which = "all") -> bool:
    """Measure, show, and return whether every target was met."""
    machine, lines, targets, facts = timing.machine(), list[str](), list[Target](), dict[str, Any]()
    out.mkdir(parents=True, exist_ok=True)
    for device in devices.there(which):
        with tempfile.TemporaryDirectory(dir=out, prefix="cache-") as name:
            measured = Measured.of(Path(name), device, repetitions)
        lines += [f"{device.type}:", *measured.table(), *measured.remarks()]
        targets += measured.targets() if device.type == "cpu" else []
        facts[device.type] = measured.facts()
    what = f"cache: SYNTHETIC entries of CineMA-base, float16; medians of {repetitions} turns"
    lines = [timing.heading(what, machine), *lines, *devices.not_run("the same rows", which)]
    return output.show("cache", lines, targets, {"machine": machine, "synthetic": True, "measured": facts}, out)


class Measured:
    """Seconds of each way to read and write the same entries, and where their numbers lie when they are found."""

    def __init__(self, taken: Mapping[str, Sequence[float]], size: int, from_disk: float, mapped: bool) -> None:
        """size: bytes of all entries. from_disk: share of them that the cold readings took from the disk."""
        self.taken, self.size, self.from_disk, self.mapped = taken, size, from_disk, mapped

    @classmethod
    def of(cls, folder: Path, device: torch.device, repetitions: int) -> "Measured":
        """Measure in an empty folder."""
        views = [View(case, "plain") for case in synthetic.cohort(folder, VIEWS)]
        network = synthetic.of_width(BASE.enc_embed_dim, ADAPTED_BLOCKS)
        activations = synthetic.activations(synthetic.dual(network).to(device), folder / "activations", Compute(device))
        activations.fill(views)
        paths = sorted((folder / "activations").rglob("*.safetensors"))
        size = sum(path.stat().st_size for path in paths)
        entry = _entry(activations, views[0])
        writer = Writer(folder / "written", entry)
        works: dict[str, timing.Work] = {
            ONE: lambda: [activations.prefixes([view]) for view in views],
            ALL: lambda: activations.prefixes(views),
            WRITE: writer,
        }
        taken = timing.interleaved(works, repetitions, device)
        cold, read = [], 0
        for _ in range(repetitions):
            _forget(paths)
            before = _bytes_from_disk()
            cold.append(timing.seconds(works[ALL], device))
            read += _bytes_from_disk() - before
        mapped = all(lies_in_file(value, folder / "activations") for value in _entry(activations, views[0]))
        return cls({**taken, COLD: cold}, size, read / size / repetitions, mapped)

    @property
    def copies(self) -> int:
        """How often a number is copied between the page cache and the batch on a CPU: where it is widened, and if it was read
        instead of mapped, there too."""
        return 1 if self.mapped else 2

    def gb_s(self, name: str) -> float:
        """Bytes of the stored entries over the median time."""
        return self.size / output.median(self.taken[name]) / 1e9

    def table(self) -> list[str]:
        """Return a row for each way."""
        rows = [[name, 1e3 * output.median(values) / VIEWS, self.gb_s(name)] for name, values in self.taken.items()]
        return output.table(["", "ms an entry", "GB/s of stored bytes"], rows)

    def remarks(self) -> list[str]:
        """Return what the rows do not say."""
        lies = "lie in the mapped file" if self.mapped else "do NOT lie in the mapped file"
        return [
            f"an entry is {self.size / VIEWS / 1e6:.2f} MB; its numbers {lies} until they are widened into the batch",
            f"not in memory: the kernel was asked to forget the files; {self.from_disk:.0%} of their bytes came from the disk, or "
            "what the machine's host remembers of it",
        ]

    def targets(self) -> list[Target]:
        """Return what must hold."""
        speeds = [Target(f"cache: {name}", self.gb_s(name), LEAST_GB_S, "GB/s", least=True) for name in (ONE, ALL)]
        return [*speeds, Target("cache: copies of a number on its way into a batch", self.copies, 1)]

    def facts(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "bytes": self.size,
            "entries": VIEWS,
            "from_disk": self.from_disk,
            "mapped": self.mapped,
            "gb_s": {name: self.gb_s(name) for name in self.taken},
            "taken": timing.spreads(self.taken),
        }


class Writer:
    """Writes as many entries as are read, each time under new names."""

    def __init__(self, folder: Path, entry: Prefix) -> None:
        self._cache = Cache.of(CacheFolder(folder, synthetic.CACHE_BYTES), {"synthetic": True})
        self._entry, self._turn = entry, 0

    def __call__(self) -> None:
        self._turn += 1
        for number in range(VIEWS):
            self._cache.keep({"turn": self._turn, "number": number}, self._entry)


def _entry(activations: Activations, view: View) -> Prefix:
    """Return an entry that is there as it is found: not widened, not yet in a batch."""
    (entry,) = activations.look(view).entries
    assert entry is not None
    return entry


def lies_in_file(value: torch.Tensor, folder: Path) -> bool:
    """Return whether a tensor's numbers lie in this process's mapping of a file below `folder`."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        addresses, *_, path = line.split(maxsplit=5)
        low, high = (int(address, 16) for address in addresses.split("-"))
        if low <= value.data_ptr() < high:
            return Path(path).is_relative_to(folder.resolve())
    return False


def _forget(paths: Sequence[Path]) -> None:
    """Ask the kernel to drop files from its page cache, which it does for what is on the disk and not mapped."""
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)


def _bytes_from_disk() -> int:
    """Bytes that this process has made the kernel fetch from disks so far."""
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))
