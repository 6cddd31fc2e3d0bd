"""One training step in several ways: what is adapted, and whether the frozen blocks run in it.

A step is forward, loss, backward and AdamW on what is trained, heads included, with one label per image. Clipping is left out
everywhere. Only the cached step reads anything from disk; the others have their image in memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from experiments.training import synthetic
from site_agent.models.classifier import CineClassifier
from site_agent.models.config import ConvViTConfig
from site_agent.training.activations import Activations
from site_agent.training.compute import Compute
from site_agent.training.views import View

RATE = 1e-3


@dataclass(frozen=True)
class Step:
    """Trains one batch when it is called. `logits` is what the forward pass gives."""

    logits: Callable[[], torch.Tensor]
    labels: torch.Tensor
    optimiser: torch.optim.Optimizer
    compute: Compute

    @classmethod
    def of(cls, model: torch.nn.Module, logits: Callable[[], torch.Tensor], batch: int, compute: Compute) -> "Step":
        """Return the step that trains whatever of `model` can be trained."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        labels = (torch.arange(batch) % 2).to(compute.device)
        fused = compute.device.type == "cuda" or None  # as in site_agent/training/local.py
        return cls(logits, labels, torch.optim.AdamW(trained, lr=RATE, fused=fused), compute)

    def __call__(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        with self.compute.autocast():
            logits = self.logits()
        torch.autograd.backward(F.cross_entropy(logits.float(), self.labels))
        self.optimiser.step()


def cached(model: CineClassifier, activations: Activations, views: Sequence[View]) -> Step:
    """The trained blocks on entries that are read from the cache in the step."""
    return Step.of(model, lambda: model.suffix(activations.prefixes(views)), len(views), activations.compute)


def uncached(model: CineClassifier, image: torch.Tensor, compute: Compute) -> Step:
    """The same model, its frozen part run in every step; without gradients, in the precision of training."""

    def logits() -> torch.Tensor:
        with torch.no_grad():
            prefix = model.frozen(image)
        return model.suffix(prefix)

    return Step.of(model, logits, len(image), compute)


def full(config: ConvViTConfig, image: torch.Tensor, compute: Compute) -> Step:
    """Every parameter of the backbone trained."""
    model = synthetic.classifier(config).requires_grad_(True).to(compute.device)
    return Step.of(model, lambda: model.suffix(model.frozen(image)), len(image), compute)


def peft(config: ConvViTConfig, image: torch.Tensor, compute: Compute) -> Step:
    """Hugging Face peft: two LoRA adapters, both active and both trained, on the same layers of the last two blocks."""
    from peft import LoraConfig, get_peft_model

    model = synthetic.classifier(config)
    blocks = "|".join(str(block) for block in range(config.enc_depth)[-2:])
    targets = rf"backbone\.encoder\.blocks\.({blocks})\.attn\.(q|kv|proj)"
    chosen = LoraConfig(r=8, lora_alpha=16, target_modules=targets)
    wrapped = get_peft_model(model, chosen, adapter_name="global")
    wrapped.add_adapter("local", chosen)
    tuner: Any = wrapped.base_model  # the wrapper's own set_adapter takes one name
    tuner.set_adapter(["global", "local"])
    for head in model.heads().values():
        head.requires_grad_(True)
    wrapped.to(compute.device)
    return Step.of(wrapped, lambda: wrapped(image), len(image), compute)
