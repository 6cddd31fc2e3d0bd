"""The state folder: whole rounds or none, one agent at a time, and nothing of another federation."""

import shutil
import stat
from dataclasses import replace

import numpy as np
import pytest

from shared.contract import Contract, RoundPolicy
from shared.errors import InputError
from shared.recipe import Recipe
from site_agent import egress, state
from site_agent.egress import Update, UpdateFacts
from site_agent.state import State
from tests.support import adapters

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
    return egress.seal(RECEIVED, trained, Recipe(), facts, 3)


def local_of(value: float) -> dict[str, np.ndarray]:
    return {"local.encoder.blocks.0.attn.q.lora_A.weight": np.full((2, 6), value, np.float32)}


@pytest.fixture
def held(tmp_path):
    made = State(tmp_path / "state")
    yield made
    made.close()


def again(held: State) -> State:
    """The folder as the next start of the agent finds it."""
    held.close()
    return State(held.folder)


# --- rounds ---------------------------------------------------------------------------------------------------------


def test_a_committed_round_is_there_after_a_restart_with_the_same_bytes(held):
    update = update_of(1)
    held.commit(update, local_of(1.0))
    found = again(held).finished_round(1)
    assert found is not None
    assert (found.number, found.accepted) == (1, False)
    assert found.update == update
    assert found.update.digest == update.digest


def test_a_receipt_is_remembered(held):
    held.commit(update_of(1), local_of(1.0))
    held.mark_accepted(update_of(1))
    found = again(held).finished_round(1)
    assert found is not None
    assert found.accepted


def test_a_round_that_was_not_finished_is_not_there(held):
    assert held.finished_round(1) is None
    assert held.local_adapter(5) is None


def test_a_crash_while_a_round_is_written_leaves_no_trace_of_it(held):
    held.commit(update_of(1), local_of(1.0))
    half = held.folder / "rounds/.0002"
    shutil.copytree(held.folder / "rounds/0001", half)
    (half / "round.json").unlink()
    restarted = again(held)
    assert not half.exists()
    assert restarted.finished_round(2) is None
    np.testing.assert_equal(restarted.local_adapter(9), local_of(1.0))


def test_the_local_adapter_is_that_of_the_last_round_before_the_one_asked_for(held):
    for number in (1, 2, 12):
        held.commit(update_of(number), local_of(float(number)))
    for before, expected in ((2, 1.0), (3, 2.0), (12, 2.0), (13, 12.0)):
        np.testing.assert_equal(held.local_adapter(before), local_of(expected))
    assert held.local_adapter(1) is None


def test_a_round_trained_again_from_another_version_replaces_the_old_one(held):
    held.commit(update_of(2), local_of(1.0))
    held.mark_accepted(update_of(2))
    held.commit(update_of(2, seed=1), local_of(7.0))
    found = held.finished_round(2)
    assert found is not None
    assert (found.update, found.accepted) == (update_of(2, seed=1), False)
    np.testing.assert_equal(held.local_adapter(3), local_of(7.0))


def test_a_damaged_outbox_is_not_sent(held):
    held.commit(update_of(1), local_of(1.0))
    outbox = held.folder / "rounds/0001/delta.bin"
    outbox.write_bytes(outbox.read_bytes()[:-1] + b"\x00")
    with pytest.raises(InputError, match=r"rounds/0001/delta\.bin is damaged .* remove the folder"):
        held.finished_round(1)


def test_a_damaged_local_adapter_is_named_with_what_to_do(held):
    held.commit(update_of(1), local_of(1.0))
    (held.folder / "rounds/0001/local.safetensors").write_bytes(b"\x08")
    with pytest.raises(
        InputError, match=r"local\.safetensors cannot be read .* remove its folder to go back one round"
    ):
        held.local_adapter(2)


def test_private_files_can_be_read_by_their_owner_only(held):
    held.commit(update_of(1), local_of(1.0))
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (held.folder / "rounds/0001").iterdir()}
    assert modes["local.safetensors"] == modes["delta.bin"] == 0o600
    assert stat.S_IMODE(held.folder.stat().st_mode) == 0o700


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
    with pytest.raises(InputError, match=r"belongs to contract .* use another --state folder"):
        held.bind(replace(CONTRACT, **change))
    assert state.read_contract(held.folder) == CONTRACT


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
