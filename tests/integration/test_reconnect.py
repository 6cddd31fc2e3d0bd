"""Whoever waits for an aggregator that is killed or stopped is back soon after it is; grpc/grpc#38290 must not return.

`python -m tests.chaos restarts` does the same with outages of 8 and 20 s too, and prints the distribution.
"""

import signal
from pathlib import Path

import pytest

from tests.chaos import restarts
from tests.integration.federation import Materials

pytestmark = pytest.mark.integration


async def test_clients_and_a_real_agent_are_back_within_10_s_of_a_killed_aggregators_return(
    materials: Materials, tmp_path: Path
) -> None:
    found = await restarts.restart(tmp_path, materials, [(signal.SIGKILL, 0.5)], secure=False, seed=1)
    assert restarts.Figures(tuple(found)).is_good, found
    assert {len(one.back_s) for one in found} == {len(restarts.CLIENTS) + 1}


async def test_clients_with_mtls_are_back_within_10_s_whether_it_was_killed_or_stopped(
    materials: Materials, tmp_path: Path
) -> None:
    plan = [(signal.SIGKILL, 0.5), (signal.SIGTERM, 0.5)]
    found = await restarts.restart(tmp_path, materials, plan, secure=True, seed=2, with_agent=False)
    assert restarts.Figures(tuple(found)).is_good, found
    assert [one.signal for one in found] == ["SIGKILL", "SIGTERM"]
