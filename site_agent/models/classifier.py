"""A cine classifier: a backbone, a way to show it two frames, and CineMA's two heads.

Images are (B, 2, H, W, D), ED then ES, float in [0, 1]. *Stacked*: the backbone takes both as channels. *Siamese*: a one-frame
backbone runs on each, every frame being an entry of its own (a case's entries are neighbours: ED, ES), and the heads see
the mean and the difference ED - ES of the pooled features. In both the logits of the head on the mean patch token
and of the head on the class token are averaged, as CineMA does with `reduce="all"`.
"""

import math
from collections.abc import Mapping
from typing import Self, cast

import torch
from torch import nn

from shared.errors import InputError
from shared.methods import PARTS, Part
from site_agent.models import head
from site_agent.models.backbone import Backbone, Prefix
from site_agent.models.cinema_weights import HEAD_PREFIX
from site_agent.models.config import FRAME_COUNT, Frames
from site_agent.models.head import HEADS, HeadPolicy
from site_agent.models.weights import LoadedBackbone

ADAPTED_BLOCKS = 2
"""How many last blocks are trained unless an adapter says otherwise."""


class CineClassifier(nn.Module):
    """`forward(image) = suffix(prefix(image))`. The prefix ends before block `first_block`, the first that is trained; None: what
    comes before the blocks is trained too, and the prefix is the image itself."""

    def __init__(
        self,
        backbone: Backbone,
        frames: Frames,
        n_classes: int = 2,
        generator: torch.Generator | None = None,
    ) -> None:
        """`generator` draws the heads' weights (the global one when None)."""
        super().__init__()
        self.backbone = backbone
        self.frames: Frames = frames
        self.n_classes = n_classes
        self.first_block: int | None = max(len(backbone.blocks) - ADAPTED_BLOCKS, 0)
        self.pred_head_dict = head.linears(self.feature_dim, n_classes)
        self.private_head_dict = nn.ModuleDict()
        self.head_policy: HeadPolicy = "global"
        self.head_parts: frozenset[Part] = PARTS
        self.reset_heads(generator)

    @classmethod
    def from_loaded(
        cls, loaded: LoadedBackbone, n_classes: int | None = None, generator: torch.Generator | None = None
    ) -> Self:
        """A classifier on loaded weights. Their heads are kept when they have `n_classes` outputs (None: any number)."""
        in_file = loaded.heads.get(f"{HEAD_PREFIX}{HEADS[0]}.bias")
        found = None if in_file is None else len(in_file)
        if n_classes is None and found is None:
            raise InputError("these weights have no heads, so the number of classes must be given")
        model = cls(loaded.model, loaded.frames, n_classes or found or 0, generator)
        if found == model.n_classes:
            model.load_heads(loaded.heads)
        return model

    @property
    def entries_per_case(self) -> int:
        """Prefix entries that one case takes."""
        return FRAME_COUNT if self.frames == "siamese" else 1

    @property
    def feature_dim(self) -> int:
        return self.backbone.embed_dim * self.entries_per_case

    def prefix(self, image: torch.Tensor) -> Prefix:
        """(B, 2, H, W, D) → the backbone's prefix of B * entries_per_case entries."""
        chans = self.backbone.image_chans * self.entries_per_case
        if image.ndim != 5 or image.shape[1] != chans:
            raise InputError(f"expected images (batch, {chans}, height, width, slices), got {tuple(image.shape)}")
        return self.frozen(image.reshape(-1, self.backbone.image_chans, *image.shape[2:]))

    def frozen(self, entries: torch.Tensor) -> Prefix:
        """What the frozen part makes of entries (n, image_chans, H, W, D); the entries themselves if nothing is frozen."""
        if self.first_block is None:
            return Prefix(entries, entries.new_zeros(len(entries), 0))
        return self.backbone.prefix(entries, self.first_block)

    def pooled(self, prefix: Prefix) -> torch.Tensor:
        """Prefix → (B, 2, feature_dim): pooled features for the head on patch tokens and for the one on the class token."""
        if self.first_block is None:
            prefix = self.backbone.prefix(prefix.tokens, 0)
        features = self.backbone.suffix(prefix, self.first_block or 0)
        pooled = torch.stack([features.patch.mean(dim=1), features.cls[:, 0]], dim=1)
        if self.frames == "stacked":
            return pooled
        ed, es = pooled.reshape(-1, FRAME_COUNT, *pooled.shape[1:]).unbind(dim=1)
        return torch.cat([(ed + es) / 2, ed - es], dim=-1)

    def head(self, pooled: torch.Tensor) -> torch.Tensor:
        """(B, 2, feature_dim) → logits (B, n_classes), of the head's parts that are switched on."""
        logits = [self._logits(name, pooled[:, i]) for i, name in enumerate(HEADS)]
        return torch.stack(logits).mean(dim=0)

    def _logits(self, name: str, features: torch.Tensor) -> torch.Tensor:
        return head.logits(
            self.pred_head_dict[name],
            self.private_head_dict[name] if self.private_head_dict else None,
            self.head_policy,
            self.head_parts,
            features,
        )

    def set_head_policy(self, policy: HeadPolicy) -> None:
        """Say what of the head is shared; a private head beside the shared one begins at zero."""
        self.head_policy = policy
        if policy == "global+local":
            self.private_head_dict = head.linears(self.feature_dim, self.n_classes)
            for value in self.private_head_dict.parameters():
                nn.init.zeros_(value)

    def suffix(self, prefix: Prefix) -> torch.Tensor:
        """Prefix → logits (B, n_classes)"""
        return self.head(self.pooled(prefix))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.suffix(self.prefix(image))

    def heads(self) -> dict[str, nn.Parameter]:
        """`pred_head_dict.{sax,cls}.{weight,bias}` → parameter, in name order."""
        return {f"{HEAD_PREFIX}{name}": value for name, value in sorted(self.pred_head_dict.named_parameters())}

    def private_heads(self) -> dict[str, nn.Parameter]:
        """The same of a private head beside the shared one; nothing if there is none."""
        return {f"{HEAD_PREFIX}{name}": value for name, value in sorted(self.private_head_dict.named_parameters())}

    def heads_in_force(self) -> dict[str, torch.Tensor]:
        """Weights and biases of one head with the logits of those parts that are switched on, by the names of `heads`."""
        private = self.private_heads()
        return {
            name: head.in_force(
                value, private.get(name), self.head_policy, self.head_parts, bias=name.endswith(".bias")
            )
            for name, value in self.heads().items()
        }

    def reset_heads(self, generator: torch.Generator | None) -> None:
        """Weights uniform in ±1/sqrt(feature_dim), as PyTorch draws a linear layer's; biases zero."""
        bound = 1 / math.sqrt(self.feature_dim)
        for name, value in self.heads().items():
            if name.endswith(".bias"):
                nn.init.zeros_(value)
            else:
                nn.init.uniform_(value, -bound, bound, generator=generator)

    def load_heads(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy all four head tensors. Raises InputError naming the first that is missing or of another shape."""
        for name, value in self.heads().items():
            if name not in tensors or tensors[name].shape != value.shape:
                got = list(tensors[name].shape) if name in tensors else "nothing"
                raise InputError(f"head {name}: expected {list(value.shape)}, got {got}")
            with torch.no_grad():
                value.copy_(tensors[name])

    def backbone_module(self) -> nn.Module:
        return cast(nn.Module, self.backbone)
