"""`python -m tests.deploy.confined UNIT COMMAND...`: run a command under a unit's limits on system calls.

systemd cannot run a service in a test, so its filters are laid with the library that it uses itself, libseccomp: SystemCallFilter=,
RestrictAddressFamilies=, RestrictNamespaces= and MemoryDenyWriteExecute=. Mounts, users and devices are not among them.
"""

import ctypes
import errno
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.deploy import units

ALLOW, ERROR = 0x7FFF0000, 0x00050000
EQUAL, MASKED_EQUAL = 4, 7
PROT_WRITE, PROT_EXEC, SHM_EXEC = 2, 4, 0o100000
NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET
NO_NEW_PRIVILEGES = 38


class Argument(ctypes.Structure):
    """What an argument of a call is compared with (struct scmp_arg_cmp)."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


class Filter:
    """A filter of system calls that refuses what it does not know with EPERM."""

    def __init__(self, otherwise: int) -> None:
        self._library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._library.seccomp_init(ctypes.c_uint32(otherwise)))

    def rule(self, action: int, call: str, *arguments: Argument) -> None:
        """Add a rule; a call that this machine does not have is left out, as systemd does."""
        number = self._library.seccomp_syscall_resolve_name(call.encode())
        if number < 0:
            return
        given = (Argument * max(1, len(arguments)))(*arguments)
        if code := self._library.seccomp_rule_add_array(
            self._context, ctypes.c_uint32(action), number, len(arguments), given
        ):
            raise OSError(-code, f"no rule for {call}")

    def load(self) -> None:
        """Put it in force for this process and all that come of it."""
        if code := self._library.seccomp_load(self._context):
            raise OSError(-code, "the filter is not taken")


def _refused(number: int = errno.EPERM) -> int:
    return ERROR | number


def confine(unit: Mapping[str, list[str]]) -> None:
    """Lay the unit's limits on this process."""
    if ctypes.CDLL(None).prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError("no_new_privs is not taken")
    calls = Filter(otherwise=_refused())
    for name in sorted(units.system_calls(unit)):
        calls.rule(ALLOW, name)
    families = Filter(otherwise=ALLOW)
    allowed = {getattr(socket, name) for line in unit["RestrictAddressFamilies"] for name in line.split()}
    for family in set(range(64)) - allowed:
        families.rule(_refused(errno.EAFNOSUPPORT), "socket", Argument(0, EQUAL, family, 0))
    if unit.get("RestrictNamespaces") == ["yes"]:
        for bit in (1 << n for n in range(32) if NEW_NAMESPACES >> n & 1):
            for call in ("unshare", "clone"):
                families.rule(_refused(), call, Argument(0, MASKED_EQUAL, bit, bit))
    if unit.get("MemoryDenyWriteExecute") == ["yes"]:
        both = PROT_WRITE | PROT_EXEC
        families.rule(_refused(), "mmap", Argument(2, MASKED_EQUAL, both, both))
        for call in ("mprotect", "pkey_mprotect"):
            families.rule(_refused(), call, Argument(2, MASKED_EQUAL, PROT_EXEC, PROT_EXEC))
        families.rule(_refused(), "shmat", Argument(2, MASKED_EQUAL, SHM_EXEC, SHM_EXEC))
    families.load()
    calls.load()


def main() -> None:
    """Confine this process, then become the command."""
    confine(units.settings(Path(sys.argv[1])))
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
