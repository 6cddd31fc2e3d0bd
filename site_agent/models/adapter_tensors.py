"""The adapter's tensors by name: what is the federation's, what is the site's own, and the parameters behind each.

Global names follow Hugging Face PEFT (`base_model.model.encoder.blocks.10.attn.q.lora_A.weight`, and for a shared head
`base_model.model.pred_head_dict.sax.weight`). Private names start with `local.`, so that none can pass for a global one; a factor
of the global part that a recipe trains but does not share is `local.global.encoder.blocks.10.attn.q.lora_B.weight`. Beside the
global factors there may be `….lora_residual_A.weight` and B (`shared.recipe.is_residual`), and weights of the base model itself
under their own names, where the adapter says that they are trained (`dense`).
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from shared.adapter import AdapterMetadata
from shared.errors import InvalidAdapter
from shared.methods import Factor, Part
from shared.recipe import RESIDUAL, Recipe, factor_of
from site_agent.models import lora
from site_agent.models.classifier import CineClassifier
from site_agent.models.head import HeadPolicy
from site_agent.models.lora import Component, adapted_layers

GLOBAL_PREFIX = "base_model.model."
LOCAL_PREFIX = "local."
OWN_GLOBAL_PREFIX = "local.global."

Tensors = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Ownership:
    """Which trainable numbers are the federation's and which the site's own: the heads' by policy, the global part's by factor."""

    head: HeadPolicy
    own_factors: frozenset[Factor] = frozenset()
    """Factors of the global part that the site trains and keeps; every version says for them what version 0 said."""
    dense: tuple[str, ...] = ()
    """What of the base model itself is the federation's."""

    @classmethod
    def of(cls, metadata: AdapterMetadata, recipe: Recipe) -> Self:
        """Return who owns what in a federation. A recipe keeps the same factors back in every round."""
        return cls(cast(HeadPolicy, metadata.head_policy), recipe.method.kept, metadata.dense or ())


@dataclass(frozen=True, slots=True)
class AdapterParameters:
    """Trainable parameters by who owns them, each in name order; for optimiser groups."""

    global_lora: tuple[nn.Parameter, ...]
    global_own: tuple[nn.Parameter, ...]
    """Factors of the global part that stay at the site."""
    dense: tuple[nn.Parameter, ...]
    """Weights of the base model."""
    local_lora: tuple[nn.Parameter, ...]
    gates: tuple[nn.Parameter, ...]
    head_shared: tuple[nn.Parameter, ...]
    head_private: tuple[nn.Parameter, ...]


def parameters(model: CineClassifier, owned: Ownership) -> AdapterParameters:
    return AdapterParameters(
        global_lora=tuple(_global_lora(model, owned, own=False).values()),
        global_own=tuple(_global_lora(model, owned, own=True).values()),
        dense=tuple(lora.dense_parameters(model, owned.dense).values()),
        local_lora=tuple(_lora(model, "local").values()),
        gates=tuple(_gates(model).values()),
        head_shared=tuple(_head(model, owned.head, shared=True).values()),
        head_private=tuple(_head(model, owned.head, shared=False).values()),
    )


def counterparts(model: CineClassifier) -> tuple[tuple[nn.Parameter, nn.Parameter], ...]:
    """Pairs of a parameter of the local part, its private head included, and the one in its place of the global part.

    Raises InvalidAdapter unless both have the same shapes.
    """
    own, shared = (
        _lora(model, "local") | model.private_heads(),
        _lora(model, "global") | model.heads(),
    )
    for name in sorted(set(own) | set(shared)):
        if name not in own or name not in shared or own[name].shape != shared[name].shape:
            raise InvalidAdapter(
                f"tensor {name} has no counterpart of its shape in the site's own part; ranks and alphas of both parts must be "
                'equal, and the head policy "global+local"'
            )
    return tuple((own[name], shared[name]) for name in sorted(own))


def begin_personal(model: CineClassifier) -> None:
    """Let a local part that was never trained (every B is zero) begin as the global part, with its head."""
    if any(bool(value.any()) for name, value in _lora(model, "local").items() if factor_of(name) == "B"):
        return
    with torch.no_grad():
        for own, shared in counterparts(model):
            own.copy_(shared)


@contextmanager
def only_trained(model: CineClassifier, factors: Collection[Factor]) -> Iterator[None]:
    """Within, no other factor of the global part has or gets a gradient; afterwards all are trainable again."""
    frozen = [value for name, value in _lora(model, "global").items() if factor_of(name) not in factors]
    for parameter in frozen:
        parameter.requires_grad_(False)
        parameter.grad = None
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def global_tensors(model: CineClassifier, owned: Ownership) -> Tensors:
    """What is the federation's: global low-rank tensors and the shared part of the heads; float32 copies in name order.

    No tensor in it is private, whatever the recipe; which of them travel in a round the recipe says.
    """
    return _as_arrays(_global_parameters(model, owned))


def travelling(model: CineClassifier, owned: Ownership, recipe: Recipe, round_number: int) -> dict[str, nn.Parameter]:
    """The parameters behind the tensors of a round's update, by name: low-rank factors and the shared part of the heads."""
    named = _global_parameters(model, owned)
    return {name: value for name, value in named.items() if recipe.travels(name, round_number)}


def load_global(model: CineClassifier, owned: Ownership, tensors: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Set every tensor of an adapter file; also those of a factor of which the site has its own, until `load_local` sets that.

    Raises InvalidAdapter naming the first that is missing, extra, reshaped or not finite.
    """
    _load(_global_parameters(model, replace(owned, own_factors=frozenset())), tensors)


def local_tensors(model: CineClassifier, owned: Ownership) -> Tensors:
    """Everything private: local low-rank tensors, factors of the global part that are the site's own, and the private part of
    the heads. Never leaves the site."""
    return _as_arrays(_local_parameters(model, owned))


def load_local(model: CineClassifier, owned: Ownership, tensors: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Set every private tensor; errors as `load_global`."""
    _load(_local_parameters(model, owned), tensors)


def load_both(model: CineClassifier, owned: Ownership, tensors: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Set everything trainable to what `global_tensors` and `local_tensors` returned; errors as `load_global`."""
    _load(_global_parameters(model, owned) | _local_parameters(model, owned), tensors)


def combined_tensors(model: CineClassifier) -> Tensors:
    """The parts that are switched on as one adapter under PEFT names, with all tensors of one head; for a site's own export.

    Scales and gates are inside B, so the adapter's alpha is its rank. Holds private tensors.
    """
    tensors: Tensors = {}
    for path, layer in adapted_layers(model).items():
        if not layer.active:
            continue
        down, up = layer.factors(layer.active)
        tensors |= _as_arrays(
            {f"{GLOBAL_PREFIX}{path}.lora_A.weight": down, f"{GLOBAL_PREFIX}{path}.lora_B.weight": up}
        )
    return tensors | _as_arrays({GLOBAL_PREFIX + name: value for name, value in model.heads_in_force().items()})


def _global_parameters(model: CineClassifier, owned: Ownership) -> dict[str, nn.Parameter]:
    named = _global_lora(model, owned, own=False) | _residual(model) | _head(model, owned.head, shared=True)
    named |= lora.dense_parameters(model, owned.dense)
    return {GLOBAL_PREFIX + name: value for name, value in named.items()}


def _local_parameters(model: CineClassifier, owned: Ownership) -> dict[str, nn.Parameter]:
    named = _lora(model, "local") | _gates(model) | _head(model, owned.head, shared=False)
    kept = {OWN_GLOBAL_PREFIX + name: value for name, value in _global_lora(model, owned, own=True).items()}
    return {LOCAL_PREFIX + name: value for name, value in named.items()} | kept


def _global_lora(model: CineClassifier, owned: Ownership, *, own: bool) -> dict[str, nn.Parameter]:
    """The global part's factors that are the site's own, or the others."""
    return {
        name: value for name, value in _lora(model, "global").items() if (factor_of(name) in owned.own_factors) == own
    }


def _lora(model: CineClassifier, part: Part) -> dict[str, nn.Parameter]:
    """`<path>.lora_A.weight`, `<path>.lora_B.weight` → parameter."""
    return _factors(model, part, ".lora_")


def _residual(model: CineClassifier) -> dict[str, nn.Parameter]:
    return _factors(model, "residual", RESIDUAL)


def _factors(model: CineClassifier, component: Component, infix: str) -> dict[str, nn.Parameter]:
    found: dict[str, nn.Parameter] = {}
    for path, layer in adapted_layers(model).items():
        if component in layer.scales:
            found[f"{path}{infix}A.weight"] = layer.lora_A[component]
            found[f"{path}{infix}B.weight"] = layer.lora_B[component]
    return found


def _gates(model: CineClassifier) -> dict[str, nn.Parameter]:
    """`<path>.lora_gate.<part>` → parameter."""
    return {
        f"{path}.lora_gate.{part}": gate
        for path, layer in adapted_layers(model).items()
        for part, gate in layer.lora_gate.items()
    }


def _head(model: CineClassifier, policy: HeadPolicy, *, shared: bool) -> dict[str, nn.Parameter]:
    """The head's parameters that travel (`shared`), or the others."""
    if policy == "global+local":
        return model.heads() if shared else model.private_heads()
    travels = {"global": ("weight", "bias"), "local": (), "global+local-bias": ("weight",)}[policy]
    return {name: value for name, value in model.heads().items() if (name.rpartition(".")[2] in travels) == shared}


def _as_arrays(named: Mapping[str, torch.Tensor]) -> Tensors:
    return {name: value.detach().to("cpu", torch.float32).numpy().copy() for name, value in sorted(named.items())}


def _load(expected: Mapping[str, nn.Parameter], tensors: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """All or nothing: the whole adapter is checked before the first parameter changes."""
    for name in sorted(set(expected) | set(tensors)):
        if name not in tensors:
            raise InvalidAdapter(f"tensor {name} is missing from the adapter")
        if name not in expected:
            raise InvalidAdapter(f"tensor {name} does not belong to this adapter; check ranks, blocks and head policy")
        shape, wanted = tuple(tensors[name].shape), tuple(expected[name].shape)
        if shape != wanted:
            raise InvalidAdapter(f"tensor {name} has shape {list(shape)}, this model needs {list(wanted)}")
        if not np.isfinite(tensors[name]).all():
            raise InvalidAdapter(f"tensor {name} holds values that are not finite")
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(torch.from_numpy(np.array(tensors[name], dtype=np.float32)))
