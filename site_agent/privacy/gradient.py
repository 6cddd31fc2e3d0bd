"""The gradient of a private step: every patient's clipped, their sum, and noise (DP-SGD).

    g = (sum_i g_i min(1, C / || g_i ||) + N(0, sigma^2 C^2 I)) / (q n_k)

g_i: gradient of the mean loss of all views of patient i, frames included, over every tensor that travels, together one vector. So
adding or removing one patient changes the sum by at most C (add/remove-one neighbours). Source: Abadi et al. 2016,
arXiv:1607.00133, algorithm 1; views averaged before clipping as De et al. 2022, arXiv:2204.13650, section 3.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import structlog
import torch
from torch import nn

from shared.errors import InputError
from shared.recipe import Recipe
from site_agent.privacy import sampling
from site_agent.privacy.stream import NOISE, Floats, Stream
from site_agent.training.activations import Looked
from site_agent.training.gradient import Gradient
from site_agent.training.schedule import Batch

log = structlog.get_logger()


@dataclass
class ClippedSum:
    """Adds up vectors (size,), each scaled down to a norm of at most `clip`, in float64.

    One that is not finite counts as zero, so that what holds for a patient's contribution holds for every patient.
    """

    clip: float
    total: Floats
    left_out: int = 0

    @classmethod
    def of(cls, size: int, clip: float) -> "ClippedSum":
        return cls(clip, np.zeros(size))

    def add(self, vector: Floats) -> None:
        norm = float(np.linalg.norm(vector))
        if not math.isfinite(norm):
            self.left_out += 1
            return
        self.total += vector * min(1.0, self.clip / norm if norm else 1.0)


@dataclass(frozen=True)
class PrivateGradient:
    """Leaves it in the tensors that travel, and no gradient anywhere else.

    gradient: of a batch's mean loss, on one process. travelling: what is clipped together, by name.
    """

    gradient: Gradient
    travelling: Mapping[str, nn.Parameter]
    recipe: Recipe
    patients: int
    stream: Stream
    _of_all: Sequence[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_of_all", [self.travelling[name] for name in sorted(self.travelling)])

    def of(self, batch: Batch, step: int, looked: Iterator[Sequence[Looked]]) -> float:
        """Replace the gradients by the step's noisy one; return the patients' mean loss, nan without any: it stays at the site.

        `looked` yields next what was looked up of the batch's views.
        """
        recipe, losses = self.recipe, list[float]()
        total = ClippedSum.of(sum(p.numel() for p in self._of_all), recipe.dp_clip)
        for views, found in _by_patient(batch, next(looked)):
            losses.append(self.gradient.of(views, iter([found])))
            total.add(self._vector())
        if total.left_out:
            log.warning("gradient_not_finite")  # of how many is a figure without noise
        noise = recipe.dp_noise * recipe.dp_clip * self.stream.normals(NOISE, step, len(total.total))
        self._put((total.total + noise) / sampling.expected(self.patients, recipe))
        return float(np.mean(losses)) if losses else math.nan

    def _vector(self) -> Floats:
        """The gradients of all that travels, flat; zero where a tensor has none."""
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._of_all]
        flat: Floats = torch.cat([part.detach().flatten() for part in parts]).to("cpu", torch.float64).numpy()
        return flat

    def _put(self, flat: Floats) -> None:
        for parameter in self.gradient.parameters:
            parameter.grad = None
        at = 0
        for parameter in self._of_all:
            part = torch.from_numpy(flat[at : at + parameter.numel()]).to(torch.float32)
            parameter.grad = part.view_as(parameter).to(parameter.device)
            at += parameter.numel()


def check_covers(travelling: Mapping[str, nn.Parameter], trained: Iterable[nn.Parameter]) -> None:
    """Raise InputError unless what is clipped and noised is all of what the private pass trains, and nothing else."""
    clipped, moved = {id(p): name for name, p in travelling.items()}, {id(p) for p in trained}
    if clipped.keys() != moved:
        names = [clipped.get(one, "a tensor that does not travel") for one in sorted(clipped.keys() ^ moved)]
        raise InputError(
            f"differential privacy covers what travels, and the private pass of this recipe trains something else ({names[0]}); "
            "choose recipe ffa-lora"
        )


def _by_patient(batch: Batch, looked: Sequence[Looked]) -> Iterator[tuple[Batch, Sequence[Looked]]]:
    """Yield each patient's views as a batch of their own: neighbours of one case."""
    start = 0
    while start < len(batch.views):
        end = start
        while end < len(batch.views) and batch.views[end].case is batch.views[start].case:
            end += 1
        yield replace(batch, views=batch.views[start:end], labels=batch.labels[start:end]), looked[start:end]
        start = end
