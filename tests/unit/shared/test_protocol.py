"""Which protocol versions understand each other."""

import pytest

from shared import protocol
from shared.errors import IncompatibleProtocol

AGENT_TOO_OLD = "upgrade the agent"
AGGREGATOR_TOO_OLD = "upgrade the aggregator"


@pytest.mark.parametrize("agent", ["1.3", "1.4", "1.5"])
def test_agents_up_to_two_minors_behind_keep_working(agent: str) -> None:
    protocol.check(agent, "1.5")


@pytest.mark.parametrize(
    ("agent", "aggregator", "advice"),
    [
        ("1.2", "1.5", AGENT_TOO_OLD),
        ("1.9", "2.0", AGENT_TOO_OLD),
        ("1.6", "1.5", AGGREGATOR_TOO_OLD),
        ("2.0", "1.9", AGGREGATOR_TOO_OLD),
        ("1.10", "1.9", AGGREGATOR_TOO_OLD),
    ],
)
def test_a_refusal_names_both_versions_and_what_to_upgrade(agent: str, aggregator: str, advice: str) -> None:
    with pytest.raises(IncompatibleProtocol) as caught:
        protocol.check(agent, aggregator)
    assert str(caught.value) == f"the agent speaks protocol {agent}, the aggregator {aggregator}: {advice}"


@pytest.mark.parametrize("agent", ["", "1", "1.0.0", "one.two", "9" * 5000 + ".0", "1.x"])
def test_a_version_that_is_none_is_refused_and_shown_briefly(agent: str) -> None:
    with pytest.raises(IncompatibleProtocol, match=r"expected 'major.minor'; upgrade the agent") as caught:
        protocol.check(agent)
    assert len(str(caught.value)) < 150


def test_this_release_understands_itself() -> None:
    protocol.check(protocol.VERSION)
