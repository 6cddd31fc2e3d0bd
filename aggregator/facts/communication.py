"""What communication takes: sizes of accepted updates from the store, everything else as this process counted it. Pure."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from aggregator.accounts.comparison import full_model
from aggregator.facts.calls import ROUNDS, Counted, Tally
from aggregator.facts.material import Material

NOTHING = Tally()


def make(material: Material, counted: Counted | None) -> dict[str, Any]:
    """Return bytes by site and by round. `since`: from when on this process counted; None where none did.

    `updates_bytes`: of updates that count, from the store; `counted`: messages of all calls at this process but probes.
    """
    newest = material.state.round.number
    sizes: dict[int, dict[str, int]] = defaultdict(dict)
    for update in material.accepted:
        if update.round > newest - ROUNDS:
            sizes[update.round][update.site] = update.bytes
    by_round: dict[int, dict[str, Tally]] = defaultdict(dict)
    for (number, site), tally in counted.by_round.items() if counted else ():
        by_round[number][site] = tally
    return {
        "full_model_bytes": full_model(material.contract.manifest),
        "since": counted.since if counted else None,
        "sites": [
            {
                "site": name,
                "updates_bytes": material.bytes_by_site.get(name, 0),
                "counted": _sums(counted.by_site.get(name, NOTHING)) if counted else None,
            }
            for name in material.state.sites
        ],
        "rounds": [
            {
                "round": number,
                "updates_bytes": sizes[number],
                "counted": _by_site(by_round[number]) if counted else None,
            }
            for number in sorted({*sizes, *by_round})
        ],
    }


def _by_site(tallies: Mapping[str, Tally]) -> dict[str, dict[str, int]]:
    return {site: _sums(tally) for site, tally in sorted(tallies.items())}


def _sums(tally: Tally) -> dict[str, int]:
    return {name: getattr(tally, name) for name in ("calls", "retries", "bytes_up", "bytes_down")}
