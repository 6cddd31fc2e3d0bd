"""What this account may not read or write, and whose it is: a person often runs the doctor, and another account the agent."""

import os
import pwd
import shlex
from collections.abc import Mapping
from pathlib import Path

from shared import account


def remedy(error: BaseException) -> str:
    """Return what to do if this account lacked a right; nothing for any other error. Names no path: it may be a patient's."""
    denied = _denied(error)
    if denied is None:
        return ""
    owner, me = _owner(nearest(Path(str(denied.filename or "/")))), account.name()
    if owner == me:
        return "it is this account's own, and its mode keeps even this account out: chmod u+rwX"
    return f"{_as_agent('ACCOUNT' if owner == 'root' else owner)}, or let {me} read what is {owner}'s"


def closed(folders: Mapping[str, Path]) -> list[tuple[str, str]]:
    """Return why this account cannot write to folders, which need not be there yet, and what to do.

    By the names of their settings. Those that the same thing keeps from being written to are told of together.
    """
    groups: dict[Path, dict[str, Path]] = {}
    for name, folder in folders.items():
        groups.setdefault(nearest(folder), {})[name] = folder.absolute()
    found = []
    for there, group in groups.items():
        if why := _why(there):
            said = " and ".join(f"{name} folder {folder}" for name, folder in group.items())
            found.append((f"{said} cannot be written to: {why}", ", or ".join(_ways(there, group))))
    return found


def _why(there: Path) -> str:
    if not there.is_dir():
        return f"{there} is a file"
    if _read_only(there):
        return f"{there} is on a disk that is mounted read-only"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} is {_owner(there)}'s, and not open to {account.name()}"
    return ""


def _ways(there: Path, group: Mapping[str, Path]) -> list[str]:
    """Return what could be done, the simplest first. Nothing is taken from another account, which may be the agent's."""
    owner, me = _owner(there), account.name()
    quoted, made = shlex.quote(str(there)), " ".join(shlex.quote(str(folder)) for folder in group.values())
    ways = []
    if not there.is_dir():
        ways.append(f"move {quoted} away")
    elif _read_only(there):
        ways.append(
            f"have it mounted to be written to (findmnt -T {quoted} shows it; in a container: a volume of its own)"
        )
    elif owner == me:
        ways.append(f"chmod u+rwx {quoted}")
    elif there in group.values():
        ways.append(f"sudo chown -R {me} {quoted}" if owner == "root" else _as_agent(owner))
    else:
        ways += [_as_agent(owner)] * (owner != "root")
        ways += [f"sudo install -d -m 0700 -o {me} {made}"] * os.access(there, os.X_OK)
    return [*ways, f"set {' and '.join(f'`{name}`' for name in group)} in site.toml to another folder"]


def nearest(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that this account can see."""
    whole = folder.absolute()
    return next(one for one in (whole, *whole.parents) if _visible(one))


def _visible(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        return False


def _denied(error: BaseException | None) -> PermissionError | None:
    """Return the refusal that an error comes from."""
    while error is not None and not isinstance(error, PermissionError):
        error = error.__cause__
    return error


def _as_agent(owner: str) -> str:
    who = f"'#{owner}'" if owner.isdecimal() else owner  # sudo(8): of a number
    return f"run this as the account of the agent: sudo -u {who} site-agent doctor"


def _read_only(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _owner(path: Path) -> str:
    number = path.stat().st_uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
