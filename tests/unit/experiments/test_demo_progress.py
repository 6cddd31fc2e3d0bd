"""What the agents' logs say is told once, and a stage is never guessed."""

import json
from pathlib import Path

from experiments.demo.progress import FederationProgress, SiteProgress, Tail, mean_of


def rpc(name: str, code: str = "OK") -> dict[str, object]:
    return {"event": "rpc_finished", "rpc": name, "code": code}


ROUND_1 = [
    rpc("Join"),
    rpc("FetchAdapter"),
    {"event": "round_trained", "round": 1, "train_loss": 0.5},
    {"event": "update_accepted", "round": 1},
]
END = [
    rpc("FetchAdapter"),
    {"event": "version_evaluated", "version": 1, "auc": 0.75},
    {"event": "federation_finished"},
]


def test_stages_follow_the_log() -> None:
    site = SiteProgress("ge", rounds=1)
    stages = []
    for now, event in enumerate([*ROUND_1, *END]):
        site.hear(event, float(now))
        stages.append(site.stage)
    assert stages == [
        "waiting",
        "training round 1",
        "sending round 1",
        "waiting in round 1",
        "waiting in round 1",
        "comparing arms",
        "finished",
    ]
    assert (site.sent, site.auc, site.loss) == (1, {1: 0.75}, 0.5)


def test_polling_without_an_answer_is_no_step_forward() -> None:
    site = SiteProgress("ge", rounds=2)
    assert site.hear(rpc("Join"), 1.0)
    assert not site.hear(rpc("AwaitRound"), 9.0)
    assert not site.hear(rpc("UploadDelta", "UNAVAILABLE"), 9.0)
    assert site.since == 1.0


def test_lines_come_once_and_only_when_every_site_is_there(tmp_path: Path) -> None:
    logs = {name: tmp_path / f"{name}.jsonl" for name in ("ge", "canon")}
    progress = FederationProgress.of(logs, 1, 0.0)
    assert progress.poll(1.0) == []
    logs["ge"].write_text("".join(json.dumps(event) + "\n" for event in [*ROUND_1, *END]))
    assert progress.poll(2.0) == ["ge is finished"]
    logs["canon"].write_text("".join(json.dumps(event) + "\n" for event in ROUND_1))
    assert progress.poll(3.0) == [
        "every site has joined",
        "round 1 of 1: all 2 updates accepted",
    ]
    with logs["canon"].open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in END)
    assert progress.poll(4.0) == ["version 1: validation AUC ge 0.750, canon 0.750", "canon is finished"]
    assert progress.poll(5.0) == []
    assert progress.last_move() == 4.0
    assert progress.brief() == "finished: ge, canon"


def test_busy_sites_are_those_that_others_wait_for(tmp_path: Path) -> None:
    progress = FederationProgress.of({"ge": tmp_path / "a", "canon": tmp_path / "b"}, 1, 0.0)
    for event in ROUND_1:
        progress.sites["ge"].hear(event, 1.0)
    assert progress.busy() == ["canon"]


def test_a_line_cut_short_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = Tail(path)
    assert tail.read() == []
    path.write_text('{"event": "a"}\n{"eve')
    assert tail.read() == [{"event": "a"}]
    with path.open("a") as file:
        file.write('nt": "b"}\n')
    assert tail.read() == [{"event": "b"}]
    assert tail.read() == []


def test_a_mean_never_hides_a_missing_site() -> None:
    assert mean_of([0.5, 0.7]) == 0.6
    assert mean_of([0.5, None]) is None
    assert mean_of([]) is None
