"""Making a file of CineMA's, or one of ours with its names, fit a ConvViT.

Rules for a pre-training checkpoint, from CineMA's `load_pretrain_weights`: decoder, other views, heads and position tables are
ignored; the one-frame kernel of the first convolution is repeated over the frames and not divided; the position table is
rebuilt for the model's own grid.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace

import torch

from site_agent.models import loading
from site_agent.models.backbone import Fitted, Identity
from site_agent.models.config import VIEW, ConvViTConfig, Frames
from site_agent.models.loading import Kind, LoadReport

FIRST_KERNEL = f"enc_down_dict.{VIEW}.conv_blocks.0.patch_embed.conv.weight"
POSITIONS = f"enc_down_dict.{VIEW}.pos_embed"
HEAD_PREFIX = "pred_head_dict."

_PRETRAINING_ONLY = ("mask", "decoder", "_head", "lax_2c", "lax_3c", "lax_4c", "dec_linear", "pos_embed")
"""A name with one of these in it belongs to pre-training, to another view, or is rebuilt."""


def fit(
    tensors: Mapping[str, torch.Tensor],
    target: Mapping[str, torch.Tensor],
    config: ConvViTConfig,
    *,
    source: str,
    frames: Frames,
) -> Fitted:
    """Choose and adapt a file's tensors for a network with the tensors `target`, which may have heads.

    Raises InputError as `Backbone.fit`.
    """
    kind = kind_of(tensors)
    usable, ignored = _sorted_out(tensors, target, kind)
    kernel = usable.get(FIRST_KERNEL)
    if kernel is not None:
        usable[FIRST_KERNEL] = loading.over_frames(
            kernel, config.in_chans, config.n_frames, frames, f"{source}: {FIRST_KERNEL}"
        )
    optional = {POSITIONS} | {name for name in target if name.startswith(HEAD_PREFIX)}
    loading.check_structure(usable, target, optional, source)
    report = LoadReport(
        kind=kind,
        loaded=tuple(sorted(usable)),
        rebuilt=tuple(sorted(set(target) - set(usable))),
        ignored=tuple(sorted(ignored)),
        kernel_repeated=usable.get(FIRST_KERNEL) is not kernel,
        frames_see_same_kernel=kernel is not None and loading.is_repeated(usable[FIRST_KERNEL], config.n_frames),
    )
    return Fitted(usable, report)


def kind_of(tensors: Iterable[str]) -> Kind:
    """A file with a decoder is a pre-training checkpoint (its `pred_head_dict` predicts pixels)."""
    names = list(tensors)
    if any(name.startswith(("decoder.", "dec_")) for name in names):
        return "pretraining"
    return "classifier" if any(name.startswith(HEAD_PREFIX) for name in names) else "encoder"


def identity(state: Mapping[str, torch.Tensor], config: ConvViTConfig) -> Identity:
    """Without heads, adapters and the position table, a function of the architecture; a kernel that is only repeated over the
    frames counts once."""
    tensors = {
        name: value
        for name, value in state.items()
        if name != POSITIONS and not name.startswith(HEAD_PREFIX) and ".lora_" not in name
    }
    n_frames = config.n_frames
    if FIRST_KERNEL in tensors:
        tensors[FIRST_KERNEL] = loading.of_one_frame(tensors[FIRST_KERNEL], n_frames)
        n_frames = tensors[FIRST_KERNEL].shape[1] // config.in_chans
    return Identity(asdict(replace(config, out_chans=1, n_frames=n_frames)), tensors)


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
