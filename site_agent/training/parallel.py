"""What the processes that train one site together have to say to each other; alone, nothing.

All of them run the same code on the same adapter, each on its share of every batch, window or view, and hold the same numbers
after every step: the gradients of the trained parameters are summed, and clipping and AdamW are the same everywhere.

This is data parallel over the adapter's parameters only. It does what torch's DistributedDataParallel would do, in one sum of one
flat tensor when a step's micro-batches are all done. DDP begins to exchange gradients within the backward pass: a process that
runs out of memory there and begins again would leave the others waiting, and a recipe that trains other factors in other rounds
would need the model wrapped anew for each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import nn

from shared.errors import MedDualLoRAError

T = TypeVar("T")


class ProcessLost(MedDualLoRAError):
    """Another process of this site has ended or cannot be reached."""


class Failed(Exception):
    """Raised where rank is above 0 when any process failed at its share: rank 0 has the error, and says what comes of it."""


class Ended(Exception):
    """Raised where rank is above 0 when rank 0 has no more work."""


class Group(Protocol):
    """The processes of a site. What is not said to be of one process is called by all, in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def local_size(self) -> int:
        """How many of them share this machine's memory."""
        ...

    @property
    def gpu(self) -> int | None:
        """Number of this process's own GPU, if there are GPUs; None: whichever torch takes."""
        ...

    def told(self, value: T) -> T:
        """Return what rank 0 gave."""
        ...

    def gathered(self, work: Callable[[], T]) -> list[T]:
        """Return what `work` returned in each process, by rank. What it raised in any is raised at rank 0; Failed at the others."""
        ...

    def summed(self, parameters: Sequence[nn.Parameter], work: Callable[[], float]) -> float:
        """Return the sum of what `work` returns, and sum the gradients that it leaves in `parameters`; errors as `gathered`.

        A process whose share is empty leaves none: they count as zero.
        """
        ...


@dataclass(frozen=True, slots=True)
class Alone:
    """One process: what it says to itself is what it has."""

    rank: int = 0
    size: int = 1
    local_size: int = 1
    gpu: int | None = None

    def told(self, value: T) -> T:
        return value

    def gathered(self, work: Callable[[], T]) -> list[T]:
        return [work()]

    def summed(self, parameters: Sequence[nn.Parameter], work: Callable[[], float]) -> float:
        del parameters
        return work()


ALONE = Alone()


def share(count: int, group: Group) -> slice:
    """Return which of `count` things are this process's: as many as the others', or one more or less, in one piece; maybe none."""
    return slice(count * group.rank // group.size, count * (group.rank + 1) // group.size)
