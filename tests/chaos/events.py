"""What the processes of one federation wrote in their logs, over all their lives: evidence that the end does not show."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]


def read(path: Path) -> list[Event]:
    """Return a log's events in their order; none of one that was never begun, nor what a kill cut off in mid-line."""
    found: list[Event] = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            found.append(event)
    return found


def sent_again(agent: Iterable[Event]) -> set[int]:
    """Return the rounds of which an agent that held a receipt sent bytes again: the aggregator had forgotten the update.

    An agent makes one call after the other, and writes down each when it is over: an upload that stands behind a receipt was
    asked for after it. With a receipt that is remembered the announcement is answered with it, and no upload follows.
    """
    held: set[int] = set()
    again: set[int] = set()
    for event in agent:
        if event.get("event") == "update_accepted":
            held.add(event["round"])
        elif event.get("event") == "rpc_finished" and event["rpc"] == "UploadDelta":
            if event["round"] in held:
                again.add(event["round"])
            if event["code"] == "OK":
                held.add(event["round"])
    return again


def accepted_again(aggregators: Iterable[Sequence[Event]]) -> set[tuple[str, int]]:
    """Return the sites and rounds of updates that aggregators, together, accepted, took for new, and accepted again.

    Two acceptances alone are none of it: two streams of one upload may both have come to the end.
    """
    told = [
        event for log in aggregators for event in log if event.get("event") in ("update_accepted", "update_announced")
    ]
    told.sort(key=lambda event: str(event["timestamp"]))
    last: dict[tuple[str, int, str], str] = {}
    again: set[tuple[str, int]] = set()
    for event in told:
        key = event["site"], event["round"], event["digest"]
        if event["event"] == "update_accepted":
            if last.get(key) == "taken for new":
                again.add(key[:2])
            last[key] = "accepted"
        elif key in last:
            last[key] = "taken for new"
    return again


def resumed(agent: Iterable[Event]) -> list[tuple[int, int]]:
    """Return the round and the step of every checkpoint that an agent's training went on from."""
    return [(event["round"], event["step"]) for event in agent if event.get("event") == "training_resumed"]
