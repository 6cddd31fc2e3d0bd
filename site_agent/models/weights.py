"""Reading a backbone's weights: our own folders, CineMA's classifiers, CineMA's masked-autoencoder checkpoint.

A backbone folder holds `config.json` (`ConvViTConfig.to_json`) and `model.safetensors` with CineMA's tensor names; heads and
the position table may be absent. Rules for a pre-training checkpoint, from CineMA's `load_pretrain_weights`: decoder, other
views, heads and position tables are ignored; the one-frame kernel of the first convolution is repeated over the frames and
not divided; the position table is rebuilt for the model's own grid.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import structlog
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shared.errors import InputError
from site_agent.models.config import ConvViTConfig, Frames
from site_agent.models.convvit import VIEW, ConvViT

log = structlog.get_logger()

FIRST_KERNEL = f"enc_down_dict.{VIEW}.conv_blocks.0.patch_embed.conv.weight"
POSITIONS = f"enc_down_dict.{VIEW}.pos_embed"
HEAD_PREFIX = "pred_head_dict."

_PRETRAINING_ONLY = ("mask", "decoder", "_head", "lax_2c", "lax_3c", "lax_4c", "dec_linear", "pos_embed")
"""A name with one of these in it belongs to pre-training, to another view, or is rebuilt."""
_FILE_NAMES = ("model.safetensors", "pretrained.safetensors")
_NAMED_AT_MOST = 3

Kind = Literal["encoder", "classifier", "pretraining"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What was done with each tensor of a weights file."""

    kind: Kind
    loaded: tuple[str, ...]
    rebuilt: tuple[str, ...]
    """Made for the model's own size instead of read."""
    ignored: tuple[str, ...]
    kernel_repeated: bool
    frames_see_same_kernel: bool
    """Stacked frames share one kernel, so the stem computes f(ED + ES)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedBackbone:
    model: ConvViT
    """Without heads, in evaluation mode, no gradients."""
    heads: Mapping[str, torch.Tensor]
    """`pred_head_dict.{sax,cls}.{weight,bias}` of a classifier file; empty for other files and for siamese frames."""
    frames: Frames
    report: LoadReport


def load_backbone(
    source: Path, config: ConvViTConfig | None = None, frames: Frames = "stacked", *, stem_frozen: bool = True
) -> LoadedBackbone:
    """Load the weights at `source`, a safetensors file or a folder with one.

    `config` describes the network; without it, `config.json` beside the weights does. Its `n_frames` follows `frames`.
    Raises InputError for files that cannot be read, for tensors that are missing, unexpected or of another shape (naming them),
    and for two-frame weights with siamese frames.
    """
    path, described = _locate(source)
    config = config or described
    if config is None:
        raise InputError(
            f"{source} has no config.json beside it; say which network it is with --size tiny or --size base"
        )
    model = ConvViT(config.for_frames(frames), heads=False).requires_grad_(False).eval()
    tensors = read_tensors(path)
    report = load_into(model, tensors, source=path.name, frames=frames)
    if frames == "stacked" and stem_frozen and report.frames_see_same_kernel:
        log.warning(
            "frozen_stem_cannot_see_motion",
            reason="the first kernel is the same for ED and ES, so the frozen stem computes f(ED + ES)",
            advice="use --frames siamese, or a backbone pre-trained on two channels",
        )
    wanted = report.kind == "classifier" and frames == "stacked"
    heads = {name: value.float() for name, value in tensors.items() if wanted and name.startswith(HEAD_PREFIX)}
    return LoadedBackbone(model=model, heads=heads, frames=frames, report=report)


def load_into(model: ConvViT, tensors: Mapping[str, torch.Tensor], *, source: str, frames: Frames) -> LoadReport:
    """Copy a file's tensors into a model; heads are loaded too where both have them and the file is no pre-training.

    `source` names the file in errors. Nothing is changed when an InputError is raised."""
    kind = kind_of(tensors)
    target = model.state_dict()
    usable, ignored = _sorted_out(tensors, target, kind)
    repeated = _fit_first_kernel(usable, model.config, source, frames)
    optional = {POSITIONS} | {name for name in target if name.startswith(HEAD_PREFIX)}
    _check_structure(usable, target, optional, source)
    model.load_state_dict(usable, strict=False)
    return LoadReport(
        kind=kind,
        loaded=tuple(sorted(usable)),
        rebuilt=tuple(sorted(set(target) - set(usable))),
        ignored=tuple(sorted(ignored)),
        kernel_repeated=repeated,
        frames_see_same_kernel=_same_for_all_frames(usable.get(FIRST_KERNEL), model.config),
    )


def kind_of(tensors: Iterable[str]) -> Kind:
    """A file with a decoder is a pre-training checkpoint (its `pred_head_dict` predicts pixels)."""
    names = list(tensors)
    if any(name.startswith(("decoder.", "dec_")) for name in names):
        return "pretraining"
    return "classifier" if any(name.startswith(HEAD_PREFIX) for name in names) else "encoder"


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file. Raises InputError when it is missing, damaged or another format."""
    if path.suffix != ".safetensors":
        raise InputError(
            f"{path} is not a .safetensors file; pickled checkpoints are not read because they can run code"
        )
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"no weights file at {path}") from error
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"cannot read the weights {path}: {error}; the file may be cut short, copy it again"
        ) from error


def save_backbone(folder: Path, config: ConvViTConfig, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a backbone folder that `load_backbone` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    config.to_json(folder / "config.json")
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, folder / "model.safetensors")


def base_model_sha256(model: ConvViT) -> str:
    """Digest of the frozen network that a federation's sites must share, as hex.

    Over the architecture and every encoder tensor as little-endian float32, in name order. Heads, adapters and the position
    table (a function of the architecture) do not count, and a first kernel that is only repeated over the frames counts
    once, so the digest is the same whatever file the weights came in and however the frames are seen.
    A model whose adapters are merged has another digest.
    """
    repeated = _same_for_all_frames(model.state_dict().get(FIRST_KERNEL), model.config)
    n_frames = 1 if repeated else model.config.n_frames
    architecture = asdict(replace(model.config, out_chans=1, n_frames=n_frames))
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        if name == POSITIONS or name.startswith(HEAD_PREFIX) or ".lora_" in name:
            continue
        if name == FIRST_KERNEL and repeated:
            value = value[:, : model.config.in_chans]
        array = value.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False)
        digest.update(json.dumps([name, list(array.shape)]).encode())
        digest.update(array.data)
    return digest.hexdigest()


def _locate(source: Path) -> tuple[Path, ConvViTConfig | None]:
    """The weights file and the config beside it."""
    if not source.exists():
        raise InputError(f"no weights at {source}; give a safetensors file, or a folder with model.safetensors")
    folder = source if source.is_dir() else source.parent
    described = folder / "config.json"
    config = ConvViTConfig.from_json(described) if described.is_file() else None
    if source.is_file():
        return source, config
    for name in _FILE_NAMES:
        if (source / name).is_file():
            return source / name, config
    raise InputError(f"the folder {source} has no {' or '.join(_FILE_NAMES)}")


def _sorted_out(
    tensors: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], kind: Kind
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Split a file's tensors into those meant for the model and those passed over."""
    usable, ignored = {}, []
    for name, value in tensors.items():
        foreign = kind == "pretraining" and any(part in name for part in _PRETRAINING_ONLY)
        headless = name.startswith(HEAD_PREFIX) and name not in target
        if foreign or headless:
            ignored.append(name)
        else:
            usable[name] = value.float()
    return usable, ignored


def _fit_first_kernel(usable: dict[str, torch.Tensor], config: ConvViTConfig, source: str, frames: Frames) -> bool:
    """Repeat a one-frame kernel (O, in_chans, …) over the model's frames; True when that was done."""
    kernel = usable.get(FIRST_KERNEL)
    if kernel is None or kernel.ndim != 5 or kernel.shape[1] == config.image_chans:
        return False
    if frames == "siamese" and kernel.shape[1] > config.in_chans:
        raise InputError(
            f"{source}: {FIRST_KERNEL} takes {kernel.shape[1]} channels, so these weights see frames stacked; "
            f"siamese frames need a kernel of {config.in_chans}, as in a pre-training checkpoint. "
            "Use --frames stacked, or other weights"
        )
    if kernel.shape[1] != config.in_chans:
        return False  # the structure check names it
    usable[FIRST_KERNEL] = kernel.repeat(1, config.n_frames, 1, 1, 1)
    return True


def _check_structure(
    usable: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], optional: set[str], source: str
) -> None:
    missing = sorted(set(target) - set(usable) - optional)
    unexpected = sorted(set(usable) - set(target))
    reshaped = [
        f"{name} is {list(usable[name].shape)}, expected {list(target[name].shape)}"
        for name in sorted(set(usable) & set(target))
        if usable[name].shape != target[name].shape
    ]
    faults = [
        f"{len(names)} {what}: {', '.join(names[:_NAMED_AT_MOST])}{', …' if len(names) > _NAMED_AT_MOST else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("reshaped", reshaped))
        if names
    ]
    if faults:
        raise InputError(
            f"{source} does not fit the model: {'; '.join(faults)}. Check that --size or config.json describes this file"
        )


def _same_for_all_frames(kernel: torch.Tensor | None, config: ConvViTConfig) -> bool:
    if kernel is None or config.n_frames < 2:
        return False
    first, *others = kernel.chunk(config.n_frames, dim=1)
    return all(torch.equal(first, other) for other in others)
