"""Reading a backbone's weights: folders of any network, CineMA's classifiers, CineMA's masked-autoencoder checkpoint.

A backbone folder holds `config.json` and `model.safetensors` with the tensor names of the network's origin: CineMA's, where heads
and the position table may be absent, or MONAI's. How a file's tensors are made to fit is the network's business (`Backbone.fit`).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shared.errors import InputError
from site_agent.models import networks
from site_agent.models.backbone import Backbone, NetworkConfig
from site_agent.models.cinema_weights import HEAD_PREFIX
from site_agent.models.config import Frames
from site_agent.models.loading import LoadReport

log = structlog.get_logger()

_FILE_NAMES = ("model.safetensors", "pretrained.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedBackbone:
    model: Backbone
    """Without heads, in evaluation mode, no gradients."""
    heads: Mapping[str, torch.Tensor]
    """`pred_head_dict.{sax,cls}.{weight,bias}` of a CineMA classifier; empty for other files and for siamese frames."""
    frames: Frames
    report: LoadReport


def load_backbone(
    source: Path, config: NetworkConfig | None = None, frames: Frames = "stacked", *, stem_frozen: bool = True
) -> LoadedBackbone:
    """Load the weights at `source`, a safetensors file or a folder with one.

    `config` describes the network; without it, `config.json` beside the weights does. How many frames it sees follows `frames`.
    Raises InputError for files that cannot be read, for tensors that are missing, unexpected or of another shape (naming them),
    and for two-frame weights with siamese frames.
    """
    path, described = _locate(source)
    if config is not None and described is not None and config.network != described.network:
        raise InputError(
            f"{source} has a {described.network} (its config.json says so), not the {config.network} that --size stands for; "
            "leave --size (weights_size) out"
        )
    config = config or described
    if config is None:
        raise InputError(
            f"{source} has no config.json beside it; say which network it is with --size tiny or --size base"
        )
    model = networks.build(config.for_frames(frames)).requires_grad_(False).eval()
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


def load_into(model: Backbone, tensors: Mapping[str, torch.Tensor], *, source: str, frames: Frames) -> LoadReport:
    """Copy a file's tensors into a model. `source` names the file in errors; nothing is changed when an InputError is raised."""
    fitted = model.fit(tensors, source=source, frames=frames)
    model.load_state_dict(fitted.tensors, strict=False)
    return fitted.report


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


def save_backbone(
    folder: Path,
    config: NetworkConfig,
    tensors: Mapping[str, torch.Tensor],
    header: Mapping[str, str] | None = None,
) -> None:
    """Write a backbone folder that `load_backbone` reads. `header`: metadata of the safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    config.to_json(folder / "config.json")
    contiguous = {name: value.detach().contiguous() for name, value in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", dict(header) if header else None)


def base_model_sha256(model: Backbone) -> str:
    """Digest of the frozen network that a federation's sites must share, as hex.

    Over the architecture and every tensor of `Backbone.identity` as little-endian float32, in name order. Heads and adapters do
    not count, and a first kernel that is only repeated over the frames counts once, so the digest is the same whatever file the
    weights came in and however the frames are seen. A model whose adapters are merged has another digest.
    """
    architecture, tensors = model.identity()
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        array = value.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False)
        digest.update(json.dumps([name, list(array.shape)]).encode())
        digest.update(array.data)
    return digest.hexdigest()


def _locate(source: Path) -> tuple[Path, NetworkConfig | None]:
    """The weights file and the config beside it."""
    if not source.exists():
        raise InputError(f"no weights at {source}; give a safetensors file, or a folder with model.safetensors")
    folder = source if source.is_dir() else source.parent
    described = folder / "config.json"
    config = networks.read_config(described) if described.is_file() else None
    if source.is_file():
        return source, config
    for name in _FILE_NAMES:
        if (source / name).is_file():
            return source / name, config
    raise InputError(f"the folder {source} has no {' or '.join(_FILE_NAMES)}")
