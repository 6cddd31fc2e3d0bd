"""Frozen activations, computed once: the blocks before the first adapted one give the same output for the same image.

An entry is what enters the first adapted block, for one (case, view). It is kept in float32 in the process's memory up to a
limit; what does not fit is computed again each time it is asked for, with the same result.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from site_agent.data import cohort, windows
from site_agent.data.cases import Case
from site_agent.models.backbone import Prefix
from site_agent.models.classifier import CineClassifier
from site_agent.training import augment

Size3 = tuple[int, int, int]
PREFIX_BATCH = 8


@dataclass(frozen=True, slots=True)
class View:
    """One way to look at a case: window `index` of the plain image, or random view `index`."""

    case: Case
    kind: str
    """'window' or 'random'"""
    index: int

    @property
    def key(self) -> tuple[str, str, int]:
        return (self.case.key, self.kind, self.index)


@dataclass
class Activations:
    """Gives prefixes for views. One per model and site; not thread-safe."""

    model: CineClassifier
    image_size: Size3
    seed: int
    device: torch.device
    limit_bytes: int
    ranges: augment.Ranges = field(default_factory=augment.Ranges)
    bytes_held: int = 0
    _pairs: dict[str, np.ndarray] = field(default_factory=dict)
    _kept: dict[tuple[str, str, int], Prefix] = field(default_factory=dict)

    def plain(self, case: Case) -> View:
        """The view that training uses as the case itself: its only window, or the middle one."""
        return View(case, "window", len(self._starts(case)) // 2)

    def training_views(self, case: Case, random_views: int) -> list[View]:
        """The plain view and the random ones that training draws from."""
        return [self.plain(case), *(View(case, "random", i) for i in range(1, random_views + 1))]

    def windows(self, case: Case) -> list[View]:
        """The overlapping windows that evaluation combines; one if the model takes the whole volume."""
        return [View(case, "window", i) for i in range(len(self._starts(case)))]

    def prefixes(self, views: Sequence[View]) -> Prefix:
        """Return tokens and skips of `views`, stacked, on the device: (n * entries, 1 + N, D) and (n * entries, N, D)."""
        missing = [v for v in views if v.key not in self._kept]
        made: dict[tuple[str, str, int], Prefix] = {}
        for start in range(0, len(missing), PREFIX_BATCH):
            made |= self._compute(missing[start : start + PREFIX_BATCH])
        parts = [self._kept.get(v.key) or made[v.key] for v in views]
        return Prefix(
            torch.cat([p.tokens for p in parts]).to(self.device, non_blocking=True),
            torch.cat([p.skips for p in parts]).to(self.device, non_blocking=True),
        )

    def adopt(self, other: "Activations") -> None:
        """Take what another one has computed, of the same base model up to the same block, for the same site.

        Raises ValueError if it stops at another block, draws other views or cuts images otherwise.
        """
        mine, theirs = ((one.model.first_block, one.seed, one.image_size, one.ranges) for one in (self, other))
        if mine != theirs:
            raise ValueError(
                f"these activations are of other views: block, seed, size and ranges are {theirs}, not {mine}"
            )
        self._kept, self._pairs, self.bytes_held = other._kept, other._pairs, other.bytes_held

    def fill(self, views: Sequence[View], should_stop: Callable[[], bool] = lambda: False) -> None:
        """Compute what is missing of `views` without handing anything out; leave off when asked to stop."""
        for start in range(0, len(views), PREFIX_BATCH):
            if should_stop():
                return
            self.prefixes(views[start : start + PREFIX_BATCH])

    def _compute(self, views: Sequence[View]) -> dict[tuple[str, str, int], Prefix]:
        images = torch.from_numpy(np.stack([self._image(v) for v in views])).to(self.device)
        with torch.no_grad():
            prefix = self.model.prefix(images)
        entries = self.model.entries_per_case
        made = {}
        for i, view in enumerate(views):
            rows = slice(i * entries, (i + 1) * entries)
            made[view.key] = Prefix(prefix.tokens[rows].cpu().clone(), prefix.skips[rows].cpu().clone())
            self._keep(view.key, made[view.key])
        return made

    def _keep(self, key: tuple[str, str, int], prefix: Prefix) -> None:
        size = prefix.tokens.nbytes + prefix.skips.nbytes
        if self.bytes_held + size <= self.limit_bytes:
            self._kept[key] = prefix
            self.bytes_held += size

    def _image(self, view: View) -> np.ndarray:
        pair = self._pair(view.case)
        if view.kind == "random":
            seed = augment.case_seed(self.seed, view.case.key, view.index)
            return augment.view_of(pair, self.image_size, seed, self.ranges)
        return np.asarray(windows.split(cohort.pad_to(pair, self.image_size), self.image_size)[view.index])

    def _starts(self, case: Case) -> np.ndarray:
        shape = cohort.pad_to(self._pair(case), self.image_size).shape[1:]
        return windows.starts(shape, self.image_size)

    def _pair(self, case: Case) -> np.ndarray:
        """float32 (2, x, y, z) in [0, 1]; the prepared files are small, so they are read once."""
        if case.key not in self._pairs:
            self._pairs[case.key] = cohort.load_pair(case)
        return self._pairs[case.key]
