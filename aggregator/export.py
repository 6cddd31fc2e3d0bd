"""A version of the global adapter as a folder that Hugging Face PEFT loads."""

from pathlib import Path

from shared import peft
from shared.adapter import Adapter
from shared.errors import InputError


def write(adapter: Adapter, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors. Raises InputError if the folder cannot be written."""
    metadata = adapter.manifest.metadata
    try:
        peft.write_folder(folder, adapter.tensors, metadata, metadata.rank, metadata.alpha)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; choose another --out") from error
