"""Frozen activations, computed once: the blocks before the first adapted one give the same output for the same image.

An entry is what enters the first adapted block, for one frame stack of one view of one case: with siamese frames ED and ES are
entries of their own. It is computed alone, in evaluation mode, without gradients and in float32, and rounded to what the cache
keeps, so its numbers are a function of the image and the base model: whether it was found or computed makes no difference.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import structlog
import torch

from shared.errors import InputError
from site_agent.cache.activations import Cache
from site_agent.data import cohort, windows
from site_agent.data.cases import Case
from site_agent.models.backbone import Prefix
from site_agent.models.classifier import CineClassifier
from site_agent.training import augment, memory
from site_agent.training.compute import Compute
from site_agent.training.resident import Resident
from site_agent.training.views import View

log = structlog.get_logger()
Size3 = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Image:
    """What must be known of a case's image to name its entries: digest of its voxels, and its shape once it is padded."""

    digest: str
    shape: Size3


@dataclass(frozen=True, slots=True)
class Looked:
    """What was found of one view: its entries, or None where they must be computed, and then the image to do it from."""

    view: View
    entries: tuple[Prefix | None, ...]
    image: np.ndarray | None


@dataclass
class Activations:
    """Gives prefixes for views. `look` may run on other threads than the rest; the model is used by one at a time.

    seed: of the random views. stored: how a kept entry's numbers are written, float16, bfloat16 or float32.
    """

    model: CineClassifier
    image_size: Size3
    seed: int
    compute: Compute
    cache: Cache | None = None
    stored: torch.dtype = torch.float32
    ranges: augment.Ranges = augment.RANGES["cinema"]
    resident: Resident | None = None
    _images: dict[str, Image] = field(default_factory=dict)

    def begin_round(self) -> None:
        """From here on, what was last used two rounds ago may give way to what is needed now."""
        if self.cache is not None:
            self.cache.folder.begin_turn()
        if self.resident is not None:
            self.resident.begin_round()

    def make_room(self) -> bool:
        """Give back what memory of the device can be done without; return whether there was any."""
        return self.resident is not None and self.resident.clear()

    def windows(self, case: Case) -> list[View]:
        """The overlapping windows that evaluation combines; one if the model takes the whole volume."""
        return [View(case, "window", i) for i in range(len(self._starts(case)))]

    def image_digest(self, case: Case) -> str:
        """SHA-256 of a case's voxels, hex; read once in a process."""
        return self._image_of(case).digest

    def prefixes(self, views: Sequence[View]) -> Prefix:
        """Return tokens and skips of `views`, stacked, on the device: (n * entries, T, D) and (n * entries, N or 0, D), float32."""
        return self.finish([self.look(view) for view in views])

    def look(self, view: View) -> Looked:
        """Find what is cached of a view, and read its image if something is not. Uses no model."""
        entries = tuple(self._find(view, frame) for frame in range(self.model.entries_per_case))
        return Looked(view, entries, self._image(view) if any(entry is None for entry in entries) else None)

    def finish(self, looked: Sequence[Looked]) -> Prefix:
        """Compute what was not found, and bring all of it to the device."""
        entries = [
            self._bring(one.view, frame, entry) for one in looked for frame, entry in enumerate(self._computed(one))
        ]
        return Prefix(*(self._stack([getattr(entry, name) for entry in entries]) for name in Prefix._fields))

    def fill(
        self,
        views: Sequence[View],
        should_stop: Callable[[], bool] = lambda: False,
        on_progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> int:
        """Compute what is missing of `views`, as far as it can be kept, handing nothing out; return how many views that were.

        Leaves off when asked to stop. `on_progress` hears how many of all views have been seen to.
        """
        computed = 0
        for done, view in enumerate(views if self.cache is not None else (), start=1):
            if should_stop():
                break
            if view.kept and not all(self._held(view)):
                if not self._computed_ahead(view) or not all(self._held(view)):
                    break  # there is no room for more
                computed += 1
            on_progress(done, len(views))
        return computed

    def _computed_ahead(self, view: View) -> bool:
        """Compute the entries of a view, to be kept. Returns whether memory was enough: if not, training will see to it."""
        for _ in range(2):
            try:
                list(self._computed(self.look(view)))
                return True
            except (RuntimeError, MemoryError) as error:
                if not memory.ran_out(error):
                    raise
            if not self.make_room():
                break
        log.warning("memory_ran_out", next="no more activations are computed ahead of this round")
        return False

    def _find(self, view: View, frame: int) -> Prefix | None:
        """Return an entry that is kept: on the device, in its file, or on the way to a GPU."""
        if self.cache is None or not view.kept:
            return None
        there = self.resident.get((view, frame)) if self.resident is not None else None
        if there is not None:
            return there
        return self.cache.find(self._key(view, frame), None if self.compute.device.type == "cpu" else _pinned)

    def _bring(self, view: View, frame: int, entry: Prefix) -> Prefix:
        """Return an entry on the device, where it stays if it may."""
        there = Prefix(*(value.to(self.compute.device, non_blocking=True) for value in entry))
        if self.resident is not None and self.cache is not None and view.kept:
            self.resident.put((view, frame), there)
        return there

    def _held(self, view: View) -> Iterator[bool]:
        for frame in range(self.model.entries_per_case):
            yield self.cache is not None and self.cache.holds(self._key(view, frame))

    def _computed(self, looked: Looked) -> Iterator[Prefix]:
        """Yield the entries of a view, in the order of frames."""
        for frame, entry in enumerate(looked.entries):
            if entry is None:  # or it was computed since it was looked for
                entry = self._find(looked.view, frame)
            if entry is None:
                assert looked.image is not None
                entry = self._compute(looked.view, np.split(looked.image, len(looked.entries))[frame])
                if self.cache is not None and looked.view.kept:
                    self.cache.keep(self._key(looked.view, frame), entry)
            yield entry

    def _compute(self, view: View, frames: np.ndarray) -> Prefix:
        """(channels, *image_size) → one entry, on the CPU if it is to be kept: (1 + N, D) and (N, D)."""
        image = torch.from_numpy(np.ascontiguousarray(frames)).to(self.compute.device)[None]
        if not view.kept:
            with torch.no_grad(), self.compute.autocast():
                found = self.model.frozen(image)
            return Prefix(found.tokens[0], found.skips[0])
        with torch.no_grad():
            found = self.model.frozen(image)
        entry = Prefix(*(value[0].to("cpu", self.stored) for value in found))
        if not all(bool(value.isfinite().all()) for value in entry):
            raise InputError(
                f"activations of case {view.case.key} are not finite as {str(self.stored).removeprefix('torch.')}; set "
                'cache_dtype = "bfloat16" or "float32" in site.toml, and check the weights if that does not help'
            )
        return entry

    def _stack(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return parts as one float32 tensor on the device: the copy widens them."""
        shape = (len(parts), *parts[0].shape)
        stacked = torch.empty(shape, dtype=torch.float32, device=self.compute.device)
        for i, part in enumerate(parts):
            stacked[i].copy_(part)
        return stacked

    def _key(self, view: View, frame: int) -> dict[str, Any]:
        """What an entry is computed from, besides what all entries of the cache have in common."""
        image = self._image_of(view.case)
        key: dict[str, Any] = {"image": image.digest, "frame": frame}
        if view.kind == "random":
            return {
                **key,
                "case": view.case.key,
                "random": view.index,
                "seed": self.seed,
                "ranges": asdict(self.ranges),
                "made_by": augment.made_by(),
            }
        return {**key, "start": [int(at) for at in self._starts(view.case)[self._window(view)]]}

    def _image(self, view: View) -> np.ndarray:
        """float32 (2, *image_size) in [0, 1]."""
        pair = cohort.load_pair(view.case)
        if view.kind == "random":
            seed = augment.case_seed(self.seed, view.case.key, view.index)
            return augment.view_of(pair, self.image_size, seed, self.ranges)
        return np.asarray(windows.split(cohort.pad_to(pair, self.image_size), self.image_size)[self._window(view)])

    def _window(self, view: View) -> int:
        return len(self._starts(view.case)) // 2 if view.kind == "plain" else view.index

    def _starts(self, case: Case) -> np.ndarray:
        return windows.starts(self._image_of(case).shape, self.image_size)

    def _image_of(self, case: Case) -> Image:
        """Read once in a process; the volumes themselves are not held."""
        if case.key not in self._images:
            frames = cohort.load_frames(case)
            x, y, z = (max(have, want) for have, want in zip(frames.shape[1:], self.image_size, strict=True))
            self._images[case.key] = Image(cohort.image_digest(frames), (x, y, z))
        return self._images[case.key]


def _pinned(count: int) -> torch.Tensor:
    """Return memory that a GPU can copy from by itself; torch keeps and reuses it."""
    return torch.empty(count, dtype=torch.uint8, pin_memory=True)
