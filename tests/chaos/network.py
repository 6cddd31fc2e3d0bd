"""The network between three sites and the aggregators: one relay a site, each with the troubles a scenario has for it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from experiments import relay
from experiments.relay import FaultPlan, Relay
from tests.chaos.scenario import Scenario, Trouble
from tests.integration.federation import SITES


@dataclass
class Network:
    """The relays that are running, by site."""

    relays: dict[str, Relay]
    scenario: Scenario

    def happened(self) -> tuple[Trouble, ...]:
        """Return the troubles that came, in the scenario's order."""
        return tuple(one for site in SITES for one in _happened(self.relays[site], _of(self.scenario, site)))

    def carried(self) -> dict[str, dict[str, int]]:
        """Return how many bytes went each way on each site's connections."""
        return {site: {"up": one.bytes_up, "down": one.bytes_down} for site, one in self.relays.items()}


@asynccontextmanager
async def between(aggregators: Sequence[str], scenario: Scenario) -> AsyncIterator[Network]:
    """Relay as long as the block lasts. Sites begin at different aggregators, and go to another one if theirs is away."""
    async with AsyncExitStack() as stack:
        relays = {}
        for number, site in enumerate(SITES):
            first = number % len(aggregators)
            targets = [*aggregators[first:], *aggregators[:first]]
            plan = _plan(scenario.seed, _of(scenario, site))
            relays[site] = await stack.enter_async_context(Relay(targets, plan))
        yield Network(relays, scenario)


def _of(scenario: Scenario, site: str) -> list[Trouble]:
    return [trouble for trouble in scenario.troubles if trouble.role == site]


def _plan(seed: int, troubles: Sequence[Trouble]) -> FaultPlan:
    """One trouble a connection, in their order; delays from the beginning."""
    latency = max((one.seconds for one in troubles if one.kind == "delay"), default=0.0)
    return FaultPlan(
        seed=seed,
        latency_s=latency,
        jitter_s=latency,
        script=tuple(_fault(one) for one in troubles if one.kind != "delay"),
        refuse_s=max((one.seconds for one in troubles if one.kind == "refuse"), default=0.0),
    )


def _fault(trouble: Trouble) -> relay.Fault:
    kinds: dict[str, relay.Kind] = {"refuse": "reset", **{kind: kind for kind in relay.KINDS}}
    return relay.Fault(kinds[trouble.kind], trouble.after, trouble.direction)


def _happened(one: Relay, troubles: Sequence[Trouble]) -> list[Trouble]:
    cuts = [trouble for trouble in troubles if trouble.kind != "delay"]
    came = [trouble for trouble, link in zip(cuts, one.links, strict=False) if link.fault_came]
    return [trouble for trouble in troubles if trouble in came or (trouble.kind == "delay" and one.bytes_up)]
