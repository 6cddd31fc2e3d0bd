"""Dual LoRA: every adapted linear layer has a global low-rank part, which travels, and a local one, which does not.

    y = W0 x + b + (alpha_g / r_g) B_g A_g x + (alpha_l / r_l) B_l A_l x

A third part, the residual, may stand beside the global one: what an exact rule adds to it (`shared.methods`, fedex-lora). It has
the global part's scale, goes with it, and is never trained.

Sources: Hu et al. 2021, arXiv:2106.09685 (LoRA); Med-DualLoRA, arXiv:2603.10967 (two parts, one shared). Of the defaults here
the paper's abstract fixes only that two blocks are adapted; ranks, alphas, targets and head policy are this project's choice.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from shared.errors import InputError
from shared.methods import Part
from site_agent.models.backbone import Backbone
from site_agent.models.classifier import ADAPTED_BLOCKS, CineClassifier
from site_agent.models.head import HeadPolicy

PARTS: tuple[Part, ...] = get_args(Part)
HEAD_POLICIES: tuple[HeadPolicy, ...] = get_args(HeadPolicy)
Component = Literal["global", "local", "residual"]
COMPONENTS: tuple[Component, ...] = get_args(Component)


@dataclass(frozen=True, slots=True, kw_only=True)
class DualLoRAConfig:
    """What is adapted and how. A rank of 0 leaves that component out. Raises InputError for numbers out of range."""

    blocks: tuple[int, ...] | None = None
    """Indices of adapted blocks; None: the last two (all, if there are fewer)."""
    targets: tuple[str, ...] | None = None
    """Short names of adapted layers (`Backbone.linears`); None: those of the attention."""
    rank_global: int = 8
    rank_local: int = 8
    alpha_global: float = 16.0
    alpha_local: float = 16.0
    head: HeadPolicy = "global+local-bias"
    rank_residual: int = 0
    gated: bool = False
    """Whether each part of each layer has a factor of its own, 1 at the start. Trained only where the recipe says so."""
    dense: tuple[str, ...] = ()
    """Parameters of the backbone that are trained themselves: those whose names begin with one of these."""

    def __post_init__(self) -> None:
        if min(self.rank_global, self.rank_local, self.rank_residual) < 0:
            raise InputError(
                f"LoRA ranks must not be negative, got global {self.rank_global}, local {self.rank_local}, "
                f"residual {self.rank_residual}"
            )
        if self.rank_residual and not self.rank_global:
            raise InputError("a residual goes with a global part, whose scale it has, and rank_global is 0")
        if min(self.alpha_global, self.alpha_local) <= 0:
            raise InputError(f"LoRA alphas must be positive, got global {self.alpha_global}, local {self.alpha_local}")
        if () in (self.targets, self.blocks):
            raise InputError("an adapter needs at least one target layer and one block")
        if self.head not in HEAD_POLICIES:
            raise InputError(f"unknown head policy {self.head!r}; choose one of {', '.join(HEAD_POLICIES)}")

    def ranks(self) -> dict[Component, int]:
        """Rank by component; without those that are left out."""
        ranks: dict[Component, int] = {
            "global": self.rank_global,
            "local": self.rank_local,
            "residual": self.rank_residual,
        }
        return {component: rank for component, rank in ranks.items() if rank}

    def scales(self) -> dict[Component, float]:
        """alpha / rank of every component that is there; a residual has that of the global part."""
        scales: dict[Component, float] = {}
        for component in self.ranks():
            of_local = component == "local"
            alpha, rank = (self.alpha_local, self.rank_local) if of_local else (self.alpha_global, self.rank_global)
            scales[component] = alpha / rank
        return scales


class DualLoRALinear(nn.Module):
    """A frozen linear layer plus low-rank updates, computed as one product of their ranks together.

    Parameters: `weight` (out, in) and `bias` (out), frozen, under the wrapped layer's own names; `lora_A.<component>` (rank, in)
    and `lora_B.<component>` (out, rank); with `gated` also `lora_gate.<part>` (1,). B starts at zero, so training starts at the
    base model. `draw` gives A its values. Shapes: x (..., in) → (..., out).
    """

    def __init__(
        self,
        linear: nn.Linear,
        scales: Mapping[Component, float],
        ranks: Mapping[Component, int],
        *,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.weight = linear.weight.requires_grad_(False)
        self.bias = None if linear.bias is None else linear.bias.requires_grad_(False)
        out_features, in_features = linear.weight.shape
        present = [component for component in COMPONENTS if ranks.get(component, 0) > 0]
        self.scales = {component: scales[component] for component in present}
        self.active: tuple[Component, ...] = tuple(present)
        self.merged: tuple[Component, ...] = ()
        empty = linear.weight.detach()
        self.lora_A = nn.ParameterDict({c: nn.Parameter(empty.new_zeros(ranks[c], in_features)) for c in present})
        self.lora_B = nn.ParameterDict({c: nn.Parameter(empty.new_zeros(out_features, ranks[c])) for c in present})
        parts = [part for part in PARTS if part in present and gated]
        self.lora_gate = nn.ParameterDict({part: nn.Parameter(empty.new_ones(1)) for part in parts})
        if "residual" in present:
            self.lora_A["residual"].requires_grad_(False)
            self.lora_B["residual"].requires_grad_(False)

    def draw(self, part: Part, generator: torch.Generator | None) -> None:
        """Kaiming-uniform A with a = sqrt(5), as in the authors' code; nothing to do for an absent part."""
        if part in self.scales:
            nn.init.kaiming_uniform_(self.lora_A[part], a=math.sqrt(5), generator=generator)

    def switch(self, parts: Collection[Part]) -> None:
        """Use only `parts` of those present, the residual with the global one; the others count as scale 0 and get no gradient."""
        with_residual = {*parts, "residual"} if "global" in parts else set(parts)
        self.active = tuple(component for component in self.scales if component in with_residual)

    def factors(self, components: Collection[Component]) -> tuple[torch.Tensor, torch.Tensor]:
        """A of these components stacked, and B side by side with scales and gates: (rank, in), (out, rank)."""
        return (
            torch.cat([self.lora_A[component] for component in components]),
            torch.cat([self.scaled(component) for component in components], dim=1),
        )

    def scaled(self, component: Component) -> torch.Tensor:
        """B of a component with its scale and gate: (out, rank)."""
        scaled: torch.Tensor = self.scales[component] * self.lora_B[component]
        return scaled * self.lora_gate[component] if component in self.lora_gate else scaled

    def delta(self, components: Collection[Component]) -> torch.Tensor:
        """The sum of s B A over `components`: (out, in)."""
        if not components:
            return torch.zeros_like(self.weight)
        down, up = self.factors(components)
        return up @ down

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
        down, up = self.factors(self.active)
        return base + F.linear(F.linear(x, down), up)


def attach(model: CineClassifier, config: DualLoRAConfig, generator: torch.Generator | None) -> None:
    """Freeze the backbone and put dual adapters on the chosen linear layers; the heads stay trainable, and so do dense weights.

    `generator` draws A: all global ones in layer order, then all local ones. Afterwards `model.first_block` is the first
    adapted block. Raises InputError naming a block, target or dense weight that does not exist.
    """
    paths = layer_paths(model, config)
    backbone = model.backbone_module().requires_grad_(False)
    layers = [wrap(backbone, path, config.scales(), config.ranks(), gated=config.gated) for path in paths]
    for part in PARTS:
        for layer in layers:
            layer.draw(part, generator)
    model.set_head_policy(config.head)
    model.first_block = min(chosen_blocks(model.backbone, config))
    trained = dense_parameters(model, config.dense)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    if trained:
        model.first_block = None


def dense_parameters(model: CineClassifier, dense: Collection[str]) -> dict[str, nn.Parameter]:
    """The backbone's own parameters whose names begin with one of `dense`, by name. Raises InputError if one fits none."""
    own = {n: p for n, p in model.backbone_module().named_parameters() if ".lora_" not in n}
    for beginning in dense:
        if not any(name.startswith(beginning) for name in own):
            raise InputError(
                f"no weight of the base model begins with '{beginning}'; it has: {', '.join(list(own)[:5])}, ..."
            )
    return {name: value for name, value in own.items() if any(name.startswith(one) for one in dense)}


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


def wrap(
    root: nn.Module,
    path: str,
    scales: Mapping[Component, float],
    ranks: Mapping[Component, int],
    *,
    gated: bool = False,
) -> DualLoRALinear:
    """Replace the linear layer at `path` by its adapted form, B zero and A zero. Raises InputError when it is no linear layer."""
    parent_path, _, name = path.rpartition(".")
    try:
        parent = root.get_submodule(parent_path)
        linear = parent.get_submodule(name)
    except AttributeError as error:
        raise InputError(f"no layer at {path!r} to adapt") from error
    if not isinstance(linear, nn.Linear):
        raise InputError(f"cannot adapt {path!r}: it is a {type(linear).__name__}, not a plain linear layer")
    layer = DualLoRALinear(linear, scales, ranks, gated=gated)
    setattr(parent, name, layer)
    return layer


def adapted_layers(root: nn.Module) -> dict[str, DualLoRALinear]:
    """Module path → adapted layer, in name order; of a classifier the paths start inside its backbone."""
    inside = root.backbone_module() if isinstance(root, CineClassifier) else root
    return {path: layer for path, layer in sorted(inside.named_modules()) if isinstance(layer, DualLoRALinear)}


def switch(root: nn.Module, parts: Collection[Part]) -> None:
    """Use only these parts, in every adapted layer: `("global",)`, `("global", "local")`, `()` for the base model."""
    for layer in adapted_layers(root).values():
        layer.switch(parts)


def use(model: CineClassifier, parts: Collection[Part]) -> None:
    """Use only these parts in every adapted layer and in the head."""
    switch(model, parts)
    model.head_parts = frozenset(parts)


def open_gates(root: nn.Module) -> None:
    """Set every gate to 1, as where there are none: what a site learned of its own in them is gone."""
    for layer in adapted_layers(root).values():
        for gate in layer.lora_gate.values():
            nn.init.ones_(gate)


def merge(root: nn.Module) -> None:
    for layer in adapted_layers(root).values():
        layer.merge()


def unmerge(root: nn.Module) -> None:
    for layer in adapted_layers(root).values():
        layer.unmerge()
