"""Checking our network against recorded numbers of the original: weights, inputs and every value recorded for them.

A *folder of reference vectors* is one of four kinds, told apart by its files: a classifier (`model.safetensors`), a pre-training
checkpoint (`pretrained.safetensors`), a dual adapter (`adapters` in `config.json`), or a folder of such folders.
`pos_embed.safetensors` beside or in them holds position tables. Inputs are `image_u8` / 255.
"""

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn
from torch.nn import functional as F

from shared.errors import InputError
from shared.methods import Part
from site_agent.models import lora, positions
from site_agent.models.cinema_weights import HEAD_PREFIX, POSITIONS
from site_agent.models.comparison import EXACT, Check, Computed, Tolerance, compare, compare_names, match, some, unknown
from site_agent.models.config import ConvViTConfig
from site_agent.models.convvit import ConvViT, Reduce
from site_agent.models.loading import LoadReport
from site_agent.models.lora import Component
from site_agent.models.real_volumes import find_set, model_input
from site_agent.models.weights import load_into, read_tensors

Values = dict[str, torch.Tensor]

LOGITS = Tolerance(2e-5)
FEATURES = Tolerance(1e-4, 1e-4)
GRADIENTS = Tolerance(1e-5, 1e-3)
LOSS = Tolerance(2e-5)
DOUBLE = Tolerance(1e-6)
"""Both sides in float64 from the same float32 weights (seen: 5e-15); room for a rebuilt table one float32 step away."""
TABLE = Tolerance(1e-6)
CHECKSUM = Tolerance(0.0, 1e-6)

_WEIGHT_FILES = ("model", "pretrained", "heads", "pos_embed")


def verify(target: Path, real: Path | None = None) -> Iterator[Check]:
    """Compare everything recorded in `target`, a folder of reference vectors or a `pos_embed.safetensors`.

    `real` is the folder with the real volumes that `io_real.safetensors` refers to; None looks for a folder `real` beside the
    folders above. Raises InputError when there is nothing to check or an input is missing.
    """
    if target.is_file():
        yield from some(target.name, _position_tables(target))
        return
    if not target.is_dir():
        raise InputError(f"no folder of reference vectors at {target}")
    folders = sorted(path.parent for path in (*target.glob("config.json"), *target.glob("*/config.json")))
    tables = target / "pos_embed.safetensors"
    if not folders and not tables.is_file():
        raise InputError(f"{target} has neither a config.json nor folders with one, nor pos_embed.safetensors")
    if tables.is_file():
        yield from some(tables.name, _position_tables(tables))
    for folder in folders:
        yield from _folder(folder, real or folder)


def _folder(folder: Path, real: Path) -> Iterator[Check]:
    config = _described(folder)
    try:
        if "adapters" in config:
            yield from _dual_adapter(folder, config)
        elif (folder / "pretrained.safetensors").is_file():
            yield from _pretraining(folder, config, real)
        elif (folder / "model.safetensors").is_file():
            yield from _classifier(folder, config, real)
        else:
            raise InputError(f"{folder} has neither model.safetensors nor pretrained.safetensors nor adapters")
    except KeyError as error:
        raise InputError(f"reference vectors in {folder} lack the entry {error}") from error
    except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        # Sizes and types that do not fit each other: the first line says which, the rest is for programmers.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"reference vectors in {folder} do not fit together: {reason}") from error
    for path in sorted(folder.glob("*.safetensors")):
        if path.stem not in _WEIGHT_FILES and not path.stem.startswith("io"):
            yield unknown(f"{folder.name}/{path.name}", "all")


def _position_tables(path: Path) -> Iterator[Check]:
    for name, recorded in read_tensors(path).items():
        found = re.fullmatch(r"dim(\d+)_grid(\d+(?:x\d+){1,2})", name)
        if found is None:
            yield unknown(path.name, name)
            continue
        grid = tuple(int(extent) for extent in found[2].split("x"))
        ours = torch.from_numpy(positions.sincos_table(int(found[1]), grid))
        yield compare(path.name, name, Computed("position tables", ours, TABLE), recorded)


def _classifier(folder: Path, config: Mapping[str, Any], real: Path) -> Iterator[Check]:
    model = ConvViT(_architecture(config)).eval()
    rebuilt = model.stem.pos_embed.clone()
    tensors = read_tensors(folder / "model.safetensors")
    report = load_into(model, tensors, source=str(folder / "model.safetensors"), frames="stacked")
    where = f"{folder.name}/model.safetensors"
    yield compare_names(where, "tensors loaded", "all", report.loaded, tensors)
    if POSITIONS in tensors:
        yield compare(where, POSITIONS, Computed("position tables", rebuilt, TABLE), tensors[POSITIONS])
    yield from _recorded_files(folder, model, real)


def _pretraining(folder: Path, config: Mapping[str, Any], real: Path) -> Iterator[Check]:
    model = ConvViT(_architecture(config.get("clf", config))).eval()
    checkpoint = read_tensors(folder / "pretrained.safetensors")
    report = load_into(model, checkpoint, source=str(folder / "pretrained.safetensors"), frames="stacked")
    yield from _loading_rules(folder, config, model, report, len(checkpoint))
    if (folder / "heads.safetensors").is_file():
        model.load_state_dict(read_tensors(folder / "heads.safetensors"), strict=False)
    yield from _recorded_files(folder, model, real)


def _loading_rules(
    folder: Path, config: Mapping[str, Any], model: ConvViT, report: LoadReport, checkpoint_count: int
) -> Iterator[Check]:
    """Which tensors were taken, rebuilt, passed over and left trainable, against the lists in config.json."""
    state = list(model.state_dict())
    trainable = [name for name in state if name not in report.loaded and name != POSITIONS]
    lists = {
        "loaded_keys": report.loaded,
        "kept_from_model": report.rebuilt,
        "ignored_checkpoint_keys": report.ignored,
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
            yield compare_names(where, "loading rules", name, ours, config[name])
    for name, count in counts.items():
        if name in config:
            ours_and_kind = Computed("loading rules", torch.tensor(count), EXACT)
            yield compare(where, name, ours_and_kind, torch.tensor(config[name]))


def _recorded_files(folder: Path, model: ConvViT, real: Path) -> Iterator[Check]:
    """Every `io*.safetensors`: a run on a recorded image, or on real volumes."""
    paths = sorted(folder.glob("io*.safetensors"))
    if not paths:
        raise InputError(f"{folder} has no io*.safetensors, so there is nothing to compare with")
    for path in paths:
        recorded = read_tensors(path)
        where = f"{folder.name}/{path.name}"
        if "image_u8" in recorded:
            yield from some(where, _recorded_run(where, model, recorded))
        else:
            yield from some(where, _recorded_real(where, model, recorded, real))


def _recorded_run(where: str, model: ConvViT, recorded: Values) -> Iterator[Check]:
    image = recorded["image_u8"].float() / 255
    ours = _gradients(model, image, recorded)
    with torch.no_grad():
        ours |= _layers(model, image) | _outputs(model, image, "", LOGITS) | _loaded(model)
        if any(name.endswith("_f64") for name in recorded):
            ours |= _outputs(copy.deepcopy(model).double(), image.double(), "_f64", DOUBLE)
    yield from match(where, recorded, ours, given=("image_u8", "label"))


def _layers(model: ConvViT, image: torch.Tensor) -> dict[str, Computed]:
    """Values inside the network; features come through the prefix/suffix split before the last two blocks."""
    cut = max(len(model.blocks) - 2, 0)
    skips, tokens = model.embed(image)
    table = model.position_table((image.shape[2], image.shape[3], image.shape[4]))
    ours = {
        "encoder_in": Computed("stem", tokens, FEATURES),
        "pos_embed_interpolated": Computed("position tables", table, TABLE),
    }
    for index, skip in enumerate(skips):
        ours[f"skip_{index}"] = Computed("stem", skip.movedim(-1, 1), FEATURES)
    for index, block in enumerate(model.blocks):
        tokens = block(tokens)
        ours[f"block_out_{index}"] = Computed("blocks", tokens, FEATURES)
    ours["encoder_out"] = Computed("blocks", model.encoder.norm(tokens), FEATURES)
    prefix = model.prefix(image, cut)
    features = model.suffix(prefix, cut)
    ours["fused_skip"] = Computed("fused skips", prefix.skips, FEATURES)
    ours["x_dict.sax"] = Computed("features", features.patch, FEATURES)
    ours["x_dict.cls"] = Computed("features", features.cls, FEATURES)
    if cut:
        ours[f"block_out_{cut - 1}"] = Computed("prefix", prefix.tokens, FEATURES)
    return ours


def _outputs(model: ConvViT, image: torch.Tensor, suffix: str, tolerance: Tolerance) -> dict[str, Computed]:
    """Logits for every way of reducing the tokens."""
    features = model.features(image)
    kind = "logits in float64" if suffix else "logits"
    return {f"logits_{r}{suffix}": Computed(kind, model.logits(features, r), tolerance) for r in get_args(Reduce)}


def _loaded(model: ConvViT) -> dict[str, Computed]:
    """The model's tensors as they stand after loading."""
    return {
        f"loaded.{name}": Computed("loaded tensors", value, TABLE if name == POSITIONS else EXACT)
        for name, value in model.state_dict().items()
    }


def _gradients(model: ConvViT, image: torch.Tensor, recorded: Values) -> dict[str, Computed]:
    """The recorded loss and its gradient for every parameter; empty when no loss is recorded."""
    model.requires_grad_(True)
    computed = _loss(model, image, recorded, recorded.get("label"), "loss")
    for name, parameter in model.named_parameters():
        _add_gradient(computed, f"grad.{name}", "gradients", parameter)
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    return computed


def _loss(
    model: ConvViT, image: torch.Tensor, recorded: Values, label: torch.Tensor | None, kind: str
) -> dict[str, Computed]:
    """The recorded cross entropy, back-propagated, by its name, which holds the smoothing; empty when none is recorded."""
    for name in recorded:
        if name.startswith("loss_label_smoothing_") and label is not None:
            loss = F.cross_entropy(model(image), label, label_smoothing=float(name.rpartition("_")[2]))
            loss.backward()  # type: ignore[no-untyped-call]
            return {name: Computed(kind, loss.detach().reshape(1), LOSS)}
    return {}


def _add_gradient(computed: dict[str, Computed], name: str, kind: str, parameter: nn.Parameter) -> None:
    if parameter.grad is not None:
        computed[name] = Computed(kind, parameter.grad, GRADIENTS)


def _recorded_real(where: str, model: ConvViT, recorded: Values, real: Path) -> Iterator[Check]:
    """Logits and pooled features on real volumes; names are `<set>.<value>`."""
    for dataset in sorted({name.partition(".")[0] for name in recorded}):
        image = model_input(find_set(real, dataset), model.config.image_size)
        with torch.no_grad():
            features = model.features(image)
            ours = {
                "input_shape": Computed("real input", torch.tensor(image.shape), EXACT),
                "input_checksum_sum": Computed("real input", image.double().sum().reshape(1), CHECKSUM),
                "x_dict.cls": Computed("real features", features.cls, FEATURES),
                "x_dict.sax_mean": Computed("real features", features.patch.mean(dim=1), FEATURES),
            }
            for reduce in get_args(Reduce):
                ours[f"logits_{reduce}"] = Computed("real logits", model.logits(features, reduce), LOGITS)
        of_set = {name: value for name, value in recorded.items() if name.startswith(f"{dataset}.")}
        yield from match(where, of_set, {f"{dataset}.{name}": value for name, value in ours.items()})


def _dual_adapter(folder: Path, config: Mapping[str, Any]) -> Iterator[Check]:
    base = folder / config["base_model"]
    inputs = read_tensors(folder / str(config["input"]).partition(":")[0])
    recorded = read_tensors(folder / "io.safetensors")
    model = ConvViT(_architecture(_described(base.parent))).eval()
    load_into(model, read_tensors(base), source=str(base), frames="stacked")
    layers = _wrap_recorded(folder, model, config, recorded)
    ours = _adapter_values(model, layers, inputs["image_u8"].float() / 255, recorded, inputs.get("label"))
    given = [
        f"{part}.{path}.{m}" for path, layer in layers.items() for part in layer.scales for m in ("lora_A", "lora_B")
    ]
    where = f"{folder.name}/io.safetensors"
    yield from some(where, match(where, recorded, ours, given))


def _wrap_recorded(
    folder: Path, model: ConvViT, config: Mapping[str, Any], recorded: Values
) -> dict[str, lora.DualLoRALinear]:
    """Adapt the listed layers and give them the recorded tensors."""
    ranks, scales = _adapter_numbers(folder, config["adapters"])
    targets = config["targets"]
    if not isinstance(targets, list) or not all(isinstance(path, str) for path in targets):
        raise InputError(f"{folder}/config.json: targets must be a list of layer names")
    model.requires_grad_(False)
    layers = {path: lora.wrap(model, path, scales, ranks) for path in targets}
    for path, layer in layers.items():
        for part in ranks:
            for matrix, held in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
                name = f"{part}.{path}.{matrix}"
                if recorded[name].shape != held[part].shape:
                    raise InputError(
                        f"{folder}/io.safetensors: {name} has shape {list(recorded[name].shape)}, but adapters.{part}.r = "
                        f"{ranks[part]} in config.json needs {list(held[part].shape)}"
                    )
                held[part].data.copy_(recorded[name])
    return layers


def _adapter_numbers(folder: Path, adapters: object) -> tuple[dict[Component, int], dict[Component, float]]:
    """Rank and scale of each part. Raises InputError naming what is not as it must be."""
    where = f"{folder}/config.json: adapters"
    if not isinstance(adapters, dict):
        raise InputError(f"{where} must be an object with the parts {', '.join(lora.PARTS)}, got {adapters!r:.60}")
    ranks: dict[Component, int] = {}
    scales: dict[Component, float] = {}
    for part in lora.PARTS:
        if part not in adapters:
            continue
        numbers = adapters[part]
        rank, alpha = (numbers.get("r"), numbers.get("alpha")) if isinstance(numbers, dict) else (None, None)
        if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float):
            raise InputError(
                f"{where}.{part} must have r, a whole number from 1, and alpha, a number; got {numbers!r:.60}"
            )
        ranks[part], scales[part] = rank, float(alpha) / rank
    return ranks, scales


_SWITCHED: dict[str, tuple[Part, ...]] = {
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
            features = model.features(image)
            for reduce in get_args(Reduce):
                ours[f"logits_{reduce}.{name}"] = Computed("adapter logits", model.logits(features, reduce), LOGITS)
    lora.switch(model, lora.PARTS)
    model.pred_head_dict.requires_grad_(True)
    ours |= _loss(model, image, recorded, label, "adapter loss")
    for path, layer in layers.items():
        for part in layer.scales:
            for matrix, held in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
                _add_gradient(ours, f"grad.{part}.{path}.{matrix}", "adapter gradients", held[part])
    for name, parameter in model.pred_head_dict.named_parameters():
        _add_gradient(ours, f"grad.{HEAD_PREFIX}{name}", "adapter gradients", parameter)
    return ours


def _described(folder: Path) -> dict[str, Any]:
    """The folder's config.json."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold one JSON object")
    return values


def _architecture(values: Mapping[str, Any]) -> ConvViTConfig:
    """Reference folders note seeds and deviations beside the architecture; those say nothing about the network."""
    known = {field.name for field in fields(ConvViTConfig)} | {"views", "conv_norm", "rotary"}
    return ConvViTConfig.from_mapping({key: value for key, value in values.items() if key in known})
