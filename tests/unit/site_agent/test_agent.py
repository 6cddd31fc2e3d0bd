"""The agent's loop against a scripted aggregator and a trainer that adds a number: what it answers to the unusual."""

import asyncio
import errno
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from structlog.testing import capture_logs

from shared.adapter import Adapter
from shared.contract import Contract, RoundPolicy
from shared.errors import AggregatorUnreachable
from shared.recipe import INSTALLED, Recipe, factor_of
from site_agent import disk, permission, releases
from site_agent import heartbeat as beat
from site_agent.agent import Agent, Evicted
from site_agent.client import Joined, Task
from site_agent.config import SiteConfig
from site_agent.consent import ConsentWithheld
from site_agent.egress import Update
from site_agent.lineage import Start
from site_agent.local_rounds import LocalRounds
from site_agent.models.config import ConvViTConfig
from site_agent.permission import Permission
from site_agent.training import local
from site_agent.training.evaluate import Judged
from site_agent.training.site import SiteTrainer, Trained
from site_agent.view import Silent
from tests.support import adapters, methods, tiny_site

FIRST = adapters.adapter()
CONTRACT = Contract(
    federation="hearts",
    adapter_digest=FIRST.digest,
    manifest=FIRST.manifest,
    recipe=Recipe(codec="bf16"),
    policy=RoundPolicy(),
)
PRIVATE = "local.encoder.blocks.0.attn.q.lora_A.weight"
PATIENCE_S = 20.0


def version(number: int, parent: Adapter = FIRST, seed: int = 0) -> Adapter:
    return replace(adapters.adapter(seed or number), version=number, parent_digest=parent.digest)


def train(number: int, given: Adapter) -> Task:
    return Task("TRAIN", number, given.version, given.digest, 60.0, "")


def about(instruction: str, number: int) -> Task:
    return Task(instruction, number, 0, "", 0.0, "")


END = about("EVICTED", 0)
"""What every script ends with, so that `run` does."""


@dataclass
class Aggregator:
    """Plays the client: the loop is given the tasks one after another; what a heartbeat is answered is said apart."""

    tasks: list[Task]
    versions: list[Adapter]
    heartbeat: Callable[[int], Task] = lambda number: about("WAIT", number)
    sent: list[Update] = field(default_factory=list)
    fresh: list[bool] = field(default_factory=list)
    built_on: list[str] = field(default_factory=list)
    """Digests of the copies that downloads may build on; empty for none."""
    sent_at: list[float] = field(default_factory=list)
    patience_s: list[float] = field(default_factory=list)
    holds: list[str | None] = field(default_factory=list)
    """What was said to hold the agent up, each time that it is another thing than before."""
    federation = "hearts"

    async def await_round(
        self, *, round_number: int, wait_s: float, hold: str | None, give_up_after_s: float = math.inf, **rest: Any
    ) -> Task:
        if [hold] != self.holds[-1:]:
            self.holds.append(hold)
        if wait_s == 0:
            self.patience_s.append(give_up_after_s)
            return await asyncio.to_thread(self.heartbeat, round_number)
        return self.tasks.pop(0)

    async def keep_to_contract(self) -> None:
        """It is what was joined."""

    async def fetch(self, contract: Contract, task: Task, held: Adapter | None) -> Adapter:
        self.built_on.append(held.digest if held else "")
        return next(one for one in self.versions if one.digest == task.digest)

    async def upload(self, update: Update, *, fresh: bool = False) -> None:
        self.sent.append(update)
        self.fresh.append(fresh)
        self.sent_at.append(time.monotonic())

    async def close(self) -> None:
        """Nothing is open."""


@dataclass
class Trainer:
    """Adds the round's number to every private tensor, and a hundredth of it to what travels, when `ready` says so."""

    ready: Callable[[int, Callable[[], bool]], None] = lambda number, should_stop: None
    trained: list[tuple[int, str, float]] = field(default_factory=list)
    """Round, digest of the version and private number that each training began with."""
    training_patients = 9
    recipe: Recipe = CONTRACT.recipe
    seed: int = 7
    change: Callable[[int], float] = lambda number: 0.01 * number

    def fill_cache(self, *_: Any) -> int:
        return 0

    def initial_local(self) -> dict[str, np.ndarray]:
        return {PRIVATE: np.zeros((2, 6), np.float32)}

    def validate(self, adapter: Adapter, local_now: Mapping[str, np.ndarray]) -> Judged:
        return Judged({}, {})

    def train(
        self, number: int, received: Adapter, local_before: Mapping[str, np.ndarray], hooks: local.Hooks, *_: Any
    ) -> Trained:
        self.trained.append((number, received.digest, float(local_before[PRIVATE][0, 0])))
        self.ready(number, hooks.should_stop)
        if hooks.should_stop():
            raise local.Stopped
        change = np.float32(self.change(number))
        return Trained(
            {n: v + change for n, v in received.tensors.items() if self.recipe.travels(n, number)},
            {name: value + np.float32(number) for name, value in local_before.items()},
            {"train_loss": 0.5},
        )


class Hasty(random.Random):
    """Draws the shortest pause."""

    def uniform(self, a: float, b: float) -> float:
        return min(a, b)


class Scripted(Agent):
    """An agent that has joined: its aggregator is scripted, its trainer only adds."""

    def __init__(
        self, folder: Path, aggregator: Aggregator, trainer: Trainer, contract: Contract = CONTRACT, **settings: Any
    ) -> None:
        super().__init__(
            SiteConfig(
                aggregator="127.0.0.1:1",
                cohort=folder,
                weights=folder,
                state=folder / "state",
                plain_site="ge",
                **settings,
            ),
            Silent(),
        )
        for part in (self, self._heartbeat, self._versions):
            part._client = aggregator  # type: ignore[assignment]
        self._trainer: Any = trainer
        self.joined = Joined("ge", contract, 9, 0)

    async def _join(self) -> tuple[Joined, Any]:
        self._state.bind(self.joined.contract)
        return self.joined, self._trainer


async def take_part(made: Agent) -> None:
    """Run until the script is at its end."""
    with pytest.raises(Evicted):
        async with asyncio.timeout(PATIENCE_S):
            await made.run(once=True)


@pytest.fixture
def _lively(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beat, "HEARTBEAT_S", 0.01)


# --- heartbeats -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_lively")
async def test_an_answer_that_comes_late_does_not_stop_the_round_after(tmp_path):
    """The question of round 1 is answered when round 2 is trained: that round 1 is over is no news then."""
    second = version(1)
    asked, answering, heard = threading.Event(), threading.Event(), threading.Event()

    def heartbeat(number: int) -> Task:
        if number == 1:
            asked.set()
            assert answering.wait(PATIENCE_S)
            return about("ABANDON", 1)
        heard.set()
        return about("TRAIN", 2)

    def ready(number: int, should_stop: Callable[[], bool]) -> None:
        if number == 1:
            assert asked.wait(PATIENCE_S)
        else:
            answering.set()
            assert heard.wait(PATIENCE_S)

    aggregator = Aggregator([train(1, FIRST), train(2, second), END], [FIRST, second], heartbeat)
    await take_part(Scripted(tmp_path, aggregator, Trainer(ready)))
    assert [update.facts.round for update in aggregator.sent] == [1, 2]


@pytest.mark.usefixtures("_lively")
async def test_a_round_that_is_over_is_not_trained_to_its_end(tmp_path):
    def ready(number: int, should_stop: Callable[[], bool]) -> None:
        began = time.monotonic()
        while not should_stop() and time.monotonic() - began < PATIENCE_S:
            time.sleep(0.01)

    aggregator = Aggregator([train(1, FIRST), END], [FIRST], lambda number: about("ABANDON", number))
    await take_part(Scripted(tmp_path, aggregator, Trainer(ready)))
    assert aggregator.sent == []


@pytest.mark.usefixtures("_lively")
async def test_a_heartbeat_that_nobody_answers_is_given_up_and_training_goes_on(tmp_path):
    asked: list[int] = []
    enough = threading.Event()

    def heartbeat(number: int) -> Task:
        asked.append(number)
        if len(asked) > 2:
            enough.set()
        raise AggregatorUnreachable("no answer")

    def ready(number: int, should_stop: Callable[[], bool]) -> None:
        assert enough.wait(PATIENCE_S)

    aggregator = Aggregator([train(1, FIRST), END], [FIRST], heartbeat)
    await take_part(Scripted(tmp_path, aggregator, Trainer(ready)))
    assert [update.facts.round for update in aggregator.sent] == [1]
    assert max(aggregator.patience_s) <= beat.HEARTBEAT_S


async def test_outside_its_hours_a_site_says_so_at_once_and_trains_when_they_begin(tmp_path, monkeypatch):
    monkeypatch.setattr(permission, "WINDOW_EVERY_S", 0.01)
    aggregator = Aggregator([train(1, FIRST), END], [FIRST], lambda number: train(1, FIRST))
    made = Scripted(tmp_path, aggregator, Trainer())
    monkeypatch.setattr(Permission, "may_train", property(lambda _: "WINDOW" in aggregator.holds))
    await take_part(made)
    assert aggregator.holds == [None, "WINDOW", None]
    assert [update.facts.round for update in aggregator.sent] == [1]


async def test_a_site_that_does_not_consent_says_so_until_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr(permission, "CONSENT_EVERY_S", 0.05)
    withheld = iter([ConsentWithheld("rounds: at most 1")])

    class Unwilling(Aggregator):
        async def keep_to_contract(self) -> None:
            for error in withheld:
                raise error

    aggregator = Unwilling([train(1, FIRST), train(1, FIRST), END], [FIRST])
    made = Scripted(tmp_path, aggregator, Trainer())
    made._repeats.rng = Hasty()
    await take_part(made)
    assert aggregator.holds == [None, "CONTRACT", None]


async def test_a_full_disk_is_told_to_the_aggregator_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "FIRST_PAUSE_S", 0.05)
    aggregator = Aggregator([train(1, FIRST), END], [FIRST])
    made = Scripted(tmp_path, aggregator, Trainer())
    full = iter([OSError(errno.ENOSPC, "No space left on device")])
    commit = made._state.rounds.commit

    def write(*what: Any) -> None:
        for error in full:
            raise error
        commit(*what)

    made._state.rounds.commit = write  # type: ignore[method-assign]
    await take_part(made)
    assert aggregator.holds == [None, "DISK", None]
    assert [update.facts.round for update in aggregator.sent] == [1]


# --- a round that is asked for again --------------------------------------------------------------------------------


async def test_a_finished_round_is_sent_again_and_not_trained_again(tmp_path):
    """The second time the aggregator is asked first: it may have the update already."""
    trainer = Trainer()
    aggregators = [Aggregator([train(1, FIRST), END], [FIRST]) for _ in range(2)]
    for aggregator in aggregators:
        await take_part(Scripted(tmp_path, aggregator, trainer))
    assert len(trainer.trained) == 1
    assert aggregators[1].sent[0].payload == aggregators[0].sent[0].payload
    assert [aggregator.fresh for aggregator in aggregators] == [[True], [False]]


async def test_a_round_asked_for_from_another_version_of_the_same_number_is_trained_again_and_it_is_said(tmp_path):
    """An aggregator restored from a backup gives version numbers again."""
    gone, other = version(1, seed=5), version(1, seed=6)
    trainer = Trainer()
    before = Aggregator([train(1, FIRST), train(2, gone), END], [FIRST, gone])
    await take_part(Scripted(tmp_path, before, trainer))
    restored = Aggregator([train(2, other), END], [other])
    with capture_logs() as events:
        await take_part(Scripted(tmp_path, restored, trainer))
    assert trainer.trained == [(1, FIRST.digest, 0.0), (2, gone.digest, 1.0), (2, other.digest, 1.0)]
    assert [update.facts.base_version for update in restored.sent] == [1]
    (said,) = [event for event in events if event["event"] == "finished_round_replaced"]
    assert said["log_level"] == "warning"
    assert (said["round"], said["held_version"], said["asked_version"]) == (2, 1, 1)
    assert (said["held_digest"], said["asked_digest"]) == (gone.digest, other.digest)
    again = Aggregator([train(2, other), END], [])
    await take_part(Scripted(tmp_path, again, trainer))
    assert again.sent[0].payload == restored.sent[0].payload


async def test_an_aggregator_that_asks_for_the_same_round_over_and_over_is_not_flooded(tmp_path):
    second = version(1)
    script = [*[train(1, FIRST)] * 4, train(2, second), END]
    aggregator, trainer = Aggregator(script, [FIRST, second]), Trainer()
    with capture_logs() as events:
        await take_part(Scripted(tmp_path, aggregator, trainer))
    assert [update.facts.round for update in aggregator.sent] == [1, 1, 1, 1, 2]
    assert [number for number, _, _ in trainer.trained] == [1, 2]
    pauses = np.diff(aggregator.sent_at[:4])
    assert min(pauses) >= 0.1
    said = [event for event in events if event["event"] == "round_asked_again"]
    assert [(event["round"], event["attempt"], event["log_level"]) for event in said] == [
        (1, attempt, "warning") for attempt in (1, 2, 3)
    ]


async def test_an_update_that_a_person_withholds_is_not_offered_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(releases, "POLL_S", 0.01)
    second = version(1)
    asked: list[tuple[str, int]] = []

    class Asked(Aggregator):
        async def await_round(self, *, round_number: int, following: str, wait_s: float, **rest: Any) -> Task:  # type: ignore[override]
            if wait_s:
                asked.append((following, round_number))
            return await super().await_round(round_number=round_number, wait_s=wait_s, **rest)

    script = [*[train(1, FIRST)] * 5, about("ABANDON", 1), train(2, second), END]
    aggregator = Asked(script, [FIRST, second])
    made = Scripted(tmp_path, aggregator, Trainer(), egress="manual")

    async def decide() -> None:
        while True:
            for record, digest in releases.waiting(tmp_path / "state"):
                releases.decide(tmp_path / "state", digest, leaves=record.facts.round == 2)
            await asyncio.sleep(0.01)

    deciding = asyncio.create_task(decide())
    with capture_logs() as events:
        await take_part(made)
    deciding.cancel()
    names = names_of(events)
    assert (names.count("update_withheld"), names.count("round_asked_again")) == (1, 0)
    assert [update.facts.round for update in aggregator.sent] == [2]
    assert aggregator.holds == [None, "RELEASE", "KEPT", None, "RELEASE", None]
    assert asked[1:7] == [("TRAIN", 1)] * 5 + [
        ("ABANDON", 1)
    ]  # as if it still worked on it: held until something differs


async def test_a_round_that_was_not_released_in_time_may_be_asked_for_again(tmp_path, monkeypatch):
    monkeypatch.setattr(releases, "POLL_S", 0.01)
    made = Scripted(tmp_path, Aggregator([train(1, FIRST)] * 2 + [END], [FIRST]), Trainer(), egress="manual")
    made._heartbeat.is_asked = lambda number: False  # type: ignore[method-assign]
    with capture_logs() as events:
        await take_part(made)
    assert names_of(events).count("update_not_released") == 2


# --- damage ---------------------------------------------------------------------------------------------------------


class GoingBad(LocalRounds):
    """One of round 1's files is spoilt right after it was found sound, when round 2 looks for the `nth` time."""

    def __init__(self, folder: Path, made: Agent, name: str, nth: int) -> None:
        super().__init__(folder / "state/rounds", made._state.infirmary)
        self._victim, self._left = folder / "state/rounds/0001" / name, nth

    def start(self, before_round: int, received: Adapter) -> Start:
        found = super().start(before_round, received)
        self._left -= before_round == 2
        if before_round == 2 and self._left == 0:
            self._victim.write_bytes(b"\x08")
        return found


@pytest.mark.parametrize(
    ("name", "nth", "begins_with"), [("local.safetensors", 1, 0.0), ("residual.safetensors", 2, 1.0)]
)
async def test_a_file_that_goes_bad_after_it_was_found_sound_is_set_aside_and_the_round_begun_again(
    tmp_path, name, nth, begins_with
):
    second = version(1)
    trainer = Trainer()
    aggregator = Aggregator([train(1, FIRST), train(2, second), END], [FIRST, second])
    made = Scripted(tmp_path, aggregator, trainer)
    made._state.rounds = GoingBad(tmp_path, made, name, nth)
    with capture_logs() as events:
        await take_part(made)
    assert trainer.trained[1:] == [(2, second.digest, begins_with)]
    assert [update.facts.round for update in aggregator.sent] == [1, 2]
    (said,) = [event for event in events if event["event"] == "damage_set_aside"]
    assert said["path"] == f"rounds/0001/{name}"
    assert (tmp_path / f"state/rounds/0001/damaged-{name}").exists()


class Diverging(Trainer):
    """Its private numbers are no numbers any more after round 1."""

    def train(self, number: int, *arguments: Any) -> Trained:
        trained = super().train(number, *arguments)
        broken = {
            name: value * np.float32(np.nan if number == 1 else 1) for name, value in trained.local_tensors.items()
        }
        return replace(trained, local_tensors=broken)


async def test_a_local_part_that_is_not_finite_is_not_kept_and_stops_no_update(tmp_path):
    second, told = version(1), list[str]()
    trainer = Diverging()
    aggregator = Aggregator([train(1, FIRST), train(2, second), END], [FIRST, second])
    made = Scripted(tmp_path, aggregator, trainer)
    made._view.warned = told.append  # type: ignore[method-assign]
    with capture_logs() as events:
        await take_part(made)
    assert [update.facts.round for update in aggregator.sent] == [1, 2]
    assert trainer.trained == [(1, FIRST.digest, 0.0), (2, second.digest, 0.0)]
    (said,) = [event for event in events if event["event"] == "local_part_not_finite"]
    assert (said["round"], said["reason"]) == (1, f"tensor {PRIVATE} is not finite")
    assert any(f"round 1: tensor {PRIVATE} is not finite after training" in text for text in told)


# --- version 0 ------------------------------------------------------------------------------------------------------


@dataclass
class WithNetwork(Trainer):
    """A trainer that knows the shapes of its base model; asked for them more often than `looks`, it fails."""

    recipe: Recipe = field(default_factory=Recipe)
    looks: int = 1

    @property
    def network(self) -> ConvViTConfig:
        assert self.looks > 0
        self.looks -= 1
        return tiny_site.CONFIG


@pytest.fixture(scope="module")
def drawable(tmp_path_factory: pytest.TempPathFactory) -> tuple[Contract, Adapter]:
    """Return a contract whose version 0 was drawn from a seed for a base model, and that version."""
    return tiny_site.contract(tiny_site.write_backbone(tmp_path_factory.mktemp("backbone")), Recipe())


def other_release(contract: Contract) -> tuple[Contract, Adapter]:
    """Return the same contract with a version 0 that a release of torch drew which draws other numbers."""
    drawn = replace(FIRST, manifest=contract.manifest, tensors=_other(contract))
    return replace(contract, adapter_digest=drawn.digest), drawn


def _other(contract: Contract) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {s.name: rng.standard_normal(s.shape).astype(np.float32) for s in contract.manifest.layout.tensors}


def names_of(events: list[Any]) -> list[str]:
    return [event["event"] for event in events]


async def test_a_site_draws_version_0_and_downloads_nothing(tmp_path, drawable):
    contract, initial = drawable
    aggregator, trainer = Aggregator([train(1, initial), END], []), WithNetwork()
    made = Scripted(tmp_path, aggregator, trainer, contract)
    with capture_logs() as events:
        await take_part(made)
    assert trainer.trained == [(1, initial.digest, 0.0)]
    (said,) = [event for event in events if event["event"] == "version_0_drawn"]
    assert said["digest"] == contract.adapter_digest
    for name in ("global.safetensors", "initial.safetensors"):
        assert (tmp_path / "state" / name).read_bytes() == initial.to_bytes()


async def test_a_site_that_has_a_version_draws_none(tmp_path, drawable):
    contract, initial = drawable
    trainer = WithNetwork(looks=1)
    for number in (1, 2):
        aggregator = Aggregator([train(number, initial), END], [initial])
        await take_part(Scripted(tmp_path, aggregator, trainer, contract))
    assert [number for number, _, _ in trainer.trained] == [1, 2]


async def test_a_version_0_that_is_not_what_the_site_draws_is_downloaded(tmp_path, drawable):
    contract, given = other_release(drawable[0])
    aggregator, trainer = Aggregator([train(1, given), END], [given]), WithNetwork()
    with capture_logs() as events:
        await take_part(Scripted(tmp_path, aggregator, trainer, contract))
    assert trainer.trained == [(1, given.digest, 0.0)]
    assert "version_0_drawn" not in names_of(events)
    assert (tmp_path / "state/initial.safetensors").read_bytes() == given.to_bytes()


async def test_a_version_0_that_is_not_the_contracts_is_not_trained_from(tmp_path, drawable):
    contract, _ = drawable
    _, other = other_release(contract)
    made = Scripted(tmp_path, Aggregator([], [other]), WithNetwork(), contract)
    asked = Task("TRAIN", 1, 0, other.digest, 0.0, "")
    with pytest.raises(ConsentWithheld, match=rf"version 0 has digest {other.digest[:12]}, the contract names"):
        await made._versions.get(contract, WithNetwork(), asked)


async def test_a_later_version_is_downloaded_on_top_of_the_version_0_that_the_site_draws(tmp_path, drawable):
    """Of a factor that never moves a late joiner has every number already."""
    contract, initial = drawable
    later = initial.successor(_other(contract), 3)
    aggregator, trainer = Aggregator([train(4, later), END], [later]), WithNetwork()
    await take_part(Scripted(tmp_path, aggregator, trainer, contract))
    assert trainer.trained == [(4, later.digest, 0.0)]
    assert aggregator.built_on[0] == initial.digest


@pytest.mark.parametrize("drawn", [True, False])
async def test_a_site_that_joined_late_draws_version_0_for_its_report_or_downloads_it(tmp_path, drawable, drawn):
    contract, initial = drawable if drawn else other_release(drawable[0])
    trainer = WithNetwork()
    made = Scripted(tmp_path, Aggregator([], [] if drawn else [initial]), trainer, contract)
    made._state.bind(contract)
    with capture_logs() as events:
        found = [await made._versions.initial(contract, trainer) for _ in range(2)]
    assert [one.digest for one in found] == [initial.digest] * 2
    assert names_of(events) == (["version_0_drawn"] if drawn else [])


# --- what a codec draws ---------------------------------------------------------------------------------------------


async def test_a_round_that_is_done_again_sends_the_same_bytes_and_another_site_other_ones(tmp_path):
    recipe = Recipe(codec="int4")
    payloads = []
    for folder, seed in (("first", 7), ("again", 7), ("other", 8)):
        aggregator, trainer = Aggregator([train(1, FIRST), END], [FIRST]), Trainer(recipe=recipe, seed=seed)
        await take_part(Scripted(tmp_path / folder, aggregator, trainer, replace(CONTRACT, recipe=recipe)))
        payloads.append(aggregator.sent[0].payload)
    assert payloads[0] == payloads[1] != payloads[2]


async def test_the_same_change_in_another_round_is_rounded_otherwise(tmp_path):
    recipe = Recipe(codec="int4")
    payloads = []
    for number in (1, 2):
        trainer = Trainer(recipe=recipe, change=lambda number: 0.01)
        aggregator = Aggregator([train(number, FIRST), END], [FIRST])
        await take_part(Scripted(tmp_path / str(number), aggregator, trainer, replace(CONTRACT, recipe=recipe)))
        payloads.append(aggregator.sent[0].payload)
    assert payloads[0] != payloads[1]


# --- what stays -----------------------------------------------------------------------------------------------------


class Recording:
    """A real trainer, and what it gave the loop to be sealed."""

    def __init__(self, trainer: SiteTrainer) -> None:
        self._trainer = trainer
        self.given: list[Mapping[str, np.ndarray]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def train(self, *arguments: Any) -> Trained:
        trained = self._trainer.train(*arguments)
        self.given.append(trained.global_tensors)
        return trained


@pytest.mark.parametrize("name", INSTALLED)
async def test_no_private_number_is_given_to_the_door_or_sent(tmp_path, name):
    """Learning rates of 0 keep the private low-rank tensors as they are, with FedSA-LoRA a marked B of the global part too. Only
    weights of the parts are fitted anew, by FDLoRA."""
    resting = Recipe(augmentation="none", local_epochs=1, lr_global=0.0, lr_local=0.0)
    recipe = methods.recipe(name, resting)
    backbone = tiny_site.write_backbone(tmp_path / "backbone")
    contract, initial = tiny_site.contract(backbone, recipe)
    trainer: Any = Recording(tiny_site.trainer(tmp_path / "cases", backbone, contract))
    rng = np.random.default_rng(9)
    private = {n: rng.uniform(0.01, 0.02, v.shape).astype(np.float32) for n, v in trainer.initial_local().items()}
    assert any(tensor.startswith("local.global.") for tensor in private) == (name == "fedsa-lora")
    (tmp_path / "state/rounds/0000").mkdir(parents=True)
    save_file(private, tmp_path / "state/rounds/0000/local.safetensors")
    aggregator = Aggregator([train(1, initial), END], [initial])
    made = Scripted(tmp_path, aggregator, trainer, contract)
    await take_part(made)
    (given,), (update,) = trainer.given, aggregator.sent
    assert given.keys() == {tensor for tensor in initial.tensors if recipe.travels(tensor, 1)}
    sent = b"".join(value.tobytes() for value in given.values()) + update.payload
    seen = {sent[i : i + 4] for i in range(len(sent) - 3)}
    kept = made._state.rounds.local(1)
    assert kept is not None
    for tensor in (tensor for tensor in private if factor_of(tensor)):
        assert np.array_equal(kept[tensor], private[tensor]), tensor
        assert not {number.tobytes() for number in private[tensor].reshape(-1)} & seen, tensor
