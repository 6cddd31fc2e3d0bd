"""The manifest of a round: everything its result is a pure function of, and, once closed, the result's digest."""

import json
from dataclasses import dataclass, field, fields, replace
from typing import Any

from aggregator import aggregation, rounds
from shared.canonical import canonical_json, sha256_hex
from shared.errors import InputError
from shared.recipe import Recipe

RULE = "weighted_mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestEntry:
    """One update in a round."""

    site: str
    digest: str
    training_patients: int
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundManifest:
    """What a round is made of. Entries are sorted by site. The result is empty until the round is closed."""

    federation: str
    round: int
    rule: str
    weighting: str
    server_lr: float
    parent_version: int
    parent_digest: str
    version: int
    entries: tuple[ManifestEntry, ...]
    left_out: dict[str, str]
    set_aside: dict[str, str] = field(default_factory=dict)
    """Digests of accepted updates that do not count, by site: the site was evicted before the round closed."""
    recipe: str = ""
    codec: str = ""
    broadcast_codec: str = ""
    """How the updates were written, and the change that was made of them. Empty in manifests from before there was a choice."""
    result_digest: str = ""

    def to_jsonable(self) -> dict[str, Any]:
        """Return the manifest as JSON values. Of what is empty it says nothing, as it did before it could."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["entries"] = [{f.name: getattr(entry, f.name) for f in fields(entry)} for entry in self.entries]
        return {name: value for name, value in values.items() if value or name not in _LATER}

    def to_bytes(self) -> bytes:
        """Return the canonical JSON."""
        return canonical_json(self.to_jsonable())

    @classmethod
    def from_bytes(cls, data: bytes) -> "RoundManifest":
        """Read what `to_bytes` made. Raises InputError if the store holds anything else."""
        try:
            value = json.loads(data)
            entries = tuple(ManifestEntry(**entry) for entry in value.pop("entries"))
            return cls(entries=entries, **value)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise InputError(f"the store holds a manifest that cannot be read: {error}") from error

    @property
    def input_digest(self) -> str:
        """SHA-256 of the manifest without its result: what the close is decided by."""
        return sha256_hex(replace(self, result_digest="").to_bytes())


_LATER = ("set_aside", "recipe", "codec", "broadcast_codec")


def of_round(federation: rounds.FederationState, recipe: Recipe, parent_digest: str, version: int) -> RoundManifest:
    """Return the manifest of the open round with whoever is in now; `version` is the number its result gets."""
    held = rounds.counted(federation)
    weights = aggregation.weights({s: u.training_patients for s, u in held.items()}, recipe.weighting)
    return RoundManifest(
        federation=federation.name,
        round=federation.round.number,
        rule=RULE,
        weighting=recipe.weighting,
        server_lr=recipe.server_lr,
        recipe=recipe.name,
        codec=recipe.codec,
        broadcast_codec=recipe.broadcast_codec,
        parent_version=federation.round.base_version,
        parent_digest=parent_digest,
        version=version,
        entries=tuple(
            ManifestEntry(site=s, digest=u.digest, training_patients=u.training_patients, weight=weights[s])
            for s, u in held.items()
        ),
        left_out=rounds.left_out(federation),
        set_aside=rounds.set_aside(federation),
    )


def with_result(manifest: RoundManifest, digest: str) -> RoundManifest:
    """Return the manifest of the closed round."""
    return replace(manifest, result_digest=digest)
