"""The contract, and what protects whom, in sentences for people who have not read either."""

from collections.abc import Mapping, Sequence
from typing import Any

from aggregator.accounts.tables import size
from aggregator.rounds import SiteState
from shared import codecs
from shared.compatibility import blended, robust_quorum
from shared.contract import ALLOWED_METRICS, Contract
from shared.recipe import Recipe

WEIGHTING = {
    "patients": "its share of the training patients",
    "capped": "its share of the training patients, none above {cap:g} times their median",
    "uniform": "the same as every other's",
}
ROBUST = "Robust rule {rule} takes the place of the weighted mean, for rounds of at least {quorum} updates{told}."
MODES = {
    "alternating": "Half of a round's steps train the global part, the others the local one.",
    "non-interference": "The global part is trained before the local one, so that nothing that leaves depends on a local part.",
}


def contract(agreed: Contract) -> list[str]:
    """Return what every site agreed to, a sentence each."""
    recipe, policy, metadata = agreed.recipe, agreed.policy, agreed.manifest.metadata
    uploads = [recipe.upload_layout(agreed.manifest, number, policy.invited) for number in (1, 2)]
    largest = max(uploads, key=lambda layout: layout.size)
    told = [
        f"Method {recipe.name} ({recipe.method.source}): {recipe.method.formula}.",
        _trained(agreed),
        f"An update is {largest.parameters:,} numbers, {size(largest.size)} as {recipe.codec}"
        + (
            f"; a round's change travels as {recipe.broadcast_codec}."
            if codecs.is_lossy(recipe.broadcast_codec)
            else "."
        ),
        f"{policy.rounds} rounds. Each invites {policy.invited} sites, closes with at least {policy.quorum} updates, and waits "
        f"{policy.deadline_s / 60:g} minutes and {policy.grace_s / 60:g} of grace.",
        f"A site trains {recipe.local_epochs} epochs a round in batches of {recipe.batch_size}; its weight is "
        f"{WEIGHTING[recipe.weighting].format(cap=recipe.weight_cap)}.",
        f"Task {metadata.task}: {' against '.join(metadata.class_names)}.",
        MODES.get(recipe.mode, ""),
        _robust(recipe),
    ]
    return [sentence for sentence in told if sentence]


def _trained(agreed: Contract) -> str:
    metadata, recipe = agreed.manifest.metadata, agreed.recipe
    if metadata.dense:
        return f"Weights of the base model itself are trained: {', '.join(metadata.dense)}."
    if not metadata.rank:
        return "Only the shared head is trained."
    blocks = ", ".join(map(str, metadata.blocks))
    local = (
        f"; each site keeps a local part of rank {recipe.rank_local}"
        if recipe.rank_local
        else "; there is no local part"
    )
    return (
        f"Low-rank global part of rank {metadata.rank} in {', '.join(metadata.target_modules)} of blocks {blocks}{local}; head "
        f"policy {metadata.head_policy}."
    )


def _robust(recipe: Recipe) -> str:
    if recipe.robust == "none":
        return ""
    told = f", against {recipe.attackers} that send anything" if recipe.attackers else ""
    return ROBUST.format(rule=recipe.robust, quorum=robust_quorum(recipe), told=told)


def security(agreed: Contract, sites: Sequence[SiteState], costs: Mapping[str, Any] | None) -> list[str]:
    """Return what is known of who was who, what could leave, and what bounds a single site or patient."""
    return [
        _identity(sites, costs),
        _leaves(agreed.recipe),
        _gate(agreed.recipe),
        _privacy(agreed.recipe),
        _blended(agreed),
    ]


def _identity(sites: Sequence[SiteState], costs: Mapping[str, Any] | None) -> str:
    heard = [site for site in sites if site.last_seen]
    claimed = [site.name for site in heard if not site.authenticated]
    if not heard:
        return "No site has been heard from yet."
    if claimed:
        return f"NOT authenticated: {', '.join(claimed)} claimed a name on a plain port, and anybody could have."
    wire = costs["wire_model"] if costs else {"tls_known": False}
    tls = " The aggregator's log says that it served with TLS." if wire["tls_known"] and wire["tls"] else ""
    return f"Mutual TLS: each of the {len(heard)} sites heard from was named by a certificate of this federation's CA.{tls}"


def _leaves(recipe: Recipe) -> str:
    figures = ", ".join(ALLOWED_METRICS)
    left = (
        "and, under differential privacy, no figure" if recipe.dp_noise else f"and figures on an allow-list ({figures})"
    )
    return (
        f"A site sends the change of the global part, its number of training patients, {left}; both ends refuse anything else. "
        "The protocol has no field for images, labels, scores of cases or local parts."
    )


def _gate(recipe: Recipe) -> str:
    if not recipe.norm_gate:
        return "No gate on the size of updates: a single site may move the mean by its weight."
    return f"Updates over {recipe.norm_gate:g} times the round's median size are quarantined, in rounds of five updates or more."


def _privacy(recipe: Recipe) -> str:
    if not recipe.dp_noise:
        return "No differential privacy: a global change may hold information about the data it was trained on."
    return (
        f"Differential privacy: noise {recipe.dp_noise:g} at clip {recipe.dp_clip:g}; a site stops before epsilon "
        f"{recipe.dp_epsilon:g} at delta {recipe.dp_delta:g} for any of its patients. What is spent each site counts for itself."
    )


def _blended(agreed: Contract) -> str:
    together = blended(agreed.recipe, agreed.policy.quorum)
    if together >= 3:
        return f"A result is made of at least {together} updates: no site can subtract itself and read another's."
    if together == 2:
        return "A result may be made of 2 updates: each of the two sites can read the other's from it."
    return "A result may be made of 1 update: whoever has the versions before and after can read it."
