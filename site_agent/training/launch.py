"""How this process was started: alone, or by `torchrun` as one of several that train one site together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from shared.errors import InputError


@dataclass(frozen=True, slots=True)
class Launch:
    """One process of several.

    rank: its number, from 0; number 0 is the agent. size: how many there are. local_rank, local_size: the same among those on
    this machine; the local rank is the number of its GPU.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self | None:
        """Return what torchrun's variables say; None if it did not start this process, or started only one."""
        if (
            "TORCHELASTIC_RUN_ID" not in environment
        ):  # others set RANK and WORLD_SIZE too, and mean something else by it
            return None
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        try:
            found = cls(*(int(environment[name]) for name in names))
        except (KeyError, ValueError) as error:
            raise InputError(
                f"torchrun's variables {', '.join(names)} are not all numbers ({error}); start with torchrun, or unset them"
            ) from None
        return found if found.size > 1 else None
