"""The adapter file: one safetensors file that describes a federation's trainable surface completely.

Canonical bytes: an 8-byte little-endian header length, the header as canonical JSON padded with blanks to a multiple of 8,
then the tensors sorted by name. Same content, same bytes, same digest. Tensor names follow Hugging Face PEFT.
Format: https://huggingface.co/docs/safetensors (metadata are strings, offsets are relative to the data section).
"""

import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from shared import json_text
from shared.canonical import canonical_json, sha256_hex, write_atomically
from shared.errors import InputError, InvalidAdapter
from shared.layout import MAX_BYTES, Layout, spec_of

MAX_HEADER = 192 << 10
MAX_METADATA_VALUES = 512
"""Class names, blocks and the like, of each kind."""
FORMAT = "med-duallora-adapter/1"
MAX_RANK = 1024
_OPTIONAL_NUMBERS = ("seed", "base_parameters", "base_blocks", "residual_rank")
_OPTIONAL = (*_OPTIONAL_NUMBERS, "dense")
HEAD_POLICIES = ("global", "local", "global+local-bias", "global+local")
"""What of the head is shared: all of it, nothing, its weights but not its bias, or one of two heads whose logits are added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterMetadata:
    """What the global tensors are for. The local part has numbers of its own in the recipe: it never meets this file."""

    base_model_sha256: str
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    blocks: tuple[int, ...]
    head_policy: str
    frames: str
    task: str
    class_names: tuple[str, ...]
    seed: int | None = None
    """What version 0 was drawn from: with the base model, all that a site needs to draw it itself. None if that is not known."""
    base_parameters: int | None = None
    """Scalars of the whole base model: what full fine-tuning would send."""
    base_blocks: int | None = None
    """Transformer blocks of the base model."""
    residual_rank: int | None = None
    """Rank of the residual that an exact rule keeps beside the factors; None: there is none."""
    dense: tuple[str, ...] | None = None
    """What of the base model itself is trained and shared: all parameters whose names begin with one of these."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank <= MAX_RANK or not 0 < self.alpha < math.inf:
            raise InvalidAdapter(
                f"rank must be 0 to {MAX_RANK} and alpha positive, got rank={self.rank}, alpha={self.alpha}"
            )
        if self.head_policy not in HEAD_POLICIES:
            raise InvalidAdapter(f"head policy '{self.head_policy}' is none of {', '.join(HEAD_POLICIES)}")
        if self.frames not in ("stacked", "siamese"):
            raise InvalidAdapter(f"frames '{self.frames}' is neither stacked nor siamese")
        for name in _OPTIONAL_NUMBERS:
            if (getattr(self, name) or 0) < 0:
                raise InvalidAdapter(f"adapter metadata '{name}' must not be negative, got {getattr(self, name)}")
        object.__setattr__(self, "alpha", float(self.alpha))  # 16 and 16.0 are the same adapter: one text, one digest

    def to_strings(self) -> dict[str, str]:
        """Return every field that says something as JSON text, the form safetensors metadata takes."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: canonical_json(value).decode() for name, value in values.items() if value is not None}

    @classmethod
    def from_strings(cls, strings: Mapping[str, str]) -> "AdapterMetadata":
        """Read what `to_strings` made; a missing, extra or malformed entry raises InvalidAdapter naming it."""
        names = {f.name for f in fields(cls)}
        for name in sorted((names ^ strings.keys()) - set(_OPTIONAL)):
            raise InvalidAdapter(f"adapter metadata '{name[:80]}' is {'missing' if name in names else 'unknown'}")
        try:
            values = {name: _metadatum(name, text) for name, text in strings.items()}
            metadata = cls(
                base_model_sha256=str(values["base_model_sha256"]),
                rank=int(values["rank"]),
                alpha=float(values["alpha"]),
                target_modules=tuple(str(v) for v in _listed(values, "target_modules")),
                blocks=tuple(int(v) for v in _listed(values, "blocks")),
                head_policy=str(values["head_policy"]),
                frames=str(values["frames"]),
                task=str(values["task"]),
                class_names=tuple(str(v) for v in _listed(values, "class_names")),
                **{name: int(values[name]) for name in _OPTIONAL_NUMBERS if name in values},
                dense=tuple(str(v) for v in _listed(values, "dense")) if "dense" in values else None,
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidAdapter(f"adapter metadata cannot be read: {error}") from error
        for name, text in metadata.to_strings().items():
            if strings[name] != text:
                raise InvalidAdapter(f"adapter metadata '{name}' is {strings[name][:80]!r}, expected {text[:80]!r}")
        return metadata


@dataclass(frozen=True)
class AdapterManifest:
    """What every version of a federation's global adapter has in common: layout and metadata."""

    layout: Layout
    metadata: AdapterMetadata

    def __post_init__(self) -> None:
        for spec in self.layout.tensors:
            spec.check_plain()

    def to_bytes(self) -> bytes:
        """Return the canonical JSON that Join sends."""
        return canonical_json({"layout": self.layout.to_jsonable(), "metadata": self.metadata.to_strings()})

    @classmethod
    def from_bytes(cls, data: bytes) -> "AdapterManifest":
        """Read what `to_bytes` made. Raises InvalidAdapter."""
        value = _bounded_json(data)
        if value.keys() != {"layout", "metadata"} or not isinstance(value["metadata"], dict):
            raise InvalidAdapter(f"an adapter manifest has layout and metadata, got {sorted(value)[:5]}")
        return cls(Layout.from_jsonable(value["layout"]), AdapterMetadata.from_strings(value["metadata"]))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical form, hex: the adapter manifest hash of the contract."""
        return sha256_hex(self.to_bytes())


@dataclass(frozen=True)
class Adapter:
    """One version of the global adapter. `tensors` are float32 and match the manifest's layout."""

    manifest: AdapterManifest
    version: int
    parent_digest: str
    tensors: Mapping[str, np.ndarray]

    @cached_property
    def payload(self) -> bytes:
        """The data section: what travels."""
        return self.manifest.layout.join(self.tensors)

    def to_bytes(self) -> bytes:
        """Return the canonical file."""
        return _header(self.manifest, self.version, self.parent_digest) + self.payload

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical file, hex."""
        hashed = hashlib.sha256(_header(self.manifest, self.version, self.parent_digest))
        hashed.update(self.payload)
        return hashed.hexdigest()

    @classmethod
    def from_payload(cls, manifest: AdapterManifest, version: int, parent_digest: str, payload: bytes) -> "Adapter":
        """Rebuild a version from what travelled. Raises InvalidAdapter on a wrong size or non-finite value."""
        made = cls(manifest, version, parent_digest, manifest.layout.split(payload))
        made.__dict__["payload"] = payload  # what `payload` would put together again
        return made

    @classmethod
    def from_bytes(cls, data: bytes) -> "Adapter":
        """Parse a safetensors file strictly. Raises InvalidAdapter saying what is wrong, before tensors are touched."""
        if len(data) < 8:
            raise InvalidAdapter(f"an adapter file has at least 8 bytes, got {len(data)}")
        (length,) = struct.unpack("<Q", data[:8])
        if length > min(MAX_HEADER, len(data) - 8):
            raise InvalidAdapter(
                f"header claims {length} bytes; the file has {len(data)} and the limit is {MAX_HEADER}"
            )
        header = _bounded_json(memoryview(data)[8 : 8 + length])
        strings = header.pop("__metadata__", None)
        if not isinstance(strings, dict) or strings.get("format") != FORMAT:
            raise InvalidAdapter(f"not an adapter file: metadata 'format' must be '{FORMAT}'")
        for name in sorted(name for name, text in strings.items() if not isinstance(text, str)):
            raise InvalidAdapter(f"adapter metadata '{name[:80]}' must be text")
        layout = _layout_of_header(header, len(data) - 8 - length)
        version, parent = strings.get("version", ""), strings.get("parent_digest", "")
        if not (version.isascii() and version.isdecimal() and len(version) < 10 and version == str(int(version))):
            raise InvalidAdapter(f"adapter metadata 'version' must be a number, got {version[:80]!r}")
        rest = {k: v for k, v in strings.items() if k not in ("format", "version", "parent_digest")}
        manifest = AdapterManifest(layout, AdapterMetadata.from_strings(rest))
        return cls.from_payload(manifest, int(version), parent, data[8 + length :])

    @classmethod
    def read(cls, path: Path) -> "Adapter":
        """Read a file. Raises InputError if it is not there, InvalidAdapter if it is not an adapter."""
        limit = 8 + MAX_HEADER + MAX_BYTES
        try:
            if path.stat().st_size > limit:
                raise InvalidAdapter(f"adapter file {path} has {path.stat().st_size} bytes, the limit is {limit}")
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read adapter file {path}: {error.strerror}") from error
        try:
            return cls.from_bytes(data)
        except InvalidAdapter as error:
            raise InvalidAdapter(f"{path}: {error}") from error

    def write(self, path: Path) -> None:
        """Write the canonical file atomically."""
        write_atomically(path, self.to_bytes())

    def successor(self, tensors: Mapping[str, np.ndarray], version: int) -> "Adapter":
        """Return version `version` with these tensors and this adapter as its parent."""
        return replace(self, version=version, parent_digest=self.digest, tensors=tensors)


def _header(manifest: AdapterManifest, version: int, parent_digest: str) -> bytes:
    strings = {
        **manifest.metadata.to_strings(),
        "format": FORMAT,
        "version": str(version),
        "parent_digest": parent_digest,
    }
    entries: dict[str, Any] = {"__metadata__": strings}
    offset = 0
    for spec in manifest.layout.tensors:
        entries[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.size],
        }
        offset += spec.size
    text = canonical_json(entries)
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _metadatum(name: str, text: str) -> Any:
    if not isinstance(text, str):
        raise TypeError(f"'{name}' is no text")
    try:
        return json_text.read(text.encode("utf-8", "surrogatepass"), MAX_HEADER, MAX_METADATA_VALUES)
    except ValueError as error:
        raise ValueError(f"'{name}' {error}") from error


def _listed(values: Mapping[str, Any], name: str) -> list[Any]:
    """Return a metadatum that must be a list: a long text would be taken for one, letter by letter."""
    value = values[name]
    if not isinstance(value, list):
        raise ValueError(f"'{name}' is a {type(value).__name__}, expected a list")
    return value


def _bounded_json(data: bytes | memoryview) -> dict[str, Any]:
    try:
        value = json_text.read(data, MAX_HEADER)
    except ValueError as error:
        raise InvalidAdapter(f"header {error}") from error
    if not isinstance(value, dict):
        raise InvalidAdapter(f"header is a {type(value).__name__}, expected an object")
    return value


def _layout_of_header(header: dict[str, Any], data_bytes: int) -> Layout:
    """Return the layout; tensors must lie one behind the other in sorted order and fill the data section exactly."""
    specs, end = [], 0
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise InvalidAdapter(f"header entry of tensor '{name[:80]}' needs dtype, shape and data_offsets")
        spec = spec_of(name, entry["shape"], entry["dtype"])  # limits first: a size is computed only from a sane shape
        spec.check_plain()
        if entry["data_offsets"] != [end, end + spec.size]:
            raise InvalidAdapter(
                f"tensor '{name}' lies at {str(entry['data_offsets'])[:80]}, expected {[end, end + spec.size]}: "
                "tensors must be sorted by name, without gaps or overlaps"
            )
        specs.append(spec)
        end += spec.size
    if end != data_bytes:
        raise InvalidAdapter(f"tensors end at byte {end}, the data section has {data_bytes} bytes")
    return Layout(tuple(specs))
