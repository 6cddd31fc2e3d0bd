"""Who runs a command at a site, and files that they leave for the agent."""

import os
from pathlib import Path

from shared import account as own_account


def account() -> str:
    """Return the account that runs this process, and who called it by sudo."""
    name = own_account.name()
    behind = os.environ.get("SUDO_USER", "")
    return f"{behind} as {name}" if behind and behind != name else name


def hand_over(file: Path, folder: Path) -> None:
    """Give a file to the owner of a folder: root wrote it, and an agent that is not root reads it."""
    owner = folder.stat()
    if os.getuid() == 0 and file.stat().st_uid != owner.st_uid:
        os.chown(file, owner.st_uid, owner.st_gid)
