"""The audit journal's lines in words. Names and texts in them may be a site's: whoever shows the words escapes them."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aggregator.facts.calls import MOST_TEXT, Failure
from shared import journal
from shared.names import plain

REFUSED, APPROVED = "call_refused", "site_approved"
Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the journal, as it stands there; whether the chain holds, `aggregator audit` says."""

    n: int
    at: float
    event: str
    facts: Facts

    @property
    def words(self) -> str:
        """What happened, in a sentence."""
        say = _WORDS.get(self.event, _plainly)
        try:
            return plain(say(self.facts), MOST_TEXT)
        except (KeyError, TypeError, ValueError, AttributeError):
            return _plainly(self.facts) or self.event


def read(written: Iterable[tuple[int, bytes]]) -> Iterator[Line]:
    """Yield the lines that can be read, in the order they are given."""
    for number, line in written:
        try:
            value = json.loads(line)
            facts = {name: found for name, found in value.items() if name not in journal.OWN}
            yield Line(number, float(value["at"]), str(value["event"]), facts)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            yield Line(number, 0.0, "unreadable", {"line": "it was changed; aggregator audit says which is the first"})


def refusals(lines: Sequence[Line]) -> dict[str, Failure]:
    """Return the last refusal of each caller, of lines that are newest first."""
    found: dict[str, Failure] = {}
    for line in (line for line in lines if line.event == REFUSED):
        told = line.facts
        words = f"{told.get('error', '')}: {told.get('why', '')}"
        found.setdefault(
            str(told.get("caller", "")), Failure(line.at, str(told.get("rpc", "")), "", plain(words, MOST_TEXT))
        )
    return found


def approved_until(lines: Sequence[Line]) -> dict[str, float]:
    """Return when the last certificate that was approved for each site ends, seconds since 1970, of lines that are newest first."""
    found: dict[str, float] = {}
    for line in (line for line in lines if line.event == APPROVED):
        with suppress(KeyError, TypeError, ValueError):
            ends = datetime.fromisoformat(line.facts["expires"]).replace(tzinfo=UTC)
            found.setdefault(str(line.facts["site"]), ends.timestamp())
    return found


def _plainly(facts: Facts) -> str:
    return plain(", ".join(f"{name} {value}" for name, value in facts.items() if value not in ("", None)), MOST_TEXT)


def _reason(facts: Facts) -> str:
    return f": {facts['reason']}" if facts.get("reason") else ""


def _names(values: Iterable[str], most: int = 8) -> str:
    names = list(values)
    return ", ".join(names[:most]) + (" and others" if len(names) > most else "")


def _closed(facts: Facts) -> str:
    out = facts.get("left_out") or {}
    without = f", without {_names(f'{site} ({why})' for site, why in sorted(out.items()))}" if out else ""
    return f"round {facts['round']} closed with {_names(facts['sites'])}{without}: version {facts['version']}"


def _refused(facts: Facts) -> str:
    count = f" ({facts['count']} times)" if facts.get("count", 1) > 1 else ""
    return f"{facts['rpc']} of {facts['caller'] or 'somebody unknown'} refused{count}: {facts['why']}"


def _rolled_back(facts: Facts) -> str:
    gone = f", round {facts['abandoned_round']} given up" if facts.get("abandoned_round") else ""
    return f"rolled back to version {facts['version']} by {facts['by']}{gone}{_reason(facts)}"


def _model(facts: Facts) -> str:
    return f"version {facts['version']}" + (f" in its comparison, model {facts['arm']}," if facts.get("arm") else "")


_WORDS: Mapping[str, Callable[[Facts], str]] = {
    "federation_made": lambda f: f"federation made: {f['recipe']}, sites {_names(f['sites'])}",
    APPROVED: lambda f: f"{f['site']} approved by {f['by']}, certificate until {f['expires']}",
    "site_joined": lambda f: f"{f['site']} joined with {f['patients']} training patients",
    "update_accepted": lambda f: f"{f['site']} is in round {f['round']}, {f['bytes']:,} bytes as {f['codec']}",
    "evaluation_reported": lambda f: f"{f['site']} reported how {_model(f)} does",
    "round_closed": _closed,
    REFUSED: _refused,
    "site_evicted": lambda f: f"{f['site']} evicted by {f['by']}{_reason(f)}",
    "federation_paused": lambda f: f"paused by {f['by']}{_reason(f)}",
    "federation_resumed": lambda f: f"resumed by {f['by']}",
    "federation_rolled_back": _rolled_back,
    "certificate_revoked": lambda f: f"certificate of {f['holder']} revoked by {f['by']}{_reason(f)}",
}
