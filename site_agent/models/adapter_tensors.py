"""The adapter's tensors by name: what travels, what stays, and the parameters behind each.

Global names follow Hugging Face PEFT (`base_model.model.encoder.blocks.10.attn.q.lora_A.weight`, and for a shared head
`base_model.model.pred_head_dict.sax.weight`). Local names start with `local.`, so that none can pass for a global one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from shared.errors import InvalidAdapter
from site_agent.models.classifier import CineClassifier
from site_agent.models.lora import HeadPolicy, Part, adapted_layers

GLOBAL_PREFIX = "base_model.model."
LOCAL_PREFIX = "local."

Tensors = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class AdapterParameters:
    """Trainable parameters by who owns them, each in name order; for optimiser groups."""

    global_lora: tuple[nn.Parameter, ...]
    local_lora: tuple[nn.Parameter, ...]
    head_shared: tuple[nn.Parameter, ...]
    head_private: tuple[nn.Parameter, ...]


def parameters(model: CineClassifier, policy: HeadPolicy) -> AdapterParameters:
    return AdapterParameters(
        global_lora=tuple(_lora(model, "global").values()),
        local_lora=tuple(_lora(model, "local").values()),
        head_shared=tuple(_head(model, policy, shared=True).values()),
        head_private=tuple(_head(model, policy, shared=False).values()),
    )


def global_tensors(model: CineClassifier, policy: HeadPolicy) -> Tensors:
    """Everything that travels: global low-rank tensors and the shared part of the heads; float32 copies in name order."""
    return _as_arrays(_global_parameters(model, policy))


def load_global(model: CineClassifier, policy: HeadPolicy, tensors: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Set every global tensor. Raises InvalidAdapter naming the first that is missing, extra, reshaped or not finite."""
    _load(_global_parameters(model, policy), tensors)


def local_tensors(model: CineClassifier, policy: HeadPolicy) -> Tensors:
    """Everything private: local low-rank tensors and the private part of the heads. Never leaves the site."""
    return _as_arrays(_local_parameters(model, policy))


def load_local(model: CineClassifier, policy: HeadPolicy, tensors: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Set every local tensor; errors as `load_global`."""
    _load(_local_parameters(model, policy), tensors)


def combined_tensors(model: CineClassifier) -> Tensors:
    """Both parts as one adapter of rank r_g + r_l under PEFT names, with all head tensors; for a site's own export.

    The scales are inside B, so the adapter's alpha is its rank. Holds private tensors.
    """
    tensors: Tensors = {}
    for path, layer in adapted_layers(model).items():
        down = torch.cat([layer.lora_A[part] for part in layer.scales])
        up = torch.cat([scale * layer.lora_B[part] for part, scale in layer.scales.items()], dim=1)
        tensors |= _as_arrays(
            {f"{GLOBAL_PREFIX}{path}.lora_A.weight": down, f"{GLOBAL_PREFIX}{path}.lora_B.weight": up}
        )
    return tensors | _as_arrays({GLOBAL_PREFIX + name: value for name, value in model.heads().items()})


def _global_parameters(model: CineClassifier, policy: HeadPolicy) -> dict[str, nn.Parameter]:
    named = _lora(model, "global") | _head(model, policy, shared=True)
    return {GLOBAL_PREFIX + name: value for name, value in named.items()}


def _local_parameters(model: CineClassifier, policy: HeadPolicy) -> dict[str, nn.Parameter]:
    named = _lora(model, "local") | _head(model, policy, shared=False)
    return {LOCAL_PREFIX + name: value for name, value in named.items()}


def _lora(model: CineClassifier, part: Part) -> dict[str, nn.Parameter]:
    """`<path>.lora_A.weight`, `<path>.lora_B.weight` → parameter."""
    found: dict[str, nn.Parameter] = {}
    for path, layer in adapted_layers(model).items():
        if part in layer.scales:
            found[f"{path}.lora_A.weight"] = layer.lora_A[part]
            found[f"{path}.lora_B.weight"] = layer.lora_B[part]
    return found


def _head(model: CineClassifier, policy: HeadPolicy, *, shared: bool) -> dict[str, nn.Parameter]:
    """The head's parameters that travel (`shared`), or the others."""
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
