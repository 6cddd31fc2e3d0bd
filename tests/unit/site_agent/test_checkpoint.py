"""Checkpoints: two of the round at hand, of nothing else, whole or noticed; and never a reason to stop training."""

import stat
from dataclasses import fields, replace

import pytest
import torch
from structlog.testing import capture_logs

from site_agent.damage import Damaged, Infirmary
from site_agent.training import checkpoint
from site_agent.training.checkpoint import Binding, Checkpoints, Progress

BINDING = Binding(contract="c", round=2, base_version=1, received="r", local="l", cases="k", seed=7)


def progress(step: int) -> Progress:
    generator = torch.Generator().manual_seed(step)
    parameter = torch.nn.Parameter(torch.randn(3, 2, generator=generator))
    parameter.grad = torch.randn(3, 2, generator=generator)
    optimiser = torch.optim.AdamW([{"name": "global", "params": [parameter], "rests": False}], lr=0.1 / 3)
    optimiser.step()
    return Progress(
        step=step,
        losses=[0.1, step / 3],
        global_tensors={"g": parameter.detach().clone()},
        local_tensors={"local.l": torch.randn(2, generator=generator)},
        optimiser=optimiser.state_dict(),
        generators=checkpoint.generators(torch.device("cpu")),
    )


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def kept(tmp_path, told) -> Checkpoints:
    return Checkpoints(tmp_path / "training", 0.0, Infirmary(tmp_path, told.append), told.append)


def assert_same(found: Progress | None, expected: Progress) -> None:
    assert found is not None
    assert (found.step, found.losses) == (expected.step, expected.losses)
    for name in ("global_tensors", "local_tensors", "generators"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in other)
    assert found.optimiser["param_groups"] == expected.optimiser["param_groups"]
    for key, values in expected.optimiser["state"].items():
        assert all(torch.equal(found.optimiser["state"][key][part], value) for part, value in values.items())


def test_progress_comes_back_to_the_last_bit(kept):
    kept.keeper(BINDING).save(progress(5))
    assert_same(kept.keeper(BINDING).newest(), progress(5))


def test_the_last_two_are_kept_and_only_their_owner_can_read_them(kept):
    keeper = kept.keeper(BINDING)
    for step in (1, 2, 3, 4):
        keeper.save(progress(step))
    assert [path.name for path in kept.paths()] == ["checkpoint-00000003", "checkpoint-00000004"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept.paths()} == {0o600}
    assert stat.S_IMODE(kept.folder.stat().st_mode) == 0o700
    assert_same(kept.keeper(BINDING).newest(), progress(4))


def test_numbers_go_on_after_a_restart(kept):
    kept.keeper(BINDING).save(progress(9))
    kept.keeper(BINDING).save(progress(10))
    assert len(kept.paths()) == 2
    assert_same(kept.keeper(BINDING).newest(), progress(10))


def test_without_checkpoints_a_round_begins_at_its_start(kept):
    assert kept.keeper(BINDING).newest() is None
    kept.clear()


def test_clearing_leaves_nothing_of_the_round(kept):
    kept.keeper(BINDING).save(progress(1))
    kept.clear()
    assert kept.paths() == []


@pytest.mark.parametrize("name", [field.name for field in fields(Binding)])
def test_a_checkpoint_of_anything_else_is_ignored_and_the_difference_named(kept, name):
    kept.keeper(BINDING).save(progress(1))
    value = getattr(BINDING, name)
    with capture_logs() as events:
        assert kept.keeper(replace(BINDING, **{name: value + (1 if isinstance(value, int) else "x")})).newest() is None
    assert events == [
        {"event": "checkpoint_ignored", "log_level": "info", "path": "checkpoint-00000001", "differs": name}
    ]
    assert_same(kept.keeper(BINDING).newest(), progress(1))


def test_one_of_another_release_is_ignored(kept, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr(checkpoint, "FORMAT", 99)
        kept.keeper(BINDING).save(progress(1))
    with capture_logs() as events:
        assert kept.keeper(BINDING).newest() is None
    assert [(event["event"], event["differs"]) for event in events] == [("checkpoint_ignored", "format")]


@pytest.mark.parametrize("at", [0, 40, 66, 500, -1])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(kept, told, at):
    keeper = kept.keeper(BINDING)
    for step in (1, 2):
        keeper.save(progress(step))
    newest = kept.paths()[-1]
    data = bytearray(newest.read_bytes())
    data[at] ^= 0x10
    newest.write_bytes(data)
    with capture_logs() as events:
        assert_same(kept.keeper(BINDING).newest(), progress(1))
    assert [event["path"] for event in events if event["event"] == "damage_set_aside"] == [
        "training/checkpoint-00000002"
    ]
    assert "training goes on from the checkpoint before" in told[0]
    assert (kept.folder / "damaged-checkpoint-00000002").read_bytes() == data


@pytest.mark.parametrize("keep", [0, 10, 65, 300])
def test_two_damaged_checkpoints_mean_the_start_of_the_round(kept, keep):
    keeper = kept.keeper(BINDING)
    for step in (1, 2):
        keeper.save(progress(step))
    for path in kept.paths():
        path.write_bytes(path.read_bytes()[:keep])
    assert kept.keeper(BINDING).newest() is None
    assert len(list(kept.folder.glob("damaged-*"))) == 2


def test_a_checkpoint_never_runs_code_that_somebody_put_there(kept, tmp_path):
    """A file with a right digest and a pickle that calls something is refused by torch's restricted reader."""
    import io
    import pickle

    from shared.canonical import sha256_hex

    class Calls:
        def __reduce__(self):
            return print, ("called",)

    buffer = io.BytesIO()
    torch.save(Calls(), buffer)
    path = tmp_path / "checkpoint-00000001"
    path.write_bytes(sha256_hex(buffer.getvalue()).encode() + b"\n" + buffer.getvalue())
    with pytest.raises((pickle.UnpicklingError, Damaged)):
        checkpoint.read(path)


def test_a_checkpoint_that_cannot_be_written_is_said_once_and_training_goes_on(kept, told):
    kept.folder.write_text("a file where the folder should be")
    keeper = kept.keeper(BINDING)
    with capture_logs() as events:
        keeper.save(progress(1))
        assert not keeper.due  # tried again after a while, not at every step
        keeper.save(progress(2))
    assert [event["event"] for event in events] == ["checkpoint_failed"] * 2
    assert [event["retry_in_s"] for event in events] == [1.0, 2.0]
    assert len(told) == 1
    assert "a checkpoint cannot be written" in told[0]
    kept.folder.unlink()
    with capture_logs() as events:
        keeper.save(progress(3))
    assert [event["event"] for event in events] == ["checkpoint_written_again"]
    assert_same(kept.keeper(BINDING).newest(), progress(3))


def test_the_next_one_is_due_after_the_interval(kept, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    keeper = replace(kept, every_s=5.0).keeper(BINDING)
    assert not keeper.due
    now[0] = 105.0
    assert keeper.due
    keeper.save(progress(1))
    assert not keeper.due
