"""The short forms of what `sites`, `endurance` and `races` show at full size."""

from pathlib import Path

import pytest

from tests.chaos import endurance, races, sites
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.integration

SITES, UPLOADS_CAP = 100, 8
LOOSE_BYTES = 400_000
"""A connection's share among so few: what is made once, some 12 MB, is most of it. An update kept by mistake, or all of them in
memory for the close, would take it to a megabyte and more."""


@pytest.mark.parametrize("mtls", [False, True])
def test_a_round_of_a_hundred_sites_closes_with_few_updates_in_memory(tmp_path: Path, mtls: bool) -> None:
    figures = sites.run(tmp_path, SITES, mtls=mtls, uploads_cap=UPLOADS_CAP, idle_s=0.5)
    assert figures.closed == 1
    assert len(figures.tally.upload_s) == figures.tally.calls["UploadDelta"] == SITES
    assert not figures.tally.repeats
    assert figures.worst_bytes < LOOSE_BYTES, figures.lines()
    assert figures.database > SITES * figures.update_bytes


def test_memory_stays_where_it_is_over_forty_rounds(tmp_path: Path) -> None:
    figures = endurance.run(tmp_path, rounds=40, every=10)
    assert figures.problems() == [], figures.lines()
    assert figures.tally.calls["UploadDelta"] == 40 * 8


def test_two_replicas_racing_to_close_rounds_agree_on_each(tmp_path: Path, postgres: PostgresServer) -> None:
    with postgres.database() as url:
        figures = races.run(url, tmp_path, rounds=20)
    assert figures.problems() == [], figures.lines()
