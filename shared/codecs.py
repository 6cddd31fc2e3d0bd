"""Codecs: how a tensor's numbers are written when they travel. A recipe names one; both sides derive the layout from it.

f32     float32 as it is: nothing is lost
bf16    the upper half of a float32, rounded to nearest, ties to even: half the bytes, 8 significant bits.
        IEEE 754-2019, section 4.3.1 (the rounding); the format is that of Wang & Kanwar 2019 ("BFloat16", Google Cloud).

Decoding is exact: every value a codec can write is a float32. What encoding lost is therefore known to the sender to the last
bit, and goes into the next update (`site_agent.egress`).
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

PLAIN = "F32"
"""Type of adapter files and of everything that is computed with."""

DTYPES: Mapping[str, np.dtype[np.generic]] = {PLAIN: np.dtype("<f4"), "BF16": np.dtype("<u2")}
"""How one number lies in a payload, by safetensors name of its type. numpy has no bfloat16: its bits travel as uint16."""

CODECS: Mapping[str, str] = {"f32": PLAIN, "bf16": "BF16"}
"""Installed codecs, each with the type it gives a tensor."""


def is_lossy(codec: str) -> bool:
    """Return whether a codec may change a number."""
    return CODECS[codec] != PLAIN


def encode(dtype: str, array: npt.NDArray[np.float32]) -> npt.NDArray[np.generic]:
    """Return a tensor as it lies in a payload: the same shape, little-endian, of type `DTYPES[dtype]`.

    Values that are not finite stay so; a finite one beyond the type's range becomes infinite, which both ends refuse.
    """
    if dtype == PLAIN:
        return array.astype(DTYPES[PLAIN], copy=False)
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)  # rounding could carry a NaN into infinity or zero
    return np.where(np.isnan(array), quiet, rounded).astype(DTYPES[dtype]).reshape(array.shape)


def decode(dtype: str, array: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Return a payload's tensor as float32, exactly; of type F32 it is the array itself."""
    if dtype == PLAIN:
        return array.astype(np.float32, copy=False)
    return np.asarray(array.astype(np.uint32) << np.uint32(16)).view(np.float32)
