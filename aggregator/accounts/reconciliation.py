"""Both sides' accounts held against each other, call by call."""

from collections.abc import Sequence
from dataclasses import dataclass

from aggregator.accounts.logs import AGENT, AGGREGATOR, Call


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """How far both sides agree. Lists hold one line of text per call."""

    compared: int
    agreed: int
    differing: list[str]
    ended_badly: list[str]
    one_sided: list[str]
    sites_without_agent_log: list[str]


def reconcile(calls: Sequence[Call]) -> Reconciliation | None:
    """Compare call by call: bytes of calls that ended OK on both sides must agree exactly. None if one side is missing.

    Calls of sites whose agent's log was not given cannot be compared; the sites are named.
    """
    sides: dict[str, dict[str, Call]] = {AGGREGATOR: {}, AGENT: {}}
    for call in calls:
        if call.call_id:
            sides[call.side][call.call_id] = call
    if not all(sides.values()):
        return None
    theirs, ours = sides[AGENT], sides[AGGREGATOR]
    agent_sites = {call.site for call in theirs.values()}
    differing, ended_badly, one_sided = [], [], []
    compared = 0
    for call_id in sorted(theirs.keys() | ours.keys()):
        agent, aggregator = theirs.get(call_id), ours.get(call_id)
        if agent is None or aggregator is None:
            call = agent or ours[call_id]
            if call.site in agent_sites:
                one_sided.append(f"{_name(call)}: in the {call.side}'s log only, {call.code}")
        elif (agent.code, aggregator.code) != ("OK", "OK"):
            ended_badly.append(f"{_name(agent)}: {agent.code} at the site, {aggregator.code} at the aggregator")
        else:
            compared += 1
            if (agent.up, agent.down) != (aggregator.up, aggregator.down):
                differing.append(
                    f"{_name(agent)}: up {agent.up.bytes} and {aggregator.up.bytes}, "
                    f"down {agent.down.bytes} and {aggregator.down.bytes} bytes at site and aggregator"
                )
    absent = sorted({c.site for c in ours.values()} - agent_sites - {""})
    return Reconciliation(compared, compared - len(differing), differing, ended_badly, one_sided, absent)


def _name(call: Call) -> str:
    return f"{call.call_id[:8]} {call.method} {call.site} round {call.round}"
