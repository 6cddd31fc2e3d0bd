"""What every test may ask for."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.support.postgres import PostgresServer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True, scope="module")
def _own_events() -> Iterator[None]:
    """No file of tests hears less, or elsewhere, because of what one before it did to the log."""
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with golden numbers and real volumes that lies beside the checkout; never part of the project."""
    folder = ROOT.parent / "shared"
    if not (folder / "golden").is_dir():
        pytest.fail(f"reference data is missing: expected golden/ and real/ in {folder}; lay it beside the checkout")
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for this process of tests."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.close()
