"""Checking our network against recorded numbers of the original: weights, inputs and every value recorded for them.

A *folder of reference vectors* is one of four kinds, told apart by its files: a classifier (`model.safetensors`), a pre-training
checkpoint (`pretrained.safetensors`), a dual adapter (`adapters` in `config.json`), or a folder of such folders.
`pos_embed.safetensors` beside or in them holds position tables. Inputs are `image_u8` / 255.
"""

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import nn
from torch.nn import functional as F

from shared.errors import InputError
from site_agent.models import lora, positions
from site_agent.models.config import ConvViTConfig
from site_agent.models.convvit import ConvViT, Reduce
from site_agent.models.real_volumes import find_set, model_input
from site_agent.models.weights import HEAD_PREFIX, POSITIONS, LoadReport, load_into, read_tensors

Values = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """|ours - recorded| must not exceed atol + rtol * |recorded|."""

    atol: float
    rtol: float = 0.0

    def __str__(self) -> str:
        return f"{self.atol:g}" + (f" + {self.rtol:g} x" if self.rtol else "")


LOGITS = Tolerance(2e-5)
FEATURES = Tolerance(1e-4, 1e-4)
GRADIENTS = Tolerance(1e-5, 1e-3)
LOSS = Tolerance(2e-5)
DOUBLE = Tolerance(1e-6)
"""Both sides in float64 from the same float32 weights (seen: 5e-15); room for a rebuilt table one float32 step away."""
TABLE = Tolerance(1e-6)
EXACT = Tolerance(0.0)
CHECKSUM = Tolerance(0.0, 1e-6)


@dataclass(frozen=True, slots=True)
class Check:
    """One recorded value compared with ours; `tolerance` None: recorded, but this program knows no counterpart."""

    where: str
    kind: str
    tensor: str
    deviation: float
    tolerance: Tolerance | None
    passed: bool


def verify(target: Path, real: Path | None = None) -> Iterator[Check]:
    """Compare everything recorded in `target`, a folder of reference vectors or a `pos_embed.safetensors`.

    `real` is the folder with the real volumes that `io_real.safetensors` refers to; None looks for a folder `real` beside the
    folders above. Raises InputError when there is nothing to check or an input is missing.
    """
    if target.is_file():
        yield from _position_tables(target)
        return
    if not target.is_dir():
        raise InputError(f"no folder of reference vectors at {target}")
    described = sorted(path.parent for path in target.glob("*/config.json"))
    tables = target / "pos_embed.safetensors"
    if not described and not tables.is_file() and not (target / "config.json").is_file():
        raise InputError(f"{target} has neither a config.json nor folders with one, nor pos_embed.safetensors")
    if tables.is_file():
        yield from _position_tables(tables)
    if (target / "config.json").is_file():
        yield from _folder(target, real)
    for folder in described:
        yield from _folder(folder, real)


def _folder(folder: Path, real: Path | None) -> Iterator[Check]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder / 'config.json'} is not valid JSON: {error}") from error
    if "adapters" in config:
        yield from _dual_adapter(folder, config)
    elif (folder / "pretrained.safetensors").is_file():
        yield from _pretraining(folder, config)
    elif (folder / "model.safetensors").is_file():
        yield from _classifier(folder, config, real)
    else:
        raise InputError(
            f"{folder} has neither model.safetensors nor pretrained.safetensors nor adapters in config.json"
        )


def _position_tables(path: Path) -> Iterator[Check]:
    for name, recorded in read_tensors(path).items():
        found = re.fullmatch(r"dim(\d+)_grid(\d+(?:x\d+){1,2})", name)
        if found is None:
            yield _unknown(path.name, name)
            continue
        grid = tuple(int(extent) for extent in found[2].split("x"))
        ours = torch.from_numpy(positions.sincos_table(int(found[1]), grid))
        yield compare(path.name, "position tables", name, ours, recorded, TABLE)


def _classifier(folder: Path, config: Mapping[str, Any], real: Path | None) -> Iterator[Check]:
    model = ConvViT(_architecture(config)).eval()
    rebuilt = model.stem.pos_embed.clone()
    tensors = read_tensors(folder / "model.safetensors")
    report = load_into(model, tensors, source=str(folder / "model.safetensors"), frames="stacked")
    where = f"{folder.name}/model.safetensors"
    yield _names(where, "tensors loaded", "all", report.loaded, sorted(tensors))
    if POSITIONS in tensors:
        yield compare(where, "position tables", POSITIONS, rebuilt, tensors[POSITIONS], TABLE)
    yield from _recorded_files(folder, model, real)


def _pretraining(folder: Path, config: Mapping[str, Any]) -> Iterator[Check]:
    model = ConvViT(_architecture(config.get("clf", config))).eval()
    checkpoint = read_tensors(folder / "pretrained.safetensors")
    report = load_into(model, checkpoint, source=str(folder / "pretrained.safetensors"), frames="stacked")
    yield from _loading_rules(folder, config, model, report, len(checkpoint))
    if (folder / "heads.safetensors").is_file():
        model.load_state_dict(read_tensors(folder / "heads.safetensors"), strict=False)
    yield from _recorded_files(folder, model, None)


def _loading_rules(
    folder: Path, config: Mapping[str, Any], model: ConvViT, report: LoadReport, checkpoint_count: int
) -> Iterator[Check]:
    """Which tensors were taken, rebuilt, passed over and left trainable, against the lists in config.json."""
    state = list(model.state_dict())
    trainable = [name for name in state if name not in report.loaded and name != POSITIONS]
    lists = {
        "loaded_keys": list(report.loaded),
        "kept_from_model": list(report.rebuilt),
        "ignored_checkpoint_keys": list(report.ignored),
        "trainable_after_freeze": trainable,
    }
    counts = {
        "n_keys_checkpoint": checkpoint_count,
        "n_keys_model": len(state),
        "n_frozen_after_freeze": len(state) - len(trainable),
    }
    where = f"{folder.name}/config.json"
    for name, ours in lists.items():
        if name in config:
            yield _names(where, "loading rules", name, ours, config[name])
    for name, count in counts.items():
        if name in config:
            recorded = torch.tensor(float(config[name]))
            yield compare(where, "loading rules", name, torch.tensor(float(count)), recorded, EXACT)


def _recorded_files(folder: Path, model: ConvViT, real: Path | None) -> Iterator[Check]:
    """Every `io*.safetensors`; other tensor files of the folder are the weights themselves."""
    paths = sorted(folder.glob("io*.safetensors"))
    if not paths:
        raise InputError(f"{folder} has no io*.safetensors, so there is nothing to compare with")
    for path in paths:
        recorded = read_tensors(path)
        where = f"{folder.name}/{path.name}"
        if "image_u8" in recorded:
            yield from _recorded_run(where, model, recorded)
        else:
            yield from _recorded_real(where, model, recorded, real or folder)


def _recorded_run(where: str, model: ConvViT, recorded: Values) -> Iterator[Check]:
    image = recorded["image_u8"].float() / 255
    gradients = _gradients(model, image, recorded)
    with torch.no_grad():
        precise = copy.deepcopy(model).double() if any(name.endswith("_f64") for name in recorded) else None
        for name, value in recorded.items():
            if name in ("image_u8", "label"):
                continue
            known = gradients.get(name) or _computed(model, precise, image, name)
            if known is None:
                yield _unknown(where, name)
                continue
            kind, ours, tolerance = known
            yield compare(where, kind, name, ours, value, tolerance)


Computed = tuple[str, torch.Tensor, Tolerance]


def _computed(model: ConvViT, precise: ConvViT | None, image: torch.Tensor, name: str) -> Computed | None:
    """Kind, our value and tolerance for a recorded name; None for a name without a counterpart."""
    depth = len(model.blocks)
    cut = max(depth - 2, 0)
    stem, _, index = name.rpartition("_")
    if found := re.fullmatch(r"logits_(all|patch|cls)(_f64)?", name):
        reduce = cast(Reduce, found[1])
        if found[2] and precise is not None:
            return "logits in float64", precise(image.double(), reduce), DOUBLE
        return "logits", model(image, reduce), LOGITS
    if name.startswith("loaded."):
        state = model.state_dict()
        key = name.removeprefix("loaded.")
        return ("loaded tensors", state[key], TABLE if key == POSITIONS else EXACT) if key in state else None
    if stem == "block_out" and index.isdigit() and int(index) < depth:
        return "prefix", model.prefix(image, int(index) + 1).tokens, FEATURES
    if stem == "skip" and index.isdigit() and int(index) < len(model.config.enc_conv_chans):
        return "stem", model.embed(image)[0][int(index)].movedim(-1, 1), FEATURES
    simple: dict[str, Callable[[], Computed]] = {
        "encoder_in": lambda: ("stem", model.embed(image)[1], FEATURES),
        "encoder_out": lambda: ("encoder", model.encoder.norm(model.prefix(image, depth).tokens), FEATURES),
        "fused_skip": lambda: ("fused skips", model.prefix(image, cut).skips, FEATURES),
        "x_dict.sax": lambda: ("features", model.suffix(model.prefix(image, cut), cut).patch, FEATURES),
        "x_dict.cls": lambda: ("features", model.suffix(model.prefix(image, cut), cut).cls, FEATURES),
        "pos_embed_interpolated": lambda: (
            "position tables",
            model.position_table((image.shape[2], image.shape[3], image.shape[4])),
            TABLE,
        ),
    }
    return simple[name]() if name in simple else None


def _gradients(model: ConvViT, image: torch.Tensor, recorded: Values) -> dict[str, Computed]:
    """The recorded loss and the gradients of it, by recorded name; empty when no loss is recorded."""
    wanted = {name.removeprefix("grad."): name for name in recorded if name.startswith("grad.")}
    model.requires_grad_(True)
    found = _loss(model, image, recorded, recorded.get("label"))
    if found is None:
        model.requires_grad_(False)
        return {}
    name, loss = found
    computed: dict[str, Computed] = {name: ("loss", loss.detach().reshape(1), LOSS)}
    if wanted:
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter, value in model.named_parameters():
            if parameter in wanted and value.grad is not None:
                computed[wanted[parameter]] = ("gradients", value.grad.clone(), GRADIENTS)
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    return computed


def _loss(
    model: ConvViT, image: torch.Tensor, recorded: Values, label: torch.Tensor | None
) -> tuple[str, torch.Tensor] | None:
    """Name and value of the recorded cross entropy; its smoothing is in the name."""
    for name in recorded:
        if name.startswith("loss_label_smoothing_") and label is not None:
            return name, F.cross_entropy(model(image), label, label_smoothing=float(name.rpartition("_")[2]))
    return None


def _recorded_real(where: str, model: ConvViT, recorded: Values, real: Path) -> Iterator[Check]:
    """Logits and pooled features on real volumes; names are `<set>.<value>`."""
    for dataset in sorted({name.partition(".")[0] for name in recorded}):
        values = {name.partition(".")[2]: v for name, v in recorded.items() if name.startswith(f"{dataset}.")}
        image = model_input(find_set(real, dataset), model.config.image_size)
        with torch.no_grad():
            features = model.features(image)
            ours: dict[str, Computed] = {
                "input_shape": ("real input", torch.tensor(image.shape), EXACT),
                "input_checksum_sum": ("real input", image.double().sum().reshape(1), CHECKSUM),
                "x_dict.cls": ("real features", features.cls, FEATURES),
                "x_dict.sax_mean": ("real features", features.patch.mean(dim=1), FEATURES),
            }
            for reduce in get_args(Reduce):
                logits = model.logits(features, reduce)
                ours[f"logits_{reduce}"] = ("real logits", logits, LOGITS)
        for name, value in values.items():
            if name not in ours:
                yield _unknown(where, f"{dataset}.{name}")
                continue
            kind, computed, tolerance = ours[name]
            yield compare(where, kind, f"{dataset}.{name}", computed, value, tolerance)


def _dual_adapter(folder: Path, config: Mapping[str, Any]) -> Iterator[Check]:
    base = folder / config["base_model"]
    inputs = read_tensors(folder / str(config["input"]).partition(":")[0])
    recorded = read_tensors(folder / "io.safetensors")
    described = json.loads((base.parent / "config.json").read_text(encoding="utf-8"))
    model = ConvViT(_architecture(described)).eval()
    load_into(model, read_tensors(base), source=str(base), frames="stacked")
    layers = _wrap_recorded(model, config, recorded)
    image = inputs["image_u8"].float() / 255
    where = f"{folder.name}/io.safetensors"
    ours = _adapter_values(model, layers, image, recorded, inputs.get("label"))
    for name, value in recorded.items():
        if re.match(r"(global|local)\.", name):
            continue
        if name not in ours:
            yield _unknown(where, name)
            continue
        kind, computed, tolerance = ours[name]
        yield compare(where, kind, name, computed, value, tolerance)


def _wrap_recorded(model: ConvViT, config: Mapping[str, Any], recorded: Values) -> dict[str, lora.DualLoRALinear]:
    """Adapt the listed layers and give them the recorded tensors."""
    adapters = {part: config["adapters"][part] for part in lora.PARTS if part in config["adapters"]}
    ranks = {part: int(numbers["r"]) for part, numbers in adapters.items()}
    scales = {part: float(numbers["alpha"]) / ranks[part] for part, numbers in adapters.items()}
    model.requires_grad_(False)
    layers = {path: lora.wrap(model, path, scales, ranks) for path in config["targets"]}
    for path, layer in layers.items():
        for part in adapters:
            layer.lora_A[part].data.copy_(recorded[f"{part}.{path}.lora_A"])
            layer.lora_B[part].data.copy_(recorded[f"{part}.{path}.lora_B"])
    return layers


_SWITCHED: dict[str, tuple[lora.Part, ...]] = {
    "both": ("global", "local"),
    "global": ("global",),
    "local": ("local",),
    "none": (),
}


def _adapter_values(
    model: ConvViT,
    layers: Mapping[str, lora.DualLoRALinear],
    image: torch.Tensor,
    recorded: Values,
    label: torch.Tensor | None,
) -> dict[str, Computed]:
    """Logits with either part on and off, and the loss and gradients with both on."""
    ours: dict[str, Computed] = {}
    with torch.no_grad():
        for name, parts in _SWITCHED.items():
            lora.switch(model, parts)
            for reduce in get_args(Reduce):
                ours[f"logits_{reduce}.{name}"] = ("adapter logits", model(image, reduce), LOGITS)
    lora.switch(model, lora.PARTS)
    model.pred_head_dict.requires_grad_(True)
    found = _loss(model, image, recorded, label)
    if found is None:
        return ours
    ours[found[0]] = ("adapter loss", found[1].detach().reshape(1), LOSS)
    found[1].backward()  # type: ignore[no-untyped-call]
    for path, layer in layers.items():
        for part in layer.scales:
            for matrix, held in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
                _add_gradient(ours, f"grad.{part}.{path}.{matrix}", held[part])
    for name, value in model.pred_head_dict.named_parameters():
        _add_gradient(ours, f"grad.{HEAD_PREFIX}{name}", value)
    return ours


def _add_gradient(ours: dict[str, Computed], name: str, parameter: nn.Parameter) -> None:
    if parameter.grad is not None:
        ours[name] = ("adapter gradients", parameter.grad, GRADIENTS)


def compare(
    where: str, kind: str, name: str, ours: torch.Tensor, recorded: torch.Tensor, tolerance: Tolerance
) -> Check:
    """Largest absolute deviation, and whether every element is within tolerance. Another shape or a NaN never is."""
    if ours.shape != recorded.shape:
        return Check(where, kind, name, float("inf"), tolerance, False)
    difference = (ours.double() - recorded.double()).abs()
    allowed = tolerance.atol + tolerance.rtol * recorded.double().abs()
    passed = bool((difference <= allowed).all())
    return Check(where, kind, name, difference.nan_to_num(nan=float("inf")).max().item(), tolerance, passed)


def _names(where: str, kind: str, name: str, ours: tuple[str, ...] | list[str], recorded: list[str]) -> Check:
    """Two sets of tensor names; the deviation is how many are in one only."""
    differing = len(set(ours) ^ set(recorded))
    return Check(where, kind, name, float(differing), EXACT, differing == 0)


def _unknown(where: str, name: str) -> Check:
    return Check(where, "not compared", name, 0.0, None, True)


def _architecture(values: Mapping[str, Any]) -> ConvViTConfig:
    """Reference folders note seeds and deviations beside the architecture; those say nothing about the network."""
    known = {field.name for field in fields(ConvViTConfig)} | {"views", "conv_norm", "rotary"}
    return ConvViTConfig.from_mapping({key: value for key, value in values.items() if key in known})
