"""The classifier's head: two linear layers, one on the mean patch token and one on the class token, shared or private by policy.

global             weights and bias are shared
local              weights and bias are the site's own
global+local-bias  shared weights; the bias is the site's own and counts with its local part
global+local       a shared head and a private one, each with its part; with both parts on, their logits are added
"""

from collections.abc import Collection
from typing import Literal, cast

import torch
from torch import nn
from torch.nn import functional as F

from shared.methods import Part
from site_agent.models.config import VIEW

CLS = "cls"
HEADS = (VIEW, CLS)
HeadPolicy = Literal["global", "local", "global+local-bias", "global+local"]


def linears(features: int, classes: int) -> nn.ModuleDict:
    """Return the two layers, (classes, features) each."""
    return nn.ModuleDict({name: nn.Linear(features, classes) for name in HEADS})


def in_force(
    shared: torch.Tensor,
    private: torch.Tensor | None,
    policy: HeadPolicy,
    parts: Collection[Part],
    *,
    bias: bool,
) -> torch.Tensor:
    """Weight or bias of the one layer that gives what `logits` gives."""
    if policy == "global+local-bias" and bias and "local" not in parts:
        return torch.zeros_like(shared)
    if private is None:
        return shared
    found = [one for part, one in (("global", shared), ("local", private)) if part in parts]
    return found[0] + found[1] if len(found) > 1 else found[0]


def logits(
    shared: nn.Module, private: nn.Module | None, policy: HeadPolicy, parts: Collection[Part], features: torch.Tensor
) -> torch.Tensor:
    """features (B, D) → logits (B, classes) of one of the two layers, with the parts that are on."""
    layer = cast(nn.Linear, shared)
    if policy == "global+local-bias" and "local" not in parts:
        return F.linear(features, layer.weight)
    if private is None:
        return cast(torch.Tensor, layer(features))
    found: list[torch.Tensor] = [
        one(features) for part, one in (("global", layer), ("local", private)) if part in parts
    ]
    return found[0] + found[1] if len(found) > 1 else found[0]
