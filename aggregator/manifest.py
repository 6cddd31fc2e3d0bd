"""The manifest of a round: everything its result is a pure function of, and, once closed, the result's digest."""

import json
from dataclasses import dataclass, field, fields, replace
from typing import Any

from aggregator import aggregation, rounds
from shared.canonical import canonical_json, sha256_hex
from shared.errors import InputError
from shared.methods import Rule
from shared.recipe import Recipe

WRITTEN_RULES: dict[Rule, str] = {"factors": "weighted_mean"}
"""As manifests name a rule, where that is not its own name: as they did when there was one."""


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
    """Digests of accepted updates that do not count, by site: the site was evicted before the round closed, or the update is
    quarantined."""
    recipe: str = ""
    codec: str = ""
    broadcast_codec: str = ""
    """How the updates were written, and the change that was made of them. Empty in manifests from before there was a choice."""
    weight_cap: float = 0.0
    """Where the weighting has one."""
    server_optimiser: str = ""
    server_beta1: float = 0.0
    server_beta2: float = 0.0
    server_tau: float = 0.0
    """Of an optimiser other than sgd, those numbers that it uses."""
    robust: str = ""
    attackers: int = 0
    cosine_least: float = 0.0
    norm_gate: float = 0.0
    """Of a robust rule and a gate, what they go by; entries' weights are those of the mean."""
    result_digest: str = ""
    moments_digest: str = ""
    """Of what the optimiser goes on from after this round; empty until the round is closed."""

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
        return sha256_hex(replace(self, result_digest="", moments_digest="").to_bytes())


_OPTIMISER_NUMBERS = ("server_beta1", "server_beta2", "server_tau")
_LATER = (
    *("set_aside", "recipe", "codec", "broadcast_codec"),
    *("weight_cap", "server_optimiser", *_OPTIMISER_NUMBERS, "moments_digest"),
    *("robust", "attackers", "cosine_least", "norm_gate"),
)


def settings(recipe: Recipe) -> dict[str, Any]:
    """Return what a manifest says of the recipe, by field: all that decides what the round makes of its updates."""
    rule, optimiser = recipe.rule, recipe.server_optimiser
    said: dict[str, Any] = {
        "rule": WRITTEN_RULES.get(rule, rule),
        "weighting": recipe.weighting,
        "server_lr": recipe.server_lr,
        "weight_cap": recipe.weight_cap if recipe.weighting == "capped" else 0.0,
    }
    used = {"sgd": (), "momentum": _OPTIMISER_NUMBERS[:1]}.get(optimiser, _OPTIMISER_NUMBERS)
    said["server_optimiser"] = optimiser if used else ""
    said["robust"] = "" if recipe.robust == "none" else recipe.robust
    said |= {"attackers": recipe.attackers, "norm_gate": recipe.norm_gate}
    said["cosine_least"] = recipe.cosine_least if recipe.robust == "cosine-gate" else 0.0
    return said | {name: getattr(recipe, name) if name in used else 0.0 for name in _OPTIMISER_NUMBERS}


def of_round(federation: rounds.FederationState, recipe: Recipe, parent_digest: str, version: int) -> RoundManifest:
    """Return the manifest of the open round with whoever is in now; `version` is the number its result gets."""
    held = rounds.counted(federation)
    patients = {site: update.training_patients for site, update in held.items()}
    weights = aggregation.weights(patients, recipe.weighting, recipe.weight_cap)
    return RoundManifest(
        federation=federation.name,
        round=federation.round.number,
        **settings(recipe),
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


def with_result(manifest: RoundManifest, digest: str, moments_digest: str = "") -> RoundManifest:
    """Return the manifest of the closed round."""
    return replace(manifest, result_digest=digest, moments_digest=moments_digest)
