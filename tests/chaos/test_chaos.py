"""The shorter set of `make chaos`: one federation for each kind of fault, and that the harness itself does what it says."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos import batch, checks, doors, materials, points, processes, scenario
from tests.chaos.batch import Bench
from tests.chaos.points import Fault, Points
from tests.chaos.scenario import AGGREGATOR, SETTINGS, Passed, Scenario
from tests.integration.federation import SITES

pytestmark = pytest.mark.integration

PASSED = {
    setting: Passed(
        {role: {"stage:committed": 15, "heard:before": 40} for role in (AGGREGATOR, *SITES)},
        {site: {"up": 40_000, "down": 30_000} for site in SITES},
    )
    for setting in SETTINGS
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with batch.bench(tmp_path_factory.mktemp("chaos")) as made:
        yield made


async def test_whatever_happens_to_it_a_federation_ends_with_the_bytes_of_the_undisturbed_one(made: Bench) -> None:
    outcomes = await batch.of_each_kind(made, jobs=2)
    for kind, runs in outcomes.items():
        assert not [line for run in runs if run.problems for line in run.lines()], kind
        last = runs[-1]
        assert (last.finished, last.equal_global, last.equal_local) == (True, True, True)
        assert (last.findings.lost, last.findings.twice) == (0, 0)
        assert last.fired


async def test_a_fault_that_was_drawn_for_a_replica_s_last_commit_still_ends_in_one_version(made: Bench) -> None:
    last = Fault(AGGREGATOR, "write_result:committed", 5)
    outcome = await made.run(Scenario(seed=1 << 20, setting=SETTINGS[-1], faults=(last,), pauses=(0.1,)))
    assert not outcome.problems
    assert [replace(fault, disk="") for fault in outcome.fired if isinstance(fault, Fault)] == [last]
    assert [one.code for one in outcome.ended] == [-signal.SIGKILL]


async def test_what_a_run_must_not_leave_behind_is_found(made: Bench, tmp_path: Path) -> None:
    reference = made.reference
    assert reference is not None
    assert (await made.run(Scenario(seed=1, setting=SETTINGS[0]), keep=tmp_path)).problems == []
    folder = tmp_path / "seed-1"
    store = materials.disk(folder, AGGREGATOR) / "fed.db"
    whole = checks.find(str(store), folder)
    assert (whole.accepted, whole.lost, whole.twice, whole.problems) == (15, 0, 0, [])

    with closing(sqlite3.connect(store)) as rows, rows:
        rows.execute("UPDATE rounds SET manifest = json_remove(manifest, '$.entries[0]') WHERE number = 2")
        rows.execute(
            "UPDATE rounds SET manifest = json_insert(manifest, '$.entries[#]', manifest->'$.entries[1]') WHERE number = 3"
        )
    local = materials.state(folder, "ge") / "rounds/0005/local.safetensors"
    local.write_bytes(local.read_bytes()[:-1] + b"?")
    found = checks.find(str(store), folder)
    assert (found.accepted, found.lost, found.twice) == (15, 2, 1)
    for sign in (
        "round 2 lost the update of ge",
        "round 3 counts a site twice",
        "verify, round 2",
        "the local adapter of ge",
    ):
        assert any(problem.startswith(sign) for problem in found.problems), (sign, found.problems)
    assert checks.differences(replace(found, digest="0" * 64), reference)[0].startswith(
        "the last version has digest 000000000000"
    )
    assert [site for site in SITES if found.local.get(site) != reference.local[site]] == ["ge"]


def test_a_seed_always_draws_the_same_scenario_and_other_seeds_others() -> None:
    drawn = [scenario.draw(seed, PASSED, disks=True) for seed in range(50)]
    assert drawn == [scenario.draw(seed, PASSED, disks=True) for seed in range(50)]
    assert len({(one.faults, one.troubles) for one in drawn}) > 40


def test_every_kind_of_fault_and_every_setting_is_drawn() -> None:
    drawn = [scenario.draw(seed, PASSED, disks=True) for seed in range(300)]
    assert {kind for one in drawn for kind in one.kinds} == set(scenario.LIKELY)
    assert {one.setting for one in drawn} == set(SETTINGS)
    assert all(one.faults or one.troubles for one in drawn)


def test_without_small_disks_none_is_ever_full() -> None:
    drawn = [scenario.draw(seed, PASSED, disks=False) for seed in range(300)]
    assert {fault.action for one in drawn for fault in one.faults} == {"kill"}


def test_points_are_counted_over_all_processes_of_a_role(tmp_path: Path) -> None:
    first, second = Points(tmp_path, AGGREGATOR, ()), Points(tmp_path, AGGREGATOR, ())
    for one in (first, second, first):
        one.passed("sync rounds/N:before")
    Points(tmp_path, "ge", ()).passed("optimiser step")
    assert points.counted(tmp_path) == {AGGREGATOR: {"sync rounds/N:before": 3}, "ge": {"optimiser step": 1}}


def test_a_process_is_killed_when_its_role_passes_the_point_for_the_nth_time_and_only_then(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path\n"
        "from tests.chaos.points import Fault, Points\n"
        f"points = Points(Path({str(tmp_path)!r}), 'ge', [Fault('ge', 'optimiser step', 2)])\n"
        "points.passed('optimiser step')\n"
    )
    ended = [subprocess.run([sys.executable, "-c", program], cwd=processes.ROOT).returncode for _ in range(3)]
    assert ended == [0, -signal.SIGKILL, 0]
    assert points.fired(tmp_path) == [Fault("ge", "optimiser step", 2)]


async def test_who_gives_up_waiting_for_a_process_leaves_its_end_to_the_others() -> None:
    child = processes.Child(pid=1)
    impatient = asyncio.create_task(child.end())
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    child.ended.set_result(-signal.SIGKILL)
    assert await child.end() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("rounds/.0003/.delta.bin.412-99887766.tmp", "rounds/.N/delta.bin"),
        ("rounds/0012", "rounds/N"),
        (".agent.json.7-1.tmp", "agent.json"),
        (".", "."),
        ("../agent.jsonl", None),
    ],
)
def test_a_file_is_named_by_what_it_is_for(tmp_path: Path, path: str, role: str | None) -> None:
    assert doors.file_role(tmp_path / path, tmp_path) == role
