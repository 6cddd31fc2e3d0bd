"""What the integration tests share: materials made once, in a second or two."""

from pathlib import Path

import pytest
import torch

from tests.integration import federation
from tests.integration.federation import Materials


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Figures repeat bit for bit at one number of threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    """A random backbone, version 0 of its adapter (rank 4), and prepared phantoms of three vendors. Do not change them."""
    folder: Path = tmp_path_factory.mktemp("materials")
    backbone = federation.save_random_backbone(folder / "backbone", seed=1)
    adapter = federation.save_adapter(backbone, folder / "v0.safetensors")
    return Materials(backbone, adapter, federation.prepare_phantoms(folder, federation.PHANTOMS, size=32))
