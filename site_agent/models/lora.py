"""Dual LoRA: every adapted linear layer has a global low-rank part, which travels, and a local one, which does not.

    y = W0 x + b + (alpha_g / r_g) B_g A_g x + (alpha_l / r_l) B_l A_l x

Sources: Hu et al. 2021, arXiv:2106.09685 (LoRA); Med-DualLoRA, arXiv:2603.10967 (two parts, one shared). Of the defaults here
the paper's abstract fixes only that two blocks are adapted; ranks, alphas, targets and head policy are this project's choice.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from shared.errors import InputError
from site_agent.models.backbone import Backbone
from site_agent.models.classifier import ADAPTED_BLOCKS, CineClassifier

Part = Literal["global", "local"]
HeadPolicy = Literal["global", "local", "global+local-bias"]
PARTS: tuple[Part, ...] = get_args(Part)
HEAD_POLICIES: tuple[HeadPolicy, ...] = get_args(HeadPolicy)


@dataclass(frozen=True, slots=True, kw_only=True)
class DualLoRAConfig:
    """What is adapted and how. A rank of 0 leaves that part out. Raises InputError for numbers out of range."""

    blocks: tuple[int, ...] | None = None
    """Indices of adapted blocks; None: the last two (all, if there are fewer)."""
    targets: tuple[str, ...] | None = None
    """Short names of adapted layers (`Backbone.linears`); None: those of the attention."""
    rank_global: int = 8
    rank_local: int = 8
    alpha_global: float = 16.0
    alpha_local: float = 16.0
    head: HeadPolicy = "global+local-bias"

    def __post_init__(self) -> None:
        if min(self.rank_global, self.rank_local) < 0 or self.rank_global + self.rank_local == 0:
            raise InputError(
                f"LoRA ranks must not be negative nor both 0, got global {self.rank_global}, local {self.rank_local}"
            )
        if min(self.alpha_global, self.alpha_local) <= 0:
            raise InputError(f"LoRA alphas must be positive, got global {self.alpha_global}, local {self.alpha_local}")
        if () in (self.targets, self.blocks):
            raise InputError("an adapter needs at least one target layer and one block")
        if self.head not in HEAD_POLICIES:
            raise InputError(f"unknown head policy {self.head!r}; choose one of {', '.join(HEAD_POLICIES)}")

    def rank(self, part: Part) -> int:
        return self.rank_global if part == "global" else self.rank_local

    def scale(self, part: Part) -> float:
        """alpha / rank; 0 for a part that is left out."""
        alpha = self.alpha_global if part == "global" else self.alpha_local
        return alpha / self.rank(part) if self.rank(part) else 0.0


class DualLoRALinear(nn.Module):
    """A frozen linear layer plus two low-rank updates, computed as one product of rank r_g + r_l.

    Parameters: `weight` (out, in) and `bias` (out), frozen, under the wrapped layer's own names; `lora_A.<part>` (rank, in) and
    `lora_B.<part>` (out, rank). B starts at zero, so training starts at the base model. `draw` gives A its values.
    Shapes: x (..., in) → (..., out).
    """

    def __init__(self, linear: nn.Linear, scales: dict[Part, float], ranks: dict[Part, int]) -> None:
        super().__init__()
        self.weight = linear.weight.requires_grad_(False)
        self.bias = None if linear.bias is None else linear.bias.requires_grad_(False)
        out_features, in_features = linear.weight.shape
        present = [part for part in PARTS if ranks.get(part, 0) > 0]
        self.scales = {part: scales[part] for part in present}
        self.active: tuple[Part, ...] = tuple(present)
        self.merged: tuple[Part, ...] = ()
        empty = linear.weight.detach()
        self.lora_A = nn.ParameterDict(
            {part: nn.Parameter(empty.new_zeros(ranks[part], in_features)) for part in present}
        )
        self.lora_B = nn.ParameterDict(
            {part: nn.Parameter(empty.new_zeros(out_features, ranks[part])) for part in present}
        )

    def draw(self, part: Part, generator: torch.Generator | None) -> None:
        """Kaiming-uniform A with a = sqrt(5), as in the authors' code; nothing to do for an absent part."""
        if part in self.scales:
            nn.init.kaiming_uniform_(self.lora_A[part], a=math.sqrt(5), generator=generator)

    def switch(self, parts: Collection[Part]) -> None:
        """Use only `parts` of those present; the others count as scale 0 and get no gradient."""
        self.active = tuple(part for part in self.scales if part in parts)

    def delta(self, parts: Collection[Part]) -> torch.Tensor:
        """The sum of s B A over `parts`: (out, in)."""
        total = torch.zeros_like(self.weight)
        for part in parts:
            total = total + self.scales[part] * (self.lora_B[part] @ self.lora_A[part])
        return total

    def merge(self) -> None:
        """Add the active parts to the weight; until `unmerge` the layer is an ordinary linear one."""
        if not self.merged:
            self.weight.data += self.delta(self.active).detach()
            self.merged = self.active

    def unmerge(self) -> None:
        """Take the merged parts out again; the weight comes back to rounding error."""
        if self.merged:
            self.weight.data -= self.delta(self.merged).detach()
            self.merged = ()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        base = F.linear(x, self.weight, self.bias)
        if self.merged or not self.active:
            return base
        down = torch.cat([self.lora_A[part] for part in self.active])
        up = torch.cat([self.scales[part] * self.lora_B[part] for part in self.active], dim=1)
        return base + F.linear(F.linear(x, down), up)


def attach(model: CineClassifier, config: DualLoRAConfig, generator: torch.Generator | None) -> None:
    """Freeze the backbone and put dual adapters on the chosen linear layers; the heads stay trainable.

    `generator` draws A: all global ones in layer order, then all local ones. Afterwards `model.first_block` is the first
    adapted block. Raises InputError naming a block or target that does not exist.
    """
    paths = layer_paths(model, config)
    backbone = model.backbone_module().requires_grad_(False)
    scales: dict[Part, float] = {part: config.scale(part) for part in PARTS}
    ranks: dict[Part, int] = {part: config.rank(part) for part in PARTS}
    layers = [wrap(backbone, path, scales, ranks) for path in paths]
    for part in PARTS:
        for layer in layers:
            layer.draw(part, generator)
    model.first_block = min(chosen_blocks(model.backbone, config))


def layer_paths(model: CineClassifier, config: DualLoRAConfig) -> list[str]:
    """Module paths of the adapted layers, such as `encoder.blocks.10.attn.q`, by block and then in the order of targets."""
    backbone = model.backbone
    return [
        f"{backbone.blocks_path}.{block}.{backbone.linears[target]}"
        for block in chosen_blocks(backbone, config)
        for target in chosen_targets(backbone, config)
    ]


def chosen_targets(backbone: Backbone, config: DualLoRAConfig) -> tuple[str, ...]:
    """Short names of the adapted layers of a block. Raises InputError naming one that there is not."""
    targets = backbone.attention_linears if config.targets is None else config.targets
    for target in targets:
        if target not in backbone.linears:
            raise InputError(f"no layer called {target!r} to adapt; a block has {', '.join(backbone.linears)}")
    return targets


def chosen_blocks(backbone: Backbone, config: DualLoRAConfig) -> tuple[int, ...]:
    """Indices of the adapted blocks, ascending. Raises InputError naming one that there is not."""
    depth = len(backbone.blocks)
    if config.blocks is None:
        return tuple(range(max(depth - ADAPTED_BLOCKS, 0), depth))
    for block in config.blocks:
        if not 0 <= block < depth:
            raise InputError(f"block {block} does not exist; the backbone has blocks 0 to {depth - 1}")
    return tuple(sorted(set(config.blocks)))


def wrap(root: nn.Module, path: str, scales: dict[Part, float], ranks: dict[Part, int]) -> DualLoRALinear:
    """Replace the linear layer at `path` by its adapted form, B zero and A zero. Raises InputError when it is no linear layer."""
    parent_path, _, name = path.rpartition(".")
    try:
        parent = root.get_submodule(parent_path)
        linear = parent.get_submodule(name)
    except AttributeError as error:
        raise InputError(f"no layer at {path!r} to adapt") from error
    if not isinstance(linear, nn.Linear):
        raise InputError(f"cannot adapt {path!r}: it is a {type(linear).__name__}, not a plain linear layer")
    layer = DualLoRALinear(linear, scales, ranks)
    setattr(parent, name, layer)
    return layer


def adapted_layers(root: nn.Module) -> dict[str, DualLoRALinear]:
    """Module path → adapted layer, in name order; of a classifier the paths start inside its backbone."""
    inside = root.backbone_module() if isinstance(root, CineClassifier) else root
    return {path: layer for path, layer in sorted(inside.named_modules()) if isinstance(layer, DualLoRALinear)}


def switch(root: nn.Module, parts: Collection[Part]) -> None:
    """Use only these parts in every adapted layer: `("global",)`, `("global", "local")`, `()` for the base model."""
    for layer in adapted_layers(root).values():
        layer.switch(parts)


def merge(root: nn.Module) -> None:
    for layer in adapted_layers(root).values():
        layer.merge()


def unmerge(root: nn.Module) -> None:
    for layer in adapted_layers(root).values():
        layer.unmerge()
