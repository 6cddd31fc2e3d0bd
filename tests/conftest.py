"""What every test may ask for."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with golden numbers and real volumes that lies beside the checkout; never part of the project."""
    folder = ROOT.parent / "shared"
    if not (folder / "golden").is_dir():
        pytest.fail(f"reference data is missing: expected golden/ and real/ in {folder}; lay it beside the checkout")
    return folder
