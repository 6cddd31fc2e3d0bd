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

from tests.chaos import __main__ as commands
from tests.chaos import (
    batch,
    checks,
    doors,
    events,
    federation_run,
    materials,
    midepoch,
    points,
    processes,
    scenario,
    summary,
)
from tests.chaos.batch import Bench
from tests.chaos.checks import Findings, Reference
from tests.chaos.federation_run import Ended, Outcome
from tests.chaos.figures import Shown
from tests.chaos.points import STEP, Fault, Points
from tests.chaos.scenario import AGGREGATOR, SETTINGS, Passed, Scenario, Trouble
from tests.integration.federation import SITES

pytestmark = pytest.mark.integration

AGENT_POINTS = {
    "FetchAdapter:sent": 6,
    STEP: 20,
    "sync training/checkpoint-N:after": 15,
    **{f"sync {n}:after": 5 for n in range(50)},
}
PASSED = {
    setting: Passed(
        {AGGREGATOR: {"stage:committed": 15, "heard:before": 40}, **dict.fromkeys(SITES, AGENT_POINTS)},
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
        assert kind in last.happened
        assert last.is_hard


async def test_an_agent_killed_in_mid_epoch_goes_on_from_its_checkpoint_to_the_same_bytes(made: Bench) -> None:
    figures = await midepoch.many(made, range(2), jobs=2)
    assert figures.problems() == [], figures.lines()
    assert all(run.resumed for run in figures.runs)


def test_every_durable_step_is_among_the_points_that_are_drawn_from(made: Bench) -> None:
    files = ("global.safetensors", "rounds/.N/delta.bin", "rounds/.N/local.safetensors", "training/checkpoint-N")
    agent = {f"{verb} {name}" for name in files for verb in ("sync", "rename")}
    agent |= {
        "rename rounds/N",
        "sync rounds",
        "sync rounds/.N",
        "sync training",
        "sync .",
        "remove training/checkpoint-N",
    }
    for setting, outcome in made.undisturbed.items():
        residual = {f"{verb} rounds/.N/residual.safetensors" for verb in ("sync", "rename")}
        accept = {"announce", "stage", "accept_rest"} if setting.chunk_bytes else {"accept_whole"}
        aggregator = {"begin_closing", "write_result", *accept}
        wanted = {site: agent | (residual if setting.codec == "bf16" else set()) for site in SITES}
        for site, points_of in wanted.items():
            passed = outcome.passed.points[site]
            assert {f"{name}:{when}" for name in points_of for when in ("before", "after")} <= set(passed), site
            assert passed[STEP] == materials.ROUNDS * {"siemens": 12, "philips": 6, "ge": 4}[site]
        passed = outcome.passed.points[AGGREGATOR]
        assert {f"{name}:{when}" for name in aggregator for when in ("before", "uncommitted", "committed")} <= set(
            passed
        )


async def test_a_fault_that_was_drawn_for_a_replica_s_last_commit_still_ends_in_one_version(made: Bench) -> None:
    last = Fault(AGGREGATOR, "write_result:committed", 5)
    outcome = await made.run(Scenario(seed=1 << 20, setting=SETTINGS[-1], faults=(last,), pauses=(0.1,)))
    assert not outcome.problems
    assert [replace(fault, disk="") for fault in outcome.fired if isinstance(fault, Fault)] == [last]
    assert [one.code for one in outcome.ended] == [-signal.SIGKILL]


async def test_what_a_run_must_not_leave_behind_is_found(made: Bench, tmp_path: Path) -> None:
    reference = made.reference(SETTINGS[0])
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

    log = folder / "ge.jsonl"
    (accepted,) = [
        line for line in log.read_text().splitlines() if '"update_accepted"' in line and '"round": 2,' in line
    ]
    (uploaded,) = [line for line in log.read_text().splitlines() if '"UploadDelta"' in line and '"round": 2,' in line]
    log.write_text("\n".join([accepted, '{"torn', uploaded]) + "\n")
    again = checks.find(str(store), folder)
    assert again.forgotten == 1
    assert "round 2 forgot the accepted update of ge, and took it again" in again.problems


def test_an_upload_behind_a_receipt_is_an_update_that_was_forgotten() -> None:
    def upload(number: int, code: str) -> events.Event:
        return {"event": "rpc_finished", "rpc": "UploadDelta", "round": number, "code": code}

    receipt = {"event": "update_accepted", "round": 1, "digest": "aa"}
    assert events.sent_again([upload(1, "UNAVAILABLE"), upload(1, "OK"), receipt, receipt, upload(2, "OK")]) == set()
    assert events.sent_again([upload(1, "OK"), upload(1, "UNAVAILABLE")]) == {1}
    assert events.sent_again([receipt, upload(2, "OK"), upload(1, "OK")]) == {1}


def test_an_update_taken_for_new_between_two_acceptances_was_forgotten_whichever_replica_it_was() -> None:
    def told(what: str, at: int, number: int = 1) -> events.Event:
        return {
            "event": f"update_{what}",
            "site": "ge",
            "round": number,
            "digest": "aa",
            "timestamp": f"2026-01-01T00:00:{at:02}Z",
        }

    first, second = [told("announced", 1), told("accepted", 2)], [told("announced", 3), told("accepted", 4)]
    assert events.accepted_again([first, second]) == events.accepted_again([second, first]) == {("ge", 1)}
    assert events.accepted_again([[told("announced", 1), *second]]) == set()
    assert events.accepted_again([first, [told("accepted", 4)]]) == set()
    assert events.accepted_again([first, [told("announced", 3, 2), told("accepted", 4, 2)]]) == set()


def test_an_end_that_no_fault_says_why_is_a_problem() -> None:
    kill, fill = Fault("ge", STEP, 1), Fault("ge", STEP, 2, "fill")
    killed = Ended("ge", "ge", -signal.SIGKILL, "", at=20.0)
    gave_up = Ended("ge", "ge", 1, "OSError: [Errno 28] No space left on device", at=20.0)
    assert federation_run.unexplained([killed, gave_up], [(kill, 10.0), (fill, 10.0)]) == []
    unsaid = replace(gave_up, words="RuntimeError: the tensors are gone")
    assert federation_run.unexplained([unsaid], [(kill, 10.0), (fill, 10.0)]) == [unsaid]
    assert federation_run.unexplained([gave_up], [(kill, 10.0), (fill, 30.0)]) == [gave_up]
    assert federation_run.unexplained([gave_up], [(replace(fill, role="siemens"), 10.0)]) == [gave_up]
    assert federation_run.unexplained([killed, killed], [(kill, 10.0), (fill, 10.0)]) == [killed]
    stopped = replace(killed, code=-signal.SIGSEGV)
    assert federation_run.unexplained([stopped], [(kill, 10.0), (fill, 10.0)]) == [stopped]


def test_a_site_whose_local_adapter_differs_is_named() -> None:
    reference = Reference("aa", {"ge": "bb", "siemens": "cc"})
    assert checks.differences(Findings(digest="aa", local={"ge": "bb", "siemens": "cc"}), reference) == []
    assert checks.differences(Findings(digest="aa", local={"ge": "bb"}), reference) == [
        "the local adapter of siemens has digest , undisturbed cc"
    ]


def outcome(*problems: str, fired: tuple[Fault | Trouble, ...] = (), resumed: int = 0) -> Outcome:
    found = Findings(resumed={"ge": [(1, 2)] * resumed})
    drawn = Scenario(seed=1, setting=SETTINGS[0])
    return Outcome(scenario=drawn, logs=Path("logs"), fired=fired, findings=found, problems=list(problems))


KILL, FILL = Fault("ge", STEP, 1), Fault("ge", STEP, 1, "fill")
DELAY, RESET = (Trouble("ge", kind, "up", 1, 0.1) for kind in ("delay", "reset"))


def test_a_batch_is_good_if_every_run_kept_its_promises_and_some_were_in_danger() -> None:
    assert summary.is_good([outcome(fired=(KILL,))])
    assert not summary.is_good([outcome(fired=(KILL,)), outcome("lost")])
    assert not summary.is_good([outcome()])
    many = [outcome(fired=(KILL,))] * summary.ENOUGH_TO_RESUME
    assert not summary.is_good(many)
    assert "no training went on from a checkpoint" in summary.lines(many)[-1]
    assert summary.is_good([*many, outcome(fired=(KILL,), resumed=1)])


def test_a_full_disk_or_a_slow_line_alone_does_not_make_a_run() -> None:
    assert [one.is_idle for one in (outcome(fired=(FILL,)), outcome(fired=(DELAY,)), outcome())] == [True] * 3
    assert [one.is_idle for one in (outcome(fired=(FILL, KILL)), outcome(fired=(RESET,)), outcome("lost"))] == [
        False
    ] * 3


def test_one_figure_that_breaks_off_does_not_keep_the_others_from_being_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def breaks_off() -> Shown:
        raise RuntimeError("the port is taken")

    assert not commands._figure("restarts", breaks_off)
    assert "restarts\nFAILED: RuntimeError: the port is taken" in capsys.readouterr().out
    assert commands._figure("races", lambda: Shown(("one manifest",), True))


def test_kills_in_mid_epoch_are_drawn_inside_epochs_and_say_what_they_cost() -> None:
    plans = [midepoch.draw(seed, PASSED) for seed in range(200)]
    assert plans == [midepoch.draw(seed, PASSED) for seed in range(200)]
    assert {len(plan.resumes) for plan in plans} == {1, 2, 3}
    assert {plan.site for plan in plans} == set(SITES)
    # 4 steps a round, 2 an epoch: only after the third one is a checkpoint behind it and the epoch not over
    assert {step for plan in plans for _, step in plan.resumes} == {2}
    plan = next(plan for plan in plans if len(plan.resumes) == 2)
    (first, _), (second, _) = plan.resumes
    assert [fault.nth for fault in plan.scenario.faults] == [4 * (first - 1) + 3, 4 * (second - 1) + 3 + 1]


def test_a_seed_always_draws_the_same_scenario_and_other_seeds_others() -> None:
    drawn = [scenario.draw(seed, PASSED, disks=True) for seed in range(50)]
    assert drawn == [scenario.draw(seed, PASSED, disks=True) for seed in range(50)]
    assert len({(one.faults, one.troubles) for one in drawn}) > 40


def test_every_kind_of_fault_and_every_setting_is_drawn() -> None:
    drawn = [scenario.draw(seed, PASSED, disks=True) for seed in range(300)]
    assert {kind for one in drawn for kind in one.kinds} == set(scenario.LIKELY)
    assert {one.setting for one in drawn} == set(SETTINGS)
    assert all(set(one.kinds) - scenario.SOFT for one in drawn)


def test_a_quarter_of_an_agent_s_kills_strike_its_training() -> None:
    drawn = [scenario.draw(seed, PASSED, disks=True) for seed in range(1000)]
    kills = [fault for one in drawn for fault in one.faults if scenario.kind_of(fault) == "kill agent"]
    assert sum(map(scenario.strikes_training, kills)) > len(kills) / 4
    assert sum(fault.point == STEP for fault in kills) > len(kills) / 10


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
