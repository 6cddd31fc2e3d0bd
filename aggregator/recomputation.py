"""Making a closed round's result again from what is stored, and comparing: the version, the change, and the moments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aggregator import closing, optimisers, rules
from aggregator.manifest import RoundManifest
from aggregator.optimisers import State
from aggregator.rounds import SiteState
from aggregator.store import changes, federations, moments
from aggregator.store.changes import Change
from aggregator.store.engine import Store
from aggregator.store.rounds import RoundRecord
from shared import codecs, forms
from shared.adapter import Adapter
from shared.canonical import sha256_hex
from shared.compatibility import PRODUCT_RULES
from shared.contract import Contract
from shared.errors import InvalidAdapter
from shared.feedback import Sent

ROUNDING = 1e-6
"""Share of a tensor's largest value by which two machines' QR and SVD of the same numbers may differ."""


class Difference(Exception):
    """What is stored is not what was recomputed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What every round is compared with: one state of the store, in which rounds may go on meanwhile."""

    store: Store
    contract: Contract
    sites: Mapping[str, SiteState]
    records: Mapping[int, RoundRecord]
    phase: str
    version: int
    sampling_seed: int
    last_version: int
    strays: Sequence[tuple[int, str]]
    """Round and site of bytes that belong to no update."""


def result(ground: Ground, decided: RoundManifest, parent: Adapter, purged: bool) -> tuple[str, bool]:
    """Compare what a round made with what it makes here; unless its update bytes are gone, then with the versions around it.

    Returns the result's digest, and whether it has other last bits here. Raises Difference.
    """
    made, rounding = None, False
    if not purged:
        made = closing.compute(ground.store, ground.contract, decided, parent)
        rounding = _check_version(ground, decided, made.version)
    stored = adapter(ground, decided.version, decided.result_digest)
    _check_change(ground, decided, parent, stored, made.change if made else None)
    _check_moments(ground, decided, parent, stored, made.moments if made else None)
    same(f"parent of version {decided.version}", stored.parent_digest, parent.digest)
    return stored.digest, rounding


def _check_version(ground: Ground, decided: RoundManifest, made: Adapter) -> bool:
    """Compare the version that a round made with the one it makes here; return whether they differ in the last bits only.

    Those may differ, by ROUNDING of a tensor's largest value, where they come from a QR and an SVD, or from weights that a robust
    rule computes from products. Raises Difference.
    """
    if decided.result_digest == made.digest:
        return False
    what, recipe = f"result of round {decided.round}", ground.contract.recipe
    rule, weighed = recipe.rule, recipe.robust in PRODUCT_RULES
    if rule == "factors":
        same(what, decided.result_digest, made.digest)
    stored = adapter(ground, decided.version, decided.result_digest)
    same(f"parent of version {decided.version}", stored.parent_digest, made.parent_digest)
    same(f"adapter manifest of version {decided.version}", stored.manifest.digest, made.manifest.digest)
    for name, array in made.tensors.items():
        apart = float(np.abs(array.astype(np.float64) - stored.tensors[name]).max())
        rounded = weighed or rules.is_decomposed(rule, name)
        allowed = ROUNDING * float(np.abs(array).max()) if rounded else 0.0
        if apart > allowed:
            raise Difference(f"{what}: tensor '{name}' differs by {apart:.3g}, allowed for rounding is {allowed:.3g}")
    return True


def _check_moments(
    ground: Ground, decided: RoundManifest, parent: Adapter, stored: Adapter, made: State | None
) -> None:
    """Compare what the server optimiser goes on from with its digest, with the step from the parent to the version and, unless
    the update bytes are gone, with what the round makes: element by element, so bit for bit. Raises Difference."""
    what, keeps = f"moments of version {decided.version}", optimisers.keeps_moments(ground.contract.recipe)
    data = ground.store.read(moments.file, ground.contract.federation, decided.version)
    if (data is not None) != keeps:
        optimiser = ground.contract.recipe.server_optimiser
        raise Difference(f"{what}: {'some are' if data else 'none are'} stored, server optimiser {optimiser}")
    same(what, decided.moments_digest, "" if data is None else sha256_hex(data))
    if data is None:
        return
    if made is not None:
        same(what, sha256_hex(data), sha256_hex(moments.to_bytes(made)))
    state, recipe = moments.from_bytes(data, decided.version), ground.contract.recipe
    for name, before in parent.tensors.items():
        if not recipe.travels(name, decided.round):
            continue
        if name not in state or state[name].first.shape != before.shape:
            raise Difference(f"{what}: there are none of tensor '{name}'")
        if not np.array_equal(forms.moved(before, optimisers.step(recipe, state[name])), stored.tensors[name]):
            raise Difference(f"{what}: they do not lead to tensor '{name}'")


def _check_change(ground: Ground, decided: RoundManifest, parent: Adapter, stored: Adapter, made: Sent | None) -> None:
    """Compare the change that was broadcast with the versions before and after it; what it owes with what the round makes,
    unless the update bytes are gone."""
    recipe, what = ground.contract.recipe, f"change to version {decided.version}"
    change = ground.store.read(changes.find, ground.contract.federation, decided.version)
    if (change is not None) != codecs.is_lossy(recipe.broadcast_codec):
        raise Difference(
            f"{what}: {'one is' if change else 'none is'} stored, broadcast codec {recipe.broadcast_codec}"
        )
    if change is None:
        return
    layout = recipe.change_layout(ground.contract.manifest, decided.round)
    try:
        after = parent.successor(forms.changed(parent.tensors, layout, change.data), decided.version)
    except InvalidAdapter as error:
        raise Difference(f"{what}: {error}") from error
    same(what, after.digest, stored.digest)
    if change.round != decided.round:
        raise Difference(f"{what}: it is of round {change.round}, expected {decided.round}")
    if made is not None:
        same(
            f"{what}, what it owes",
            sha256_hex(change.owed),
            sha256_hex(Change.of(change.version, change.round, made).owed),
        )


def adapter(ground: Ground, version: int, digest: str) -> Adapter:
    """Return one version as it is stored. Raises Difference unless file and row have this digest and agree on the parent."""
    store, name = ground.store, ground.contract.federation
    file = store.read(federations.adapter_file, name, version)
    found = Adapter.from_bytes(file)
    same(f"adapter version {version}", digest, sha256_hex(file))
    recorded, parent = store.read(federations.adapter_digests, name, version)
    same(f"row of adapter version {version}", recorded, found.digest)
    same(f"parent in the row of adapter version {version}", parent, found.parent_digest)
    if found.version != version:
        raise Difference(f"adapter version {version} says that it is version {found.version}")
    return found


def same(what: str, recorded: str, found: str) -> None:
    if recorded != found:
        raise Difference(f"{what}: recorded digest {recorded[:16] or 'none'}, found {found[:16] or 'none'}")
