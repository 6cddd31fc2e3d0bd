"""Randomness for differential privacy: a key of 256 bits from the operating system, and what ChaCha20 (RFC 8439) makes of it.

Everything is a function of (key, purpose, step), so a round that goes on from a checkpoint draws the same numbers. Nothing of it
comes from the site's seed: who can guess a number can take it off again. For the same reason a key is as private as the cases
themselves, and is destroyed as soon as its round is finished (site_agent/privacy/debits.py).
"""

import os
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from shared.canonical import sha256_hex

KEY_BYTES, ID_DIGITS = 32, 32
SAMPLING, NOISE = 0, 1
SUMMED = 4
"""Normal numbers that are added up to one (Holohan and Braghin 2021, arXiv:2107.10138): the last bits of a single one tell which
uniform numbers it can have come from, and with them what it was added to (Mironov 2012, CCS; Jin et al. 2021, arXiv:2112.05307)."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Stream:
    """What one key gives. Raises ValueError for a key that is not 32 bytes long."""

    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, got {len(self.key)}")

    @classmethod
    def fresh(cls) -> Self:
        """Return the stream of a key that nobody has had before."""
        return cls(os.urandom(KEY_BYTES))

    @property
    def id(self) -> str:
        """A name for the key that says nothing about it: the first 128 bits of its SHA-256, hex."""
        return sha256_hex(self.key)[:ID_DIGITS]

    def uniforms(self, purpose: int, step: int, count: int) -> Floats:
        """Return numbers k / 2^53, k uniform from 1 to 2^53: (count,).

        The nonce is a block counter of 64 bits from 0, then step (56 bits) and purpose (8 bits), all little-endian.
        """
        nonce = bytes(8) + step.to_bytes(7, "little") + purpose.to_bytes(1, "little")
        drawn = Cipher(ChaCha20(self.key, nonce), mode=None).encryptor().update(bytes(8 * count))
        return ((np.frombuffer(drawn, "<u8") >> 11).astype(np.float64) + 1.0) * 2.0**-53

    def normals(self, purpose: int, step: int, count: int) -> Floats:
        """Return standard normal numbers, (count,): each the sum of SUMMED of Box and Muller's (1958, Ann. Math. Stat. 29), over
        the square root of SUMMED."""
        radius, angle = self.uniforms(purpose, step, 2 * SUMMED * count).reshape(2, SUMMED, count)
        made: Floats = (np.sqrt(-2.0 * np.log(radius)) * np.cos(2.0 * np.pi * angle)).sum(axis=0) / np.sqrt(SUMMED)
        return made
