"""Which networks there are, and which of them a config names: the one place that knows."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from shared.errors import InputError
from site_agent.models.backbone import NetworkConfig
from site_agent.models.config import ConvViTConfig, read_object
from site_agent.models.convvit import ConvViT
from site_agent.models.monai_config import MonaiViTConfig

if TYPE_CHECKING:
    from site_agent.models.monai_vit import MonaiViT


def read_config(path: Path) -> NetworkConfig:
    """Read a backbone's config.json. `network` in it says of which kind; without it, it is a ConvViT's. Raises InputError."""
    values = read_object(path)
    name = values.pop("network", ConvViTConfig.network)
    if name == MonaiViTConfig.network:
        return MonaiViTConfig.from_mapping(values, source=str(path))
    if name == ConvViTConfig.network:
        return ConvViTConfig.from_mapping(values.get("clf", values), source=str(path))
    raise InputError(
        f"{path}: network {name!r} is not known; it must be {ConvViTConfig.network} or {MonaiViTConfig.network}"
    )


def build(config: NetworkConfig, device: str = "cpu") -> "ConvViT | MonaiViT":
    """An untrained network without heads. On the device `meta` it has shapes and no numbers."""
    match config:
        case ConvViTConfig():
            with torch.device(device):
                return ConvViT(config, heads=False)
        case MonaiViTConfig():
            from site_agent.models.monai_vit import MonaiViT  # MONAI costs 3 s and 150 MB: only where it is used

            with torch.device(device):
                return MonaiViT(config)
