"""The gradient of one step: of a batch's mean loss, in micro-batches, shared by a site's processes."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from site_agent.models.classifier import CineClassifier
from site_agent.training import ahead, parallel
from site_agent.training.activations import Activations, Looked
from site_agent.training.micro_batch import MicroBatch
from site_agent.training.parallel import Group
from site_agent.training.schedule import Batch


@dataclass(frozen=True, slots=True)
class Gradient:
    """Leaves it in `parameters`. loss_of: logits (n, classes), labels (n,) → weighted loss of each sample (n,)."""

    model: CineClassifier
    activations: Activations
    parameters: Sequence[nn.Parameter]
    loss_of: nn.Module
    micro_batch: MicroBatch
    group: Group

    def looked_up(self, batches: Iterable[Batch]) -> Generator[list[Looked], None, None]:
        """Yield what is cached of this process's share of each batch, one ahead of its use."""
        return ahead.looked_up((batch.views[self._share(batch)] for batch in batches), self.activations)

    def of(self, batch: Batch, looked: Iterator[Sequence[Looked]]) -> float:
        """Replace the gradients by those of the batch's mean loss, and return that: the same in every process.

        `looked` is what `looked_up` yields, and next this batch's.
        """
        return self.group.summed(self.parameters, lambda: self._of_share(batch, next(looked)))

    def _of_share(self, batch: Batch, looked: Sequence[Looked]) -> float:
        """Leave this process's share of the gradient, return that of the loss. Begins anew when memory runs out in the middle."""
        labels = torch.from_numpy(batch.labels[self._share(batch)])
        return self.micro_batch.fitted(
            len(looked), lambda at_once: self._accumulate(looked, labels, len(batch.views), at_once)
        )

    def _accumulate(self, looked: Sequence[Looked], labels: torch.Tensor, batch_size: int, at_once: int) -> float:
        for parameter in self.parameters:
            parameter.grad = None
        compute, value = self.activations.compute, 0.0
        for start in range(0, len(looked), at_once):
            part = slice(start, start + at_once)
            prefix = self.activations.finish(looked[part])
            with compute.autocast(), self.micro_batch.saving(self.model):
                logits = self.model.suffix(prefix)
            loss = self.loss_of(logits.float(), labels[part].to(compute.device)).sum() / batch_size
            loss.backward()
            value += float(loss.detach())
        return value

    def _share(self, batch: Batch) -> slice:
        return parallel.share(len(batch.views), self.group)
