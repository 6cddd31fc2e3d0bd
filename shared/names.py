"""Names of sites and people."""

import re

from shared.errors import InputError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def plain(text: str, most: int) -> str:
    """Return what of a text can be printed, `most` characters: control characters belong in no database and on no screen."""
    return "".join(c for c in text[:most] if c.isprintable())


def check_name(name: str) -> str:
    """Return a site's or person's name. Raises InputError unless it can be a file name and part of a URI."""
    if not NAME.fullmatch(name):
        raise InputError(
            f"name '{name[:70]}' is not usable: 1 to 63 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit"
        )
    return name
