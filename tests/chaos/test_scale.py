"""The short forms of what `sites`, `endurance` and `races` show at full size."""

from pathlib import Path

import pytest

from tests.chaos import endurance, races, sites
from tests.chaos.served import Memory
from tests.chaos.simulated_site import Tally
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.integration

SITES, UPLOADS_CAP = 100, 8
LOOSE_BYTES = 500_000
"""A connection's share among so few: what is made once and the transfers in hand, 20 MB, are most of it. An update kept by mistake,
or all of them in memory for the close, would take it beyond."""


@pytest.mark.parametrize("mtls", [False, True])
def test_a_round_of_a_hundred_sites_closes_with_few_updates_in_memory(tmp_path: Path, mtls: bool) -> None:
    figures = sites.measure(tmp_path, SITES, mtls=mtls, uploads_cap=UPLOADS_CAP, idle_s=0.5)
    assert figures.closed == 1
    assert len(figures.tally.upload_s) == figures.tally.calls["UploadDelta"] == SITES
    assert not figures.tally.repeats
    assert max(figures.growth.values()) < SITES * LOOSE_BYTES, figures.lines()
    assert figures.database > SITES * figures.update_bytes


def crowd(count: int, growth: float) -> sites.Measured:
    """A crowd whose aggregator grew so many bytes by the time all waited, and stayed there."""
    before = Memory(80_000_000, 0, 0, 80_000_000)
    grown = int(80_000_000 + growth)
    after = Memory(grown, 0, 0, grown)
    return sites.Measured(
        sites=count,
        mtls=False,
        update_bytes=344_064,
        uploads_cap=16,
        certificates_s=0.0,
        joined_s=1.0,
        waiting_s=1.0,
        round_s=1.0,
        round_processor_s=1.0,
        closed=1,
        at_start=before,
        waiting=after,
        in_round=after,
        afterwards=after,
        database=0,
        tally=Tally(upload_s=[1.0]),
    )


@pytest.mark.parametrize(("bytes_each", "moments_missed"), [(99_000, 0), (101_000, 3), (188_000, 3)])
def test_what_every_further_connection_costs_is_judged_without_an_allowance(
    bytes_each: int, moments_missed: int
) -> None:
    once = 15e6
    figures = sites.Figures(first=crowd(80, once + 80 * bytes_each), whole=crowd(1000, once + 1000 * bytes_each))
    assert len(figures.problems()) == moments_missed


def test_a_crowd_too_small_to_be_judged_says_so() -> None:
    figures = sites.Figures(first=None, whole=crowd(60, 15e6 + 60 * 50_000))
    assert figures.problems() == []
    assert "not judged below 500 sites" in figures.lines()[-1]


def test_memory_stays_where_it_is_over_forty_rounds(tmp_path: Path) -> None:
    figures = endurance.run(tmp_path, rounds=40)
    assert figures.problems() == [], figures.lines()
    assert figures.tally.calls["UploadDelta"] == 40 * 8


def test_two_replicas_racing_to_close_rounds_agree_on_each(tmp_path: Path, postgres: PostgresServer) -> None:
    with postgres.database() as url:
        figures = races.run(url, tmp_path, rounds=20)
    assert figures.problems() == [], figures.lines()
