"""What the agents' logs say about where a federation stands. Pure: events in, state out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]

MAX_READ = 1_000_000
"""Bytes taken from a log at once."""


class Tail:
    """Reads whole JSON lines that were added to a log since the last look. A log that is not there yet has none."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def read(self) -> list[Event]:
        """Return the new events, oldest first."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(MAX_READ)
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


@dataclass
class SiteProgress:
    """One agent, as far as its log tells."""

    name: str
    rounds: int
    stage: str = "starting"
    round: int = 0
    sent: int = 0
    """Rounds whose update was accepted."""
    loss: float | None = None
    auc: dict[int, float | None] = field(default_factory=dict)
    """On the site's validation cases, by version."""
    since: float = 0.0
    """When the stage began, on the caller's clock."""

    def hear(self, event: Event, now: float) -> bool:
        """Take an event in; return whether the site came forward by it."""
        stage, came = self._stage_after(event)
        if stage != self.stage or came:
            self.stage, self.since = stage, now
            return True
        return False

    def _stage_after(self, event: Event) -> tuple[str, bool]:
        match event["event"]:
            case "rpc_finished" if event["code"] == "OK" and event["rpc"] == "Join":
                return "waiting", False
            case "rpc_finished" if event["code"] == "OK" and event["rpc"] == "FetchAdapter":
                return self.stage if self.sent == self.rounds else f"training round {self.sent + 1}", False
            case "round_trained":
                self.loss = event.get("train_loss", self.loss)
                return f"sending round {event['round']}", True
            case "update_accepted":
                self.sent = self.round = event["round"]
                return f"waiting in round {self.sent}", True
            case "version_evaluated":
                self.auc[event["version"]] = event.get("auc")
                last = event["version"] == self.rounds
                return "comparing arms" if last else f"training round {self.sent + 1}", True
            case "federation_finished":
                return "finished", True
        return self.stage, False


@dataclass
class FederationProgress:
    """All agents together."""

    sites: dict[str, SiteProgress]
    tails: dict[str, Tail]
    announced: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, logs: Mapping[str, Path], rounds: int, now: float) -> "FederationProgress":
        """Watch these sites' logs."""
        return cls(
            {name: SiteProgress(name, rounds, since=now) for name in logs},
            {name: Tail(path) for name, path in logs.items()},
        )

    def poll(self, now: float) -> list[str]:
        """Read what is new; return a line for everything that is worth one."""
        for name, tail in self.tails.items():
            for event in tail.read():
                self.sites[name].hear(event, now)
        new = [line for line in self._lines() if line not in self.announced]
        self.announced.update(new)
        return new

    def _lines(self) -> list[str]:
        sites = list(self.sites.values())
        lines = []
        if all(site.stage != "starting" for site in sites):
            lines.append("every site has joined")
        for version in range(1, sites[0].rounds + 1):
            if all(site.sent >= version for site in sites):
                lines.append(f"round {version} of {sites[0].rounds}: all {len(sites)} updates accepted")
            if all(version in site.auc for site in sites):
                scores = ", ".join(f"{site.name} {score(site.auc[version])}" for site in sites)
                lines.append(f"version {version}: validation AUC {scores}")
        return lines + [f"{site.name} is finished" for site in sites if site.stage == "finished"]

    def last_move(self) -> float:
        """When any site last came forward. Rounds bind the sites together: one that hangs soon stops them all."""
        return max(site.since for site in self.sites.values())

    def busy(self) -> list[str]:
        """Sites that are not waiting for another one: the slow ones."""
        return [site.name for site in self.sites.values() if "waiting" not in site.stage and site.stage != "finished"]

    def brief(self) -> str:
        """Who is at what, in a line."""
        at: dict[str, list[str]] = {}
        for site in self.sites.values():
            at.setdefault(site.stage, []).append(site.name)
        return "; ".join(f"{stage}: {', '.join(names)}" for stage, names in at.items())


def score(value: float | None) -> str:
    """Three digits; a dash where a class was missing."""
    return "-" if value is None else f"{value:.3f}"


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean; None if any of them is missing, so that a mean never hides a site."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present and len(present) == len(values) else None
