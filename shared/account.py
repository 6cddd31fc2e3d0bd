"""The account on this machine that a command runs under."""

import os
import pwd


def name() -> str:
    """Return the account that runs this process, by its real user id: no environment variable says another one."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
