"""Egress ledgers that nobody keeps."""

import tempfile
from pathlib import Path

from site_agent.ledger import LEDGER, Ledger


def throwaway() -> Ledger:
    """Return a ledger whose file is gone at once."""
    with tempfile.TemporaryDirectory() as folder:
        return Ledger(Path(folder) / LEDGER)
