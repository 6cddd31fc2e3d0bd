"""Masked autoencoding of synthetic pairs: one process, one seed, the same weights every time on the same machine."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

from experiments.pretraining_pairs import Pairs, view
from site_agent.models.config import ConvViTConfig
from site_agent.models.mae import MaskedAutoencoder

DEMO_CONFIG = ConvViTConfig(
    image_size=(64, 64, 8),
    enc_conv_chans=(16, 32),
    enc_conv_n_blocks=1,
    enc_embed_dim=96,
    enc_depth=6,
    enc_n_heads=4,
)
"""CineMA's network with one block per stage and fewer of everything."""
DECODER_DIM, DECODER_DEPTH, DECODER_HEADS = 64, 2, 4
BATCH = 32
PEAK_RATE = 1.5e-3
WARM_UP = 0.05
"""Share of the steps over which the learning rate rises; a cosine takes it to zero after."""
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.05
CLIP_NORM = 1.0
VALIDATION_MASK_SEED = 7


@dataclass(frozen=True, slots=True)
class Epoch:
    """One line of the history: mean squared errors over hidden patches, grey values in 0..1."""

    epoch: int
    train_mse: float
    validation_mse: float
    cpu_s: float
    """Since the start of training."""


def train(
    model: MaskedAutoencoder, pairs: Pairs, validation: Pairs, epochs: int, seed: int, after: Callable[[Epoch], None]
) -> None:
    """Train in place; `after` hears of every epoch. Order, views and masks come from `seed` alone."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2,)))
    masks = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(_groups(model), lr=PEAK_RATE, betas=BETAS)
    per_epoch = math.ceil(len(pairs) / BATCH)
    start, step = time.process_time(), 0
    for epoch in range(1, epochs + 1):
        total = 0.0
        for chosen in np.array_split(rng.permutation(len(pairs)), per_epoch):
            images = _entries(model, torch.from_numpy(np.stack([view(pairs[index], rng) for index in chosen])))
            for group in optimiser.param_groups:
                group["lr"] = rate(step, epochs * per_epoch)
            loss = model(images, masks)
            optimiser.zero_grad()
            loss.backward()
            clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimiser.step()
            total += loss.item() * len(chosen)
            step += 1
        error = validation_error(model, validation)
        after(Epoch(epoch, total / len(pairs), error, time.process_time() - start))


def rate(step: int, steps: int) -> float:
    """Return the learning rate of a step, counted from 0."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return PEAK_RATE * (step + 1) / warm
    return PEAK_RATE * 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def validation_error(model: MaskedAutoencoder, pairs: Pairs) -> float:
    """Return the mean squared error of unchanged images under masks that are the same at every call."""
    masks = torch.Generator().manual_seed(VALIDATION_MASK_SEED)
    total = 0.0
    with torch.inference_mode():
        for part in np.array_split(pairs, math.ceil(len(pairs) / BATCH)):
            images = _entries(model, torch.from_numpy(part.astype(np.float32) / 255.0))
            total += model(images, masks).item() * len(part)
    return total / len(pairs)


def _entries(model: MaskedAutoencoder, images: torch.Tensor) -> torch.Tensor:
    """Pairs (B, 2, H, W, D) as the network sees them: both frames as channels, or every frame by itself."""
    return images.reshape(-1, model.config.image_chans, *images.shape[2:])


def _groups(model: MaskedAutoencoder) -> list[dict[str, object]]:
    """Weight decay for matrices and kernels; none for biases, norms and tokens."""
    decayed: list[torch.nn.Parameter] = []
    free: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (free if parameter.ndim < 2 or name.endswith("_token") else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": free, "weight_decay": 0.0}]
