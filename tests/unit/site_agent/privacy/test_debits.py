"""Debits: written before the training, once for a release and again for another; and a journal that cannot be made shorter."""

import json
from dataclasses import replace

import pytest

from shared.errors import InputError
from site_agent import disk
from site_agent.ledger import LEDGER, Ledger
from site_agent.privacy import accountant, budget, debits
from site_agent.privacy.accountant import Epsilon, Release
from site_agent.privacy.budget import Budget
from site_agent.privacy.debits import Asked, Debits, OverBudget
from site_agent.state import State
from tests.support import disk_order

RELEASE = Release(q=0.2, sigma=2.0, steps=10)
ASKED = Asked(
    federation="hearts",
    contract="c1" * 32,
    round=1,
    received="a0" * 32,
    made_from="d0" * 32,
    patients=50,
    release=RELEASE,
    clip=1.0,
    delta=1e-5,
    budget=4.0,
)


def pay(folder, asked):
    """Do what an agent does before a round."""
    kept = Debits(folder)
    plan = kept.plan(asked)
    kept.enter(plan)
    return plan


def lines(folder):
    return debits.read(folder, missing_ok=True).entries


def test_a_round_is_paid_for_with_what_it_costs(tmp_path):
    plan = pay(tmp_path, ASKED)
    (line,) = lines(tmp_path)
    cost = accountant.epsilon([RELEASE], ASKED.delta)
    assert (plan.before, plan.after) == (Epsilon(0.0, 0.0), cost)
    assert (line.facts["epsilon"], line.facts["epsilon_rdp"], line.facts["key"]) == (cost.pld, cost.rdp, plan.stream.id)
    assert debits.release_of(line.facts) == RELEASE
    assert line.facts["round"] == 1


def test_nothing_is_written_before_it_is_entered(tmp_path):
    Debits(tmp_path).plan(ASKED)
    assert not (tmp_path / "privacy").exists()


def test_the_same_round_with_its_key_is_the_same_release_and_is_not_paid_twice(tmp_path):
    first = pay(tmp_path, ASKED)
    again = pay(tmp_path, ASKED)
    assert again.paid
    assert again.stream == first.stream
    assert again.after == first.after
    assert len(lines(tmp_path)) == 1


def test_a_kill_between_key_and_debit_is_made_good(tmp_path):
    kept = Debits(tmp_path)
    plan = kept.plan(ASKED)
    kept._write_key(plan)
    again = pay(tmp_path, ASKED)
    assert again.stream == plan.stream
    assert not again.paid
    assert len(lines(tmp_path)) == 1


def test_a_plan_entered_twice_is_one_debit(tmp_path):
    kept = Debits(tmp_path)
    plan = kept.plan(ASKED)
    assert kept.enter(plan) == kept.enter(plan)
    assert len(lines(tmp_path)) == 1


@pytest.mark.parametrize(
    "change",
    [{"received": "a1" * 32}, {"made_from": "d1" * 32}, {"contract": "c2" * 32}, {"round": 2}, {"clip": 2.0}],
)
def test_another_version_other_cases_or_another_contract_is_another_release(tmp_path, change):
    first = pay(tmp_path, ASKED)
    second = pay(tmp_path, replace(ASKED, **change))
    assert second.stream != first.stream
    assert len(lines(tmp_path)) == 2
    assert second.after == accountant.epsilon([RELEASE, RELEASE], ASKED.delta)
    back = pay(tmp_path, ASKED)  # its key has given way
    assert not back.paid
    assert len(lines(tmp_path)) == 3


@pytest.mark.parametrize("damage", ["gone", "torn", "another key", "no json"])
def test_without_its_key_a_round_is_paid_for_again(tmp_path, damage):
    first = pay(tmp_path, ASKED)
    path = tmp_path / "privacy/key.json"
    value = json.loads(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(path.read_bytes()[:70])
    elif damage == "another key":
        path.write_text(json.dumps({**value, "key": "00" * 32}))
    else:
        path.write_bytes(b"[]")
    second = pay(tmp_path, ASKED)
    assert second.stream != first.stream
    assert len(lines(tmp_path)) == 2


def test_the_key_of_a_finished_round_is_destroyed_and_that_of_another_is_not(tmp_path):
    pay(tmp_path, ASKED)
    kept = Debits(tmp_path)
    kept.forget(2)
    assert (tmp_path / "privacy/key.json").exists()
    kept.forget(1)
    assert not (tmp_path / "privacy/key.json").exists()
    kept.forget(1)
    assert not pay(tmp_path, ASKED).paid


def test_a_round_that_would_pass_the_budget_is_not_paid_for(tmp_path):
    once = accountant.epsilon([RELEASE], ASKED.delta)
    asked = replace(ASKED, budget=1.2 * once.pld)
    pay(tmp_path, asked)
    with pytest.raises(OverBudget) as raised:
        pay(tmp_path, replace(asked, round=2))
    assert raised.value.before == once
    assert raised.value.after == accountant.epsilon([RELEASE, RELEASE], ASKED.delta)
    assert len(lines(tmp_path)) == 1
    assert pay(tmp_path, asked).paid  # what was paid for may still be trained


def test_a_budget_may_be_spent_to_the_last(tmp_path):
    pay(tmp_path, replace(ASKED, budget=accountant.epsilon([RELEASE], ASKED.delta).pld))
    assert len(lines(tmp_path)) == 1


def test_what_was_spent_under_other_contracts_counts_at_the_delta_of_this_one(tmp_path):
    pay(tmp_path, ASKED)
    other = Release(q=0.1, sigma=3.0, steps=5)
    plan = pay(tmp_path, replace(ASKED, federation="lungs", contract="c2" * 32, release=other, delta=1e-6))
    assert plan.before == accountant.epsilon([RELEASE], 1e-6)
    assert plan.after == accountant.epsilon([RELEASE, other], 1e-6)


def test_a_journal_that_was_changed_or_lost_lines_lets_nothing_be_trained(tmp_path):
    kept = Debits(tmp_path)
    heads = [kept.enter(kept.plan(replace(ASKED, round=number))) for number in (1, 2)]
    path = tmp_path / "privacy/debits.jsonl"
    whole = path.read_bytes()
    kept.plan(replace(ASKED, round=3), noted=heads)
    path.write_bytes(whole.splitlines(keepends=True)[0])
    with pytest.raises(InputError, match=r"1 debit\(s\) that the egress ledger knows of are missing"):
        kept.plan(replace(ASKED, round=3), noted=heads)
    path.write_bytes(whole.replace(b'"steps":10', b'"steps":11', 1))
    with pytest.raises(InputError, match="line 2 follows a line with digest"):
        kept.plan(replace(ASKED, round=3))
    path.unlink()
    with pytest.raises(InputError, match=r"2 debit\(s\)"):
        kept.plan(replace(ASKED, round=3), noted=heads)


def test_files_are_the_owners_alone(tmp_path):
    pay(tmp_path, ASKED)
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "privacy").iterdir()} == {
        "debits.jsonl": 0o600,
        "key.json": 0o600,
    }


def test_an_empty_journal_is_a_damaged_one(tmp_path):
    pay(tmp_path, ASKED)
    (tmp_path / "privacy/debits.jsonl").write_bytes(b"")
    with pytest.raises(InputError, match=r"debits\.jsonl: it is empty.*put the journal back from a backup"):
        Debits(tmp_path).plan(replace(ASKED, round=2))


def test_updates_under_contracts_that_no_debit_names_are_in_no_budget(tmp_path):
    pay(tmp_path, ASKED)
    left = {("c0" * 32, 1), ("c0" * 32, 2), ("", 1), (ASKED.contract, 1)}
    assert budget.without_noise(debits.read(tmp_path), left) == 3
    assert budget.without_noise(debits.read(tmp_path), {(ASKED.contract, 1)}) == 0


def test_a_write_that_is_tried_again_is_durable_before_anything_is_trained(tmp_path, monkeypatch):
    """The journal was renamed to its name, and syncing the folder failed."""
    kept = Debits(tmp_path)
    plan = kept.plan(ASKED)
    kept.enter(plan)
    steps = disk_order.record(monkeypatch)
    kept.enter(plan)
    assert steps == [("fsync", tmp_path / "privacy")]


async def test_the_key_is_destroyed_however_long_the_disk_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "FIRST_PAUSE_S", 0.01)
    pay(tmp_path, ASKED)
    told, full, real = list[str](), [True, False], debits.sync_folder

    def sync(folder):
        if full and full.pop(0):
            raise OSError(28, "No space left on device")
        real(folder)

    monkeypatch.setattr(debits, "sync_folder", sync)
    ledger = Ledger(tmp_path / LEDGER)
    kept = Budget(tmp_path, ledger, lambda write: disk.keep_trying(write, tmp_path, told.append))
    await kept.forget(1)
    assert full == []  # and synced the second time, with the key gone already
    assert len(told) == 1
    assert not (tmp_path / "privacy/key.json").exists()
    ledger.close()


def test_half_a_key_that_a_kill_left_is_removed_at_the_next_start(tmp_path):
    pay(tmp_path, ASKED)
    half = tmp_path / "privacy/.key.json.4711-1.tmp"
    half.write_bytes(b'{"key":"')
    State(tmp_path).close()
    assert {path.name for path in (tmp_path / "privacy").iterdir()} == {"debits.jsonl", "key.json"}


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    kept = Debits(tmp_path)
    plan, real = kept.plan(ASKED), debits.write_atomically
    with monkeypatch.context() as patched:
        patched.setattr(debits, "write_atomically", full_after(1, real))
        with pytest.raises(OSError, match="No space left"):
            kept.enter(plan)
    assert lines(tmp_path) == ()
    kept.enter(plan)
    assert [one.facts["key"] for one in lines(tmp_path)] == [plan.stream.id]


def full_after(count, real):
    left = [count]

    def write(*arguments):
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        real(*arguments)

    return write
