"""The state folder: whole rounds or none, one agent at a time, nothing of another federation, and damage that is survived."""

import json
import shutil
import stat
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from shared.adapter import Adapter
from shared.canonical import canonical_json, sha256_hex
from shared.contract import Contract, RoundPolicy
from shared.errors import InputError
from shared.recipe import Recipe
from site_agent import egress, round_files, state
from site_agent.consent import ConsentWithheld
from site_agent.damage import PREFIX
from site_agent.egress import Update, UpdateFacts
from site_agent.lineage import Start
from site_agent.state import State
from tests.support import adapters, disk_order

RECEIVED = adapters.adapter()
CONTRACT = Contract(
    federation="hearts",
    adapter_digest=RECEIVED.digest,
    manifest=RECEIVED.manifest,
    recipe=Recipe(),
    policy=RoundPolicy(),
)


def update_of(round_number: int, seed: int = 0) -> Update:
    rng = np.random.default_rng([round_number, seed])
    trained = {n: (v + rng.standard_normal(v.shape)).astype(np.float32) for n, v in RECEIVED.tensors.items()}
    facts = UpdateFacts(
        round=round_number, base_version=round_number - 1, training_patients=9, metrics={"train_loss": 0.5}
    )
    return egress.seal(RECEIVED, trained, Recipe(), facts, 3)[0]


def local_of(value: float) -> dict[str, np.ndarray]:
    return {"local.encoder.blocks.0.attn.q.lora_A.weight": np.full((2, 6), value, np.float32)}


def version(number: int, parent: str = "", seed: int = 0) -> Adapter:
    return replace(adapters.adapter(seed), version=number, parent_digest=parent)


@pytest.fixture
def told() -> list[str]:
    """What a person was told."""
    return []


@pytest.fixture
def held(tmp_path, told):
    made = State(tmp_path / "state", told.append)
    yield made
    made.close()


def again(held: State, told: list[str] | None = None) -> State:
    """The folder as the next start of the agent finds it."""
    held.close()
    return State(held.folder, (told if told is not None else []).append)


def start_of(held: State, before_round: int, received: Adapter) -> Start:
    return held.rounds.start(before_round, received)


def put(held: State, number: int, accepted: bool = True, residual: float | None = None, **start: int) -> None:
    """Store a round that started from version number - 1."""
    owed = None if residual is None else {"t": np.full(2, residual)}
    began = Start(**{"local": number - 1, "residual": number - 1, "received": version(number - 1).digest, **start})
    held.rounds.commit(update_of(number), local_of(float(number)), began, owed)
    if accepted:
        held.rounds.mark(number, "accepted")


def flip(path: Path) -> None:
    """Change one byte in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


# --- rounds ---------------------------------------------------------------------------------------------------------


def test_a_committed_round_is_there_after_a_restart_with_the_same_bytes(held):
    update, began = update_of(1), Start(local=0, residual=0, received="ab")
    held.rounds.commit(update, local_of(1.0), began, {"t": np.array([0.25])})
    rounds = again(held).rounds
    found = rounds.find(1)
    assert found is not None
    assert (found.number, found.accepted, found.start) == (1, False, began)
    assert found.update == update
    assert found.update.digest == update.digest
    np.testing.assert_equal(rounds.local(1), local_of(1.0))
    np.testing.assert_equal(rounds.residual(1), {"t": np.array([0.25])})


def test_a_round_without_a_residual_has_no_file_for_it(held):
    put(held, 1)
    assert held.rounds.residual(1) == {}
    assert sorted(p.name for p in (held.folder / "rounds/0001").iterdir()) == [
        "delta.bin",
        "local.safetensors",
        "round.json",
    ]


@pytest.mark.parametrize("fate", ["accepted", "refused"])
def test_what_became_of_an_update_is_remembered(held, fate):
    held.rounds.commit(update_of(1), local_of(1.0))
    assert [found.number for found in held.rounds.unsettled(2)] == [1]
    held.rounds.mark(1, fate)
    rounds = again(held).rounds
    found = rounds.find(1)
    assert found is not None
    assert found.fate == fate
    assert rounds.unsettled(2) == []


def test_a_round_that_was_not_finished_is_not_there(held):
    assert held.rounds.find(1) is None
    assert held.rounds.local(0) is None
    assert start_of(held, 5, version(4)) == Start(received=version(4).digest)


def test_a_crash_while_a_round_is_written_leaves_no_trace_of_it(held):
    put(held, 1)
    half = held.folder / "rounds/.0002"
    shutil.copytree(held.folder / "rounds/0001", half)
    (half / "round.json").unlink()
    stray = held.folder / "rounds/0001/.round.json.123-456.tmp"
    stray.write_bytes(b"half")
    rounds = again(held).rounds
    assert not half.exists()
    assert not stray.exists()
    assert rounds.find(2) is None
    assert start_of(held, 2, version(1)).local == 1


def test_a_round_trained_again_from_another_version_replaces_the_old_one(held):
    held.rounds.commit(update_of(2), local_of(1.0))
    held.rounds.mark(2, "accepted")
    held.rounds.commit(update_of(2, seed=1), local_of(7.0))
    found = held.rounds.find(2)
    assert found is not None
    assert (found.update, found.accepted) == (update_of(2, seed=1), False)
    np.testing.assert_equal(held.rounds.local(2), local_of(7.0))
    assert [p.name for p in (held.folder / "rounds").iterdir()] == ["0002"]


def test_a_version_rolled_back_to_has_the_local_adapter_and_the_residual_it_had(held):
    for number in (1, 2, 3):
        put(held, number, residual=number)
    assert start_of(held, 4, version(3)).local == 3
    assert start_of(held, 5, version(1)) == Start(local=1, residual=1, received=version(1).digest)


def test_a_round_gets_its_number_when_all_of_it_is_on_the_disk(held, monkeypatch):
    put(held, 1, residual=1.0)
    steps = disk_order.record(monkeypatch)
    put(held, 1, residual=2.0, accepted=False)
    rounds, building = held.folder / "rounds", held.folder / "rounds/.0001"
    named = steps.index(("rename", rounds / "0001"))
    for name in ("local.safetensors", "delta.bin", "residual.safetensors", "round.json"):
        disk_order.assert_written_durably(steps[:named], building / name)
    assert steps[named + 1] == ("fsync", rounds)
    assert {call for call, _ in steps[named + 2 :]} == {"unlink"}  # what it replaced goes last


def test_what_became_of_an_update_is_on_the_disk_before_it_counts_as_noted(held, monkeypatch):
    put(held, 1, accepted=False)
    steps = disk_order.record(monkeypatch)
    held.rounds.mark(1, "accepted")
    disk_order.assert_written_durably(steps, held.folder / "rounds/0001/round.json")


@pytest.mark.parametrize("name", ["1", "00001", "0001.bak", "0001-copy", "٠٠٠٢"])
def test_folders_of_other_names_are_no_rounds(held, told, name):
    put(held, 1)
    shutil.copytree(held.folder / "rounds/0001", held.folder / "rounds" / name)
    assert round_files.numbers(held.folder / "rounds") == [1]
    assert start_of(held, 2, version(1)).local == 1
    assert told == []


# --- who may read it ------------------------------------------------------------------------------------------------


def test_every_file_can_be_read_by_its_owner_only(held, told):
    held.bind(CONTRACT)
    put(held, 1, residual=1.0)
    held.store_global(RECEIVED)
    held.append_history({"version": 1})
    files = {path.relative_to(held.folder): path for path in held.folder.rglob("*") if path.is_file()}
    assert len(files) == 10
    assert {name: oct(stat.S_IMODE(path.stat().st_mode)) for name, path in files.items()} == dict.fromkeys(
        files, "0o600"
    )
    assert stat.S_IMODE(held.folder.stat().st_mode) == 0o700
    again(held, told)
    assert told == []


def test_a_folder_that_others_can_look_into_is_said_and_left_as_it_is(held, told):
    held.folder.chmod(0o750)
    with capture_logs() as events:
        again(held, told)
    assert [(event["event"], event["mode"]) for event in events] == [("state_folder_open_to_others", "0750")]
    assert len(told) == 1
    assert f"close it with `chmod -R go= {held.folder}`" in told[0]
    assert stat.S_IMODE(held.folder.stat().st_mode) == 0o750


# --- whose folder it is ---------------------------------------------------------------------------------------------


def test_a_folder_is_held_by_one_agent_and_keeps_its_id(held):
    name = held.agent_id
    with pytest.raises(InputError, match=r"another agent runs on state folder .* its own --state"):
        State(held.folder)
    assert again(held).agent_id == name
    assert len(name) == 32


def test_two_folders_are_two_agents(held, tmp_path):
    other = State(tmp_path / "other")
    assert other.agent_id != held.agent_id
    other.close()


@pytest.mark.parametrize(
    "change",
    [
        {"federation": "lungs"},
        {"adapter_digest": "00" * 32},
        {"recipe": Recipe(rank_local=4)},
        {"policy": RoundPolicy(rounds=9)},
        {"manifest": adapters.adapter(rank=3).manifest},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_folder_is_tied_to_one_contract(held, change):
    held.bind(CONTRACT)
    held.bind(CONTRACT)
    with pytest.raises(ConsentWithheld, match=r"the contract has changed\. .*: agreed .*, offered .*site-agent accept"):
        held.bind(replace(CONTRACT, **change))
    assert state.read_contract(held.folder) == CONTRACT


def test_going_back_and_forth_between_contracts_loses_nothing(held):
    """What belongs to a contract has a place of its own every time."""
    other = replace(CONTRACT, federation="lungs")
    held.bind(CONTRACT)
    for number, (before, contract) in enumerate([(CONTRACT, other), (other, CONTRACT), (CONTRACT, other)]):
        (held.folder / "history.jsonl").write_text(f'{{"version":{number}}}\n')
        with pytest.raises(ConsentWithheld):
            held.bind(contract)
        assert state.accept(held.folder, "olga", decided=False) == [
            f"federation: agreed '{before.federation}', offered '{contract.federation}'"
        ]
        with pytest.raises(ConsentWithheld):
            held.bind(contract)
        state.accept(held.folder, "olga")
        held.bind(contract)
    kept = sorted(path.parent.name + ":" + path.read_text() for path in held.folder.glob("contract-*/history.jsonl"))
    assert len(kept) == 3
    assert {line.split(":", 1)[1] for line in kept} == {f'{{"version":{number}}}\n' for number in range(3)}


@pytest.mark.parametrize("killed", [False, True])
def test_rounds_without_a_contract_are_moved_aside_before_another_is_bound(held, told, monkeypatch, killed):
    """No old update or residual is offered under it. A kill half-way changes nothing."""
    held.bind(CONTRACT)
    put(held, 1, accepted=False, residual=1.0)
    (held.folder / "history.jsonl").write_text('{"version":1}\n')
    (held.folder / "contract.json").unlink()
    if killed:
        (held.folder / "contract-unknown").mkdir()
        (held.folder / "history.jsonl").rename(held.folder / "contract-unknown/history.jsonl")
    other = replace(CONTRACT, federation="lungs")
    held.bind(other)
    assert state.read_contract(held.folder) == other
    assert held.rounds.unsettled(2) == []
    assert start_of(held, 2, version(1)).residual == 0
    aside = held.folder / "contract-unknown"
    assert {path.name for path in aside.iterdir()} == {"rounds", "history.jsonl"}
    assert "contract.json is missing" in told[0]
    (held.folder / "contract.json").unlink()
    put(held, 1)
    held.bind(CONTRACT)
    assert (held.folder / "contract-unknown-2/rounds/0001").is_dir()


def test_a_local_adapter_to_begin_with_is_no_round_of_another_contract(held, told):
    (held.folder / "rounds/0000").mkdir(parents=True)
    held.bind(CONTRACT)
    assert (held.folder / "rounds/0000").is_dir()
    assert told == []


def test_who_is_told_to_use_another_folder_is_told_to_take_the_journals_along(held, told):
    along = "move privacy/ and egress.jsonl along"
    held.bind(CONTRACT)
    flip(held.folder / "contract.json")
    for paid in (False, True):
        if paid:
            (held.folder / "privacy").mkdir()
            (held.folder / "privacy/debits.jsonl").write_bytes(b"{}\n")
        with pytest.raises(InputError, match="else use another --state folder") as raised:
            state.read_contract(held.folder)
        assert (along in str(raised.value)) == paid
    held.folder.chmod(0o750)
    again(held, told)
    assert along in told[0]


def test_a_folder_that_never_joined_is_told_apart(tmp_path):
    with pytest.raises(InputError, match="holds no agent's state"):
        state.read_contract(tmp_path)


# --- adapters and history -------------------------------------------------------------------------------------------


def test_the_newest_global_adapter_and_version_0_are_kept(held):
    assert held.global_adapter() is None
    assert held.initial_adapter() is None
    held.store_global(RECEIVED)
    newer = RECEIVED.successor({name: value + 1 for name, value in RECEIVED.tensors.items()}, 1)
    held.store_global(newer)
    restarted = again(held)
    found = restarted.global_adapter()
    assert found is not None
    assert found.digest == newer.digest
    initial = restarted.initial_adapter()
    assert initial is not None
    assert initial.digest == RECEIVED.digest


def test_version_0_fetched_late_leaves_the_newest_adapter_alone(held):
    newer = RECEIVED.successor(RECEIVED.tensors, 5)
    held.store_global(newer)
    assert held.initial_adapter() is None
    held.store_initial(RECEIVED)
    found, initial = held.global_adapter(), held.initial_adapter()
    assert found is not None
    assert initial is not None
    assert (found.version, initial.version) == (5, 0)


def test_a_version_evaluated_again_replaces_its_line(held):
    assert held.history() == []
    for entry in ({"version": 1, "auc": 0.5}, {"version": 2, "auc": 0.6}, {"version": 2, "auc": 0.7}):
        held.append_history(entry)
    assert again(held).history() == [{"version": 1, "auc": 0.5}, {"version": 2, "auc": 0.7}]


# --- damage ---------------------------------------------------------------------------------------------------------


def change(path: Path, *keys: str, to: object, digest: bool = False) -> None:
    """Set one value of a JSON file and write it as it is written; `digest` makes its digest right again."""
    value = json.loads(path.read_bytes())
    at = value
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = to
    if digest:
        del value["sha256"]
        value["sha256"] = sha256_hex(canonical_json(value))
    path.write_bytes(canonical_json(value))


def damage_events(events) -> list[tuple[str, str]]:
    return [(e["path"], e["kept_as"]) for e in events if e["event"] == "damage_set_aside"]


@pytest.mark.parametrize("name", ["delta.bin", "local.safetensors", "residual.safetensors", "round.json"])
def test_an_unsent_round_that_is_damaged_is_set_aside_and_trained_again(held, told, name):
    put(held, 1, accepted=False, residual=1.0)
    flip(held.folder / "rounds/0001" / name)
    restarted = again(held, told)
    with capture_logs() as events:
        assert restarted.rounds.find(1) is None
        assert restarted.rounds.find(1) is None
    assert damage_events(events) == [(f"rounds/0001/{name}", "rounds/damaged-0001")]
    assert (held.folder / "rounds/damaged-0001" / name).exists()
    assert len(told) == 1
    assert f"rounds/0001/{name} is damaged" in told[0]
    assert "round 1 is trained again" in told[0]
    put(restarted, 1)
    assert restarted.rounds.find(1) is not None


@pytest.mark.parametrize(
    ("keys", "to"),
    [
        (("facts", "training_patients"), 90),
        (("facts", "base_version"), 9),
        (("facts", "metrics", "train_loss"), 0.25),
        (("start", "local"), 7),
        (("start", "residual"), 1),
        (("start", "received"), "cd"),
        (("fate",), "unsent"),
        (("files", "delta.bin"), "00" * 32),
        (("sha256",), "00" * 32),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else None,
)
def test_no_value_of_a_round_s_record_can_change_unseen(held, told, keys, to):
    put(held, 1)
    change(held.folder / "rounds/0001/round.json", *keys, to=to)
    assert held.rounds.find(1) is None
    assert told == [
        "rounds/0001/round.json is damaged (it is not a round's record: its digest differs from the one it was written "
        "with): round 1 is trained again if it is still open, else what was before it is taken; kept as rounds/damaged-0001"
    ]


@pytest.mark.parametrize(
    ("keys", "to", "reason"),
    [
        (("facts", "round"), True, "'round' is a bool, expected int"),
        (("facts", "training_patients"), "9", "'training_patients' is a str, expected int"),
        (("facts", "base_version"), 0.0, "'base_version' is a float, expected int"),
        (("facts", "codec"), None, "'codec' is a NoneType, expected str"),
        (("facts", "metrics"), [], "'metrics' is a list, expected dict"),
        (("facts", "metrics", "train_loss"), "0.5", "a metric is no number"),
        (("facts", "site"), "ge", "'site' does not belong there"),
        (("start", "local"), "x", "'local' is a str, expected int"),
        (("start",), [0, 0, ""], "'start' is a list, expected dict"),
        (("files", "delta.bin"), 7, "'delta.bin' is a int, expected str"),
        (("files", "../delta.bin"), "00", "'../delta.bin' does not belong there"),
        (("files",), {}, "'delta.bin' is missing"),
        (("layout",), [[1]], "a layout is a list of"),
        (("fate",), "eaten", "unknown fate 'eaten'"),
        (("facts", "round"), 3, "it is the record of round 3"),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else "",
)
def test_a_record_of_other_names_types_or_another_round_is_damaged_whatever_its_digest(held, told, keys, to, reason):
    put(held, 1)
    change(held.folder / "rounds/0001/round.json", *keys, to=to, digest=True)
    assert held.rounds.find(1) is None
    assert len(told) == 1
    assert reason in told[0]


def test_wherever_a_damaged_record_is_come_upon_the_agent_goes_on(held, told):
    record = held.folder / "rounds/0001/round.json"
    held.store_global(version(1))
    for number, use in enumerate(
        (
            lambda rounds: rounds.start(2, version(1)) == Start(received=version(1).digest),
            lambda rounds: rounds.unsettled(2) == [],
            lambda rounds: rounds.mark(1, "refused") is None,
        ),
        1,
    ):
        put(held, 1)
        change(record, "start", "local", to="x", digest=True)
        with pytest.raises(InputError, match="start the agent, which sets it aside"):
            state.read_local_adapter(held.folder)  # `predict` reads beside a running agent and changes nothing
        assert use(held.rounds)
        assert len(told) == number


def test_a_record_without_a_digest_is_set_aside_and_what_is_wrong_with_it_said(held, told):
    """So were records written before they had one."""
    put(held, 1)
    path = held.folder / "rounds/0001/round.json"
    value = json.loads(path.read_bytes())
    del value["sha256"]
    path.write_bytes(canonical_json(value))
    assert start_of(held, 2, version(1)).local == 0
    assert "rounds/0001/round.json is damaged (it is not a round's record: 'sha256' is missing)" in told[0]
    assert (held.folder / "rounds/damaged-0001/local.safetensors").exists()


@pytest.mark.parametrize("data", [b"", b"\xff", b"7", b"null", b"[" * 100_000, b'{"fate":' + b"9" * 5000 + b"}"])
def test_whatever_lies_in_a_record_s_place_is_never_more_than_damage(held, told, data):
    put(held, 1)
    (held.folder / "rounds/0001/round.json").write_bytes(data)
    assert held.rounds.find(1) is None
    assert len(told) == 1
    assert len(told[0]) < 500


def test_a_second_damaged_round_of_the_same_number_is_kept_too(held):
    for _ in range(2):
        put(held, 1)
        (held.folder / "rounds/0001/delta.bin").unlink()
        assert held.rounds.find(1) is None
    assert sorted(p.name for p in (held.folder / "rounds").iterdir()) == ["damaged-0001", "damaged-0001-2"]


def test_a_damaged_local_adapter_falls_back_to_the_round_before(held, told):
    for number in (1, 2, 3):
        put(held, number, residual=number)
    flip(held.folder / "rounds/0003/local.safetensors")
    with capture_logs() as events:
        first, second = start_of(held, 4, version(3)), start_of(held, 4, version(3))
    assert first == second == Start(local=2, residual=3, received=version(3).digest)
    kept = "rounds/0003/damaged-local.safetensors"
    assert damage_events(events) == [("rounds/0003/local.safetensors", kept)]
    assert len(told) == 1
    assert "the local adapter of round 2 is taken" in told[0]
    assert (held.folder / kept).exists()


def test_with_every_local_adapter_damaged_the_site_begins_with_its_first(held, told):
    for number in (1, 2):
        put(held, number)
        (held.folder / f"rounds/000{number}/local.safetensors").write_bytes(b"\x08")
    assert start_of(held, 3, version(2)).local == 0
    assert ["before the first round" in text for text in told] == [False, True]


def test_a_damaged_residual_is_not_made_up_for(held, told):
    put(held, 1, residual=1.0)
    flip(held.folder / "rounds/0001/residual.safetensors")
    assert start_of(held, 2, version(1)) == Start(local=1, residual=0, received=version(1).digest)
    assert "what the codec had kept back is not made up for" in told[0]


def test_a_round_whose_record_is_damaged_counts_as_never_finished(held):
    put(held, 1)
    put(held, 2)
    (held.folder / "rounds/0002/round.json").write_text("{}")
    assert start_of(held, 3, version(2)).local == 1
    assert (held.folder / "rounds/damaged-0002/local.safetensors").exists()
    held.rounds.mark(2, "accepted")  # nothing to note, and nothing breaks


@pytest.mark.parametrize("name", ["global.safetensors", "initial.safetensors"])
def test_a_damaged_global_adapter_is_set_aside_to_be_fetched_again(held, told, name):
    held.store_global(RECEIVED)
    (held.folder / name).write_bytes(b"nonsense")
    with capture_logs() as events:
        found = held.global_adapter() if name.startswith("global") else held.initial_adapter()
    assert found is None
    assert damage_events(events) == [(name, PREFIX + name)]
    assert "it is fetched again" in told[0]
    assert str(held.folder) not in told[0]


def test_a_version_0_other_than_the_contract_s_is_set_aside_to_be_fetched_again(held, told):
    """Only its digest tells: a changed weight is a weight too."""
    held.bind(CONTRACT)
    held.store_initial(RECEIVED)
    assert held.initial_adapter() is not None
    path = held.folder / "initial.safetensors"
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(bytes(data))
    assert held.initial_adapter() is None
    assert (
        "initial.safetensors is damaged (its digest differs from the one in the contract): it is fetched again"
        in told[0]
    )


def test_a_local_adapter_that_is_not_finite_is_set_aside_and_the_one_before_is_taken(held, told):
    put(held, 1)
    began = Start(local=1, residual=1, received=version(1).digest)
    held.rounds.commit(update_of(2), local_of(np.nan), began)
    held.rounds.mark(2, "accepted")
    assert start_of(held, 3, version(2)).local == 1
    assert "lora_A.weight is not finite" in told[0]


@pytest.mark.parametrize("text", ["{", "[1]\n", '{"auc":1}\n', "\xff"])
def test_a_damaged_history_is_set_aside_and_begins_anew(held, text):
    (held.folder / "history.jsonl").write_text(text)
    held.append_history({"version": 3})
    assert held.history() == [{"version": 3}]
    assert (held.folder / "damaged-history.jsonl").read_text() == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"agent_id": 7, "made_at": 0.0}',
        '{"agent_id": "x", "made_at": 0.0}',
        f'{{"agent_id": "{"a" * 32}", "made_at": "0"}}',
        f'{{"agent_id": "{"a" * 32}", "made_at": NaN}}',
        "{" * 100_000,
    ],
)
def test_a_damaged_identity_is_replaced_and_may_wait_for_the_aggregator(held, told, text):
    before = held.agent_id
    assert 0 < held.takeover_s <= state.TAKEOVER_S  # it is new
    (held.folder / "agent.json").write_text(text)
    restarted = again(held, told)
    assert restarted.agent_id != before
    assert 0 < restarted.takeover_s <= state.TAKEOVER_S
    assert "a new id" in told[0]
    last = again(restarted)
    assert last.agent_id == restarted.agent_id
    assert 0 < last.takeover_s <= state.TAKEOVER_S  # a restart while it waits does not forget why
    (held.folder / "agent.json").write_text(f'{{"agent_id": "{"a" * 32}", "made_at": {time.time() - 121}}}')
    assert again(last).takeover_s == 0


def test_a_damaged_contract_is_the_one_thing_that_stops_the_agent(held):
    held.bind(CONTRACT)
    flip(held.folder / "contract.json")
    with pytest.raises(InputError, match=r"contract\.json is damaged .* what this site agreed to.* remove the file"):
        held.bind(CONTRACT)


def test_a_local_adapter_is_read_beside_a_running_agent_as_of_the_newest_global_one(held):
    chain = [version(0)]
    for number in (1, 2, 3):
        put(held, number, received=chain[-1].digest)
        chain.append(chain[-1].successor(RECEIVED.tensors, number))
    for one, expected in ((chain[3], 3.0), (chain[2], 2.0), (chain[1], 1.0)):
        held.store_global(one)
        np.testing.assert_equal(state.read_local_adapter(held.folder), local_of(expected))
    held.store_global(chain[0])
    assert state.read_local_adapter(held.folder) is None
    held.store_global(chain[3])
    flip(held.folder / "rounds/0003/local.safetensors")
    with pytest.raises(InputError, match="start the agent, which sets it aside"):
        state.read_local_adapter(held.folder)
