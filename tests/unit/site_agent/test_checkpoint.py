"""Checkpoints: two of the round at hand, of nothing else, whole or noticed; and never a reason to stop training."""

import io
import stat
from dataclasses import asdict, fields, replace

import pytest
import torch
from structlog.testing import capture_logs

from shared.canonical import sha256_hex
from shared.recipe import Recipe
from site_agent.damage import Infirmary
from site_agent.models.adapter_tensors import Ownership
from site_agent.training import checkpoint, local
from site_agent.training.checkpoint import Binding, Checkpoints, Progress
from tests.support import disk_order, tiny_site
from tests.support.devices import DEVICES

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


def write_payload(kept: Checkpoints, value: object) -> None:
    """Write a file with a right digest of whatever `torch.save` makes of a value."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    kept.folder.mkdir()
    digest = sha256_hex(buffer.getvalue()).encode()
    (kept.folder / "checkpoint-00000001").write_bytes(digest + b"\n" + buffer.getvalue())


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


class Calls:
    """What a pickle could do on being read."""

    def __reduce__(self):
        return print, ("called",)


@pytest.mark.parametrize(
    "value",
    [
        {"format": 99},
        {"format": checkpoint.FORMAT},
        {"format": checkpoint.FORMAT, "binding": {"contract": "c"}, "progress": {}},
        {"format": checkpoint.FORMAT, "binding": asdict(BINDING), "progress": {"step": 1, "epoch": 2}},
        {"format": checkpoint.FORMAT, "binding": 7, "progress": None},
        ["no", "object"],
        7,
        Calls(),
    ],
    ids=["format", "nothing", "binding", "progress", "types", "list", "number", "code"],
)
def test_one_of_another_release_is_ignored_said_once_and_never_run(kept, told, capsys, value):
    """Its digest is right, so it is not damaged: it is left where it is."""
    write_payload(kept, value)
    with capture_logs() as events:
        assert kept.keeper(BINDING).newest() is None
    assert [(event["event"], event["differs"]) for event in events] == [("checkpoint_ignored", "format")]
    assert told == []
    assert "called" not in capsys.readouterr().out
    kept.keeper(BINDING).save(progress(1))
    assert_same(kept.keeper(BINDING).newest(), progress(1))


def test_one_that_torch_cannot_read_is_ignored(kept):
    kept.folder.mkdir()
    payload = b"whatever comes after torch.save"
    (kept.folder / "checkpoint-00000001").write_bytes(sha256_hex(payload).encode() + b"\n" + payload)
    assert kept.keeper(BINDING).newest() is None


@pytest.mark.parametrize("name", ["checkpoint-00000001.bak", "checkpoint-1", "checkpoint-00000001-old", "checkpoint-x"])
def test_files_of_other_names_are_no_checkpoints_and_are_left_alone(kept, name):
    kept.keeper(BINDING).save(progress(1))
    (kept.folder / name).write_bytes(b"somebody's")
    (kept.folder / "checkpoint-00000007").mkdir()
    assert_same(kept.keeper(BINDING).newest(), progress(1))
    kept.keeper(BINDING).save(progress(2))
    assert_same(kept.keeper(BINDING).newest(), progress(2))
    kept.clear()
    assert (kept.folder / name).read_bytes() == b"somebody's"


def test_a_checkpoint_is_on_the_disk_before_those_it_replaces_are_dropped(kept, monkeypatch):
    keeper = kept.keeper(BINDING)
    for step in (1, 2):
        keeper.save(progress(step))
    steps = disk_order.record(monkeypatch)
    keeper.save(progress(3))
    disk_order.assert_written_durably(steps, kept.folder / "checkpoint-00000003")
    assert steps[-2:] == [("fsync", kept.folder), ("unlink", kept.folder / "checkpoint-00000001")]


# --- torch's generators ---------------------------------------------------------------------------------------------


def test_a_round_that_goes_on_draws_what_it_would_have_drawn(kept, tmp_path):
    """Dropout, say, would draw from torch's generator; nothing does today, so a hook draws in its place."""
    cases = tiny_site.write_cases(tmp_path / "cases", 8)
    recipe = Recipe(rank_local=2, augmentation="none", local_epochs=1, batch_size=2)

    def drawn(seed: int, last: int) -> list[float]:
        draws: list[float] = []
        hooks = local.Hooks(
            on_step=lambda step, steps, optimiser: draws.append(float(torch.rand(()))),
            should_stop=lambda: len(draws) == last,
        )
        model = tiny_site.classifier()
        torch.manual_seed(seed)
        try:
            local.train_round(
                model,
                tiny_site.activations(model),
                cases,
                recipe,
                Ownership("global+local-bias"),
                local.Position(1, 4, 7),
                hooks=hooks,
                keeper=kept.keeper(BINDING),
            )
        except local.Stopped:
            assert len(draws) == last
        return draws

    expected = drawn(5, 9)
    kept.clear()
    assert len(expected) == 4
    assert drawn(5, 2) + drawn(6, 9) == expected


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_draws_after_a_restart_what_it_would_have_drawn(kept, name):
    device = torch.device(name)
    torch.manual_seed(5)
    kept.keeper(BINDING).save(replace(progress(1), generators=checkpoint.generators(device)))
    expected = torch.rand(4, device=device)
    torch.manual_seed(6)
    held = kept.keeper(BINDING).newest()
    assert held is not None
    checkpoint.set_generators(held.generators, device)
    assert torch.equal(torch.rand(4, device=device), expected)


# --- damage ---------------------------------------------------------------------------------------------------------


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


def not_finite(step: int) -> Progress:
    return replace(progress(step), local_tensors={"local.l": torch.tensor([0.0, float("nan")])})


def test_none_is_written_of_tensors_that_are_not_finite(kept):
    keeper = kept.keeper(BINDING)
    keeper.save(progress(1))
    with capture_logs() as events:
        keeper.save(not_finite(2))
    assert [(one["event"], one["reason"]) for one in events] == [
        ("checkpoint_not_finite", "tensor local.l is not finite")
    ]
    assert not keeper.due
    assert_same(kept.keeper(BINDING).newest(), progress(1))


def test_one_that_was_written_all_the_same_is_left_alone(kept):
    kept.keeper(BINDING).save(progress(1))
    checkpoint.write(kept.folder / "checkpoint-00000002", BINDING, not_finite(2))
    with capture_logs() as events:
        assert_same(kept.keeper(BINDING).newest(), progress(1))
    assert events[0]["differs"] == "local.l"


def test_the_next_one_is_due_after_the_interval(kept, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    keeper = replace(kept, every_s=5.0).keeper(BINDING)
    assert not keeper.due
    now[0] = 105.0
    assert keeper.due
    keeper.save(progress(1))
    assert not keeper.due
