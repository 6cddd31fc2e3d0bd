"""The cache is filled while the agent waits, and not a moment longer."""

import asyncio
import threading
import time

import pytest
from structlog.testing import capture_logs

from shared.errors import InputError
from shared.recipe import Recipe
from site_agent.filling import Filling
from site_agent.training.local import Hooks
from site_agent.view import Silent
from tests.support import tiny_site

RECIPE = Recipe(rank_local=2, views=1, local_epochs=2, batch_size=4)


class Slow:
    """A trainer whose cache takes `entries` steps of 10 ms to fill."""

    def __init__(self, entries=10_000, error=None):
        self.entries, self.error, self.calls = entries, error, []

    def fill_cache(self, round_number, should_stop, on_progress):
        self.calls.append((round_number, threading.current_thread() is threading.main_thread()))
        if self.error:
            raise self.error
        for done in range(self.entries):
            if should_stop():
                return done
            time.sleep(0.01)
            on_progress(done + 1, self.entries)
        return self.entries


async def test_it_works_beside_the_loop_until_it_is_to_leave_off():
    trainer, filling = Slow(), Filling(Silent())
    filling.begin(trainer, 3)
    filling.begin(trainer, 3)
    await asyncio.sleep(0.1)
    assert 0.05 < await filling.leave_off() < 5
    assert trainer.calls == [(3, False)]
    assert await filling.leave_off() == 0.0
    filling.begin(trainer, 4)
    await filling.leave_off()
    assert [number for number, _ in trainer.calls] == [3, 4]


async def test_once_everything_is_there_it_is_not_looked_for_again_before_the_next_round():
    trainer, filling = Slow(entries=2), Filling(Silent())
    with capture_logs() as logs:
        filling.begin(trainer, 1)
        await asyncio.sleep(0.2)
        await filling.leave_off()
    filling.begin(trainer, 1)
    assert len(trainer.calls) == 1
    assert [(line["event"], line["computed"], line["all"]) for line in logs] == [("activations_cached", 2, True)]
    filling.begin(trainer, 2)  # it may have been purged meanwhile
    await filling.leave_off()
    assert len(trainer.calls) == 2


async def test_what_goes_wrong_is_raised_when_the_agent_goes_on():
    filling = Filling(Silent())
    filling.begin(Slow(error=InputError("case mnms/P001: cannot be read")), 1)
    with pytest.raises(InputError, match="mnms/P001"):
        await filling.leave_off()


async def test_stopping_does_not_wait():
    trainer, filling = Slow(), Filling(Silent())
    filling.begin(trainer, 1)
    filling.stop()
    await filling.leave_off()
    assert trainer.calls == [(1, False)]


@pytest.fixture
def trainer(tmp_path):
    contract, initial = tiny_site.contract(tiny_site.write_backbone(tmp_path / "backbone"), RECIPE)
    made = tiny_site.trainer(tmp_path / "site", tmp_path / "backbone", contract)
    return made, initial


def test_what_the_next_round_asks_for_comes_first(trainer, monkeypatch):
    made, initial = trainer
    wanted = {view.key for view in made._views(2)}
    assert made.fill_cache(2, should_stop=lambda: len(entries(made)) >= len(wanted)) == len(wanted)
    images, prefix = [], made.model.backbone.prefix
    monkeypatch.setattr(made.model.backbone, "prefix", lambda image, k: images.append(1) or prefix(image, k))
    made.train(2, initial, made.initial_local(), Hooks())
    assert images == []


def test_a_whole_federation_asks_for_nothing_that_was_not_filled_in(trainer, monkeypatch):
    made, initial = trainer
    assert made.fill_cache(1) == len(entries(made))
    images, prefix = [], made.model.backbone.prefix
    monkeypatch.setattr(made.model.backbone, "prefix", lambda image, k: images.append(1) or prefix(image, k))
    for number in (1, 2, 3, 4):
        trained = made.train(number, initial, made.initial_local(), Hooks())
    made.validate(initial, trained.local_tensors)
    made.compare_arms(initial, initial, trained.local_tensors, Hooks())
    assert images == []


def entries(trainer):
    return list(trainer.activations.cache.folder.path.rglob("*.safetensors"))
