"""How many samples go through the trained part of the model at a time: as many as memory holds.

On a GPU the whole batch is tried, and half of it for as long as memory runs out. On a CPU it would be the kernel that ends the
process, so what half of the machine's memory holds is worked out beforehand.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import structlog
import torch

from shared.errors import InputError
from shared.memory import give_back
from site_agent.models.backbone import Prefix
from site_agent.models.classifier import CineClassifier
from site_agent.training import ahead, memory
from site_agent.training.activations import Activations, Looked
from site_agent.training.recompute import recomputed
from site_agent.training.views import View

log = structlog.get_logger()
T = TypeVar("T")

FLOAT32_BYTES, FRAMES_OF_A_CASE = 4, 2
AT_ONCE, IMAGE_BYTES = 32, 5_000_000
"""Most samples at a time where nothing is trained; on a CPU no more than have images of so many bytes: what is passed on from block
to block takes several times that, and nobody says when it is too much."""


@dataclass
class MicroBatch:
    """Found once, and kept for later steps and rounds."""

    size: int = 0
    """Samples at a time; 0: all that there are, as long as nothing else is known."""
    recompute: bool = False
    """Whether the trained blocks are checkpointed (site_agent/training/recompute.py)."""
    make_room: Callable[[], bool] = field(default=lambda: False, compare=False, repr=False)
    """Gives back memory that can be done without, and says whether there was any: then as much is tried again."""

    def find(self, model: CineClassifier, activations: Activations, views: Sequence[View], within_bytes: int) -> None:
        """On a CPU, set the size to what keeps within so much memory, by what one sample takes. `views`: of a largest batch.

        To be called while everything is trainable that ever is: a size that depended on the round would depend on where a
        process began.
        """
        if self.size or activations.compute.device.type != "cpu":
            return
        prefix = activations.prefixes(views[:1])
        with activations.compute.autocast():
            sample = memory.saved_bytes(model, lambda: model.suffix(prefix))
        self.size, self.recompute = max(1, within_bytes // max(1, sample)), sample > within_bytes
        if self.size < len(views) or self.recompute:
            log.info(
                "micro_batch_bounded",
                samples=self.size,
                sample_bytes=sample,
                within_bytes=within_bytes,
                gradient_checkpointing=self.recompute,
            )

    def fitted(self, samples: int, work: Callable[[int], T]) -> T:
        """Return `work(n)`, which computes `samples` samples, n at a time. When memory runs out it is done again, with less.

        Raises InputError when there is no less.
        """
        while True:
            at_once = max(1, min(self.size or samples, samples))
            try:
                return work(at_once)
            except (RuntimeError, MemoryError) as error:
                if not memory.ran_out(error):
                    raise
            self._take_less(at_once)  # out here, where no traceback holds the failed try's tensors any more

    def saving(self, model: CineClassifier) -> AbstractContextManager[None]:
        """Return the context of a forward pass of the trained part, which saves no more for the backward pass than it must."""
        return recomputed(model.backbone.blocks[model.first_block :]) if self.recompute else nullcontext()

    def _take_less(self, samples: int) -> None:
        made_room = self.make_room()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        give_back()
        if made_room:
            step = "as many, without what was kept on the device"
        elif samples > 1:
            self.size = samples // 2
            step = f"{self.size} at a time"
        elif not self.recompute:
            self.recompute, step = True, "gradient checkpointing"
        else:
            raise InputError(
                "memory ran out with one sample at a time, in training also with gradient checkpointing, and there is no less: "
                'end what else uses this memory, set device = "cpu" or precision = "bfloat16" in site.toml, or take a larger '
                "machine"
            )
        log.warning("memory_ran_out", samples=samples, next=step)


def over(activations: Activations, views: Sequence[View], compute: Callable[[Prefix], T]) -> list[T]:
    """Return what `compute` makes of the prefixes of `views`, without gradients: some at a time, looked up one batch ahead, and
    fewer when memory runs out."""
    at_once = _at_once(activations)
    batches = [views[start : start + at_once] for start in range(0, len(views), at_once)]
    fitting, results = (
        MicroBatch(recompute=True, make_room=activations.make_room),
        list[T](),
    )  # nothing is kept that could be recomputed
    with torch.no_grad(), closing(ahead.looked_up(batches, activations)) as looked:
        for found in looked:
            rest: Sequence[Looked] = found
            while rest:

                def take(most: int, rest: Sequence[Looked] = rest) -> tuple[int, T]:
                    return most, compute(activations.finish(rest[:most]))

                done, result = fitting.fitted(len(rest), take)
                results.append(result)
                rest = rest[done:]
    return results


def _at_once(activations: Activations) -> int:
    if activations.compute.device.type != "cpu":
        return AT_ONCE
    image = FLOAT32_BYTES * FRAMES_OF_A_CASE * math.prod(activations.image_size)
    return min(AT_ONCE, max(1, IMAGE_BYTES // image))
