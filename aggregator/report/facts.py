"""Everything that `aggregator report` shows, read from the store: only what sites were allowed to tell ever came there."""

import importlib.metadata
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from aggregator import audit, verify
from aggregator.accounts.comparison import full_model
from aggregator.facts import model
from aggregator.facts.events import Line
from aggregator.facts.material import Material
from aggregator.report import words
from aggregator.rounds import SiteState
from aggregator.store import agents, evaluations, federations, updates
from aggregator.store import rounds as round_rows
from aggregator.store.agents import Software
from aggregator.store.engine import Store
from aggregator.store.rounds import RoundRecord
from shared.contract import ALLOWED_METRICS, Contract
from shared.errors import InputError
from shared.journal import Chain

Facts = dict[str, Any]
STEERED = (
    "site_evicted",
    "federation_rolled_back",
    "federation_paused",
    "federation_resumed",
    "certificate_revoked",
    "call_refused",
)
"""Lines of the audit journal that a consortium asks about."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What one look at the store found, all of the same moment: every round, and what sites run on."""

    material: Material
    software: Mapping[str, Software]


def gather(store: Store, federation: str, now: float, costs: Facts | None = None, *, recompute: bool = True) -> Facts:
    """Return the report's facts. `now`: seconds since 1970; `costs`: what `accounts.report` made of logs, if there are any.

    `recompute`: whether closed rounds are made again from the stored updates. What is wrong with rounds or journal is among the
    facts (`verified.ok`, `audit.ok`) and is no error.
    """
    found = store.read(_look, federation)
    state, contract = found.material.state, found.material.contract
    rounds = [_round(record) for record in found.material.records]
    curves = model.make(found.material)
    return {
        "federation": state.name,
        "made_at": now,
        "software": importlib.metadata.version("med-duallora"),
        "phase": state.phase,
        "reason": state.reason,
        "rounds": state.policy.rounds,
        "rounds_closed": found.material.closed,
        "version": state.version,
        "digest": state.digest,
        "contract": _contract(contract),
        "sites": [_site(found, site, rounds) for site in state.sites.values()],
        "rounds_so_far": rounds,
        "figures_of": curves["figures_of"],
        "curves": curves["curves"],
        "arms": curves["arms"],
        "communication": _communication(found.material, costs),
        "verified": _verified(store, federation) if recompute else None,
        "audit": _audit(store, federation),
        "security": words.security(contract, list(state.sites.values()), costs),
    }


def _look(connection: sa.Connection, federation: str) -> _Found:
    return _Found(
        Material(
            state=federations.state(connection, federation),
            contract=federations.contract(connection, federation),
            closed=round_rows.count_closed(connection, federation),
            records=round_rows.records(connection, federation),
            accepted=updates.accepted(connection, federation),
            bytes_by_site=updates.bytes_by_site(connection, federation),
            evaluations=evaluations.read(connection, federation),
            arms=evaluations.arms(connection, federation),
            journal=(),
        ),
        agents.software(connection, federation),
    )


def _contract(contract: Contract) -> Facts:
    metadata, layout = contract.manifest.metadata, contract.manifest.layout
    uploads = [contract.recipe.upload_layout(contract.manifest, number, contract.policy.invited) for number in (1, 2)]
    return {
        "sha256": contract.sha256,
        "adapter_digest": contract.adapter_digest,
        "base_model_sha256": metadata.base_model_sha256,
        "task": metadata.task,
        "class_names": list(metadata.class_names),
        "parameters": layout.parameters,
        "bytes": layout.size,
        "update_bytes": max(one.size for one in uploads),
        "recipe": contract.recipe.to_jsonable(),
        "policy": asdict(contract.policy),
        "metrics": list(ALLOWED_METRICS),
        "words": words.contract(contract),
    }


def _site(found: _Found, site: SiteState, rounds: Sequence[Facts]) -> Facts:
    material, software = found.material, found.software.get(site.name)
    patients = sum(one.training_patients or 0 for one in material.state.sites.values())
    reported = [one for one in material.evaluations if one["site"] == site.name]
    return {
        "site": site.name,
        "phase": site.phase,
        "reason": site.reason,
        "training_patients": site.training_patients,
        "share": (site.training_patients or 0) / patients if patients else None,
        "authenticated": site.authenticated if site.last_seen else None,
        "last_seen": site.last_seen or None,
        "software": software.software if software else "",
        "protocol": software.protocol if software else "",
        "rounds_in": [one["round"] for one in rounds if one["phase"] == "closed" and site.name in one["weights"]],
        "rounds_out": {one["round"]: one["left_out"][site.name] for one in rounds if site.name in one["left_out"]},
        "evaluations": [{name: one[name] for name in ("round", "version", "cases", "metrics")} for one in reported],
        "updates_bytes": material.bytes_by_site.get(site.name, 0),
    }


def _round(record: RoundRecord) -> Facts:
    state, figures = record.state, record.diagnostics
    made = json.loads(record.manifest) if record.manifest else {}
    norms = {
        name.removeprefix("update_norm/"): value for name, value in figures.items() if name.startswith("update_norm/")
    }
    cosines = [value for name, value in figures.items() if name.startswith("cosine/")]
    return {
        "round": state.number,
        "phase": state.phase,
        "base_version": state.base_version,
        "version": record.version,
        "invited": list(state.invited),
        "accepted": sorted(state.accepted),
        "weights": {entry["site"]: entry["weight"] for entry in made.get("entries", ())},
        "left_out": made.get("left_out", {}),
        "set_aside": sorted(made.get("set_aside", ())),
        "digest": made.get("result_digest", ""),
        "opened_at": state.opened_at,
        "closed_at": state.closed_at,
        "aggregation_error": figures.get("aggregation_error"),
        "update_norms": norms,
        "cosine_median": statistics.median(cosines) if cosines else None,
        "cosine_least": min(cosines, default=None),
        "weights_used": {name.removeprefix("weight/"): v for name, v in figures.items() if name.startswith("weight/")},
        "purged": record.purged_at is not None,
    }


def _communication(material: Material, costs: Facts | None) -> Facts:
    """What is known of bytes: the updates that count from the store, every call from logs if there are any."""
    sizes, full = [one.bytes for one in material.accepted], full_model(material.contract.manifest)
    return {
        "updates": len(sizes),
        "updates_bytes": sum(sizes),
        "full_model_bytes": full,
        "times_less_up": full * len(sizes) / sum(sizes) if full and sum(sizes) else None,
        "from_logs": costs,
    }


def _verified(store: Store, federation: str) -> Facts:
    checks = [one for one in verify.verify(store, federation) if one.phase == "closed" or one.difference]
    return {
        "ok": not any(one.difference for one in checks),
        "closed": len(checks),
        "purged": sum(one.purged for one in checks),
        "rounding": sum(one.rounding for one in checks),
        "differences": [f"round {one.round}: {one.difference}" for one in checks if one.difference],
    }


def _audit(store: Store, federation: str) -> Facts:
    try:
        chain = audit.check(store, federation)
    except InputError as error:
        return {"ok": False, "finding": str(error), "lines": None, "head": None, "events": {}, "steered": []}
    return {"ok": True, "finding": "", "lines": len(chain.entries), "head": chain.head.digest, **_told(chain)}


def _told(chain: Chain) -> Facts:
    """How often each event stands in the journal, and in words those a consortium asks about."""
    steered = [Line(one.n, one.at, one.event, one.facts) for one in chain.entries if one.event in STEERED]
    return {
        "events": dict(sorted(Counter(one.event for one in chain.entries).items())),
        "steered": [{"n": one.n, "at": one.at, "event": one.event, "words": one.words} for one in steered],
    }
