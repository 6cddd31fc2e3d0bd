"""The agent's loop: join, await, fetch, train, evaluate, upload, and again, for months.

What is on disk decides what happens next, so an agent killed anywhere goes on where it was: a finished round waits in the
outbox until its receipt has come, an unfinished one is trained again from the same start with the same result.
"""

import asyncio
import importlib.metadata
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import structlog
import torch

from shared.adapter import Adapter
from shared.canonical import canonical_json, write_atomically
from shared.contract import ALLOWED_METRICS
from shared.errors import InputError, MedDualLoRAError, StaleRound
from shared.protocol import MAX_WAIT_S
from site_agent import egress
from site_agent.client import FederationClient, Joined, Task
from site_agent.config import SiteConfig
from site_agent.data.cohort import CLASS_NAMES, Cohort
from site_agent.egress import UpdateFacts
from site_agent.models import weights
from site_agent.state import State
from site_agent.training import local
from site_agent.training.site import SiteTrainer, Trained, load_base
from site_agent.view import View

log = structlog.get_logger()
HEARTBEAT_S = 20.0
REPORT = "report.json"


class Evicted(MedDualLoRAError):
    """The coordinator took this site out of the federation."""


@dataclass
class Phases:
    """Seconds spent in each phase, for the breakdown that the demo prints."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, began: float) -> None:
        """Add the time since `began` (monotonic) to a phase."""
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began


class Agent:
    """One site's agent. `run` ends when the federation is finished, or with Stopped when `stop` was called."""

    def __init__(self, config: SiteConfig, view: View) -> None:
        self._config, self._view = config, view
        self._state = State(config.state)
        self._client = FederationClient(
            config.aggregator,
            config.tls,
            self._state.agent_id,
            plain_site=config.plain_site,
            give_up_after_s=config.give_up_after_s,
        )
        self._stopping = threading.Event()
        self._leave = asyncio.Event()
        self._abandoned = threading.Event()
        self._phases = Phases()
        self._progress = 0.0
        self._busy_with: Task | None = None

    def stop(self) -> None:
        """Ask the agent to leave: training ends at the next step; nothing that is on disk is lost."""
        self._stopping.set()
        self._leave.set()

    async def run(self, *, once: bool) -> None:
        """Take part; with `once` until the federation is finished, else until stopped.

        Raises asyncio.CancelledError after `stop`, and whatever the aggregator or the input was refused with.
        """
        try:
            async with asyncio.TaskGroup() as group:
                main = group.create_task(self._take_part(once))
                beside = [group.create_task(w) for w in (self._cancel_when_stopped(main), self._heartbeat())]
                main.add_done_callback(lambda _: [task.cancel() for task in beside])
        except* MedDualLoRAError as errors:
            raise errors.exceptions[0] from None
        finally:
            self._stopping.set()  # a thread that still trains ends at its next step
            await self._client.close()
            self._state.close()
        if main.cancelled():  # a task group takes a cancelled task for a finished one
            raise asyncio.CancelledError

    async def _cancel_when_stopped(self, main: asyncio.Task[Any]) -> None:
        await self._leave.wait()
        main.cancel()

    async def _take_part(self, once: bool) -> None:
        joined, trainer = await self._join()
        following, round_number, version, reported = "UNSPECIFIED", 0, 0, ""
        while True:
            began = time.monotonic()
            self._busy_with = None
            task = await self._client.await_round(
                round_number=round_number, following=following, version=version, wait_s=MAX_WAIT_S
            )
            self._busy_with = task
            self._phases.add("waiting", began)
            self._view.task(task)
            following, round_number = task.instruction, task.round
            if task.instruction == "TRAIN":
                version = task.version
                await self._do_round(joined, trainer, task)
                following = "WAIT"
            elif task.instruction == "FINISHED":
                if reported != task.digest:
                    await self._finish(joined, trainer, task)
                    reported = task.digest
                if once:
                    return
                await asyncio.sleep(MAX_WAIT_S)  # FINISHED is answered at once; the coordinator may still roll back
            elif task.instruction == "EVICTED":
                raise Evicted(f"the coordinator evicted this site: {task.reason or 'no reason given'}")

    async def _join(self) -> tuple[Joined, SiteTrainer]:
        """Load the base model, join, and get the site's data ready for the first round."""
        config = self._config
        began = time.monotonic()
        first = await asyncio.to_thread(_first_look, config)
        joined = await self._client.join(
            federation=config.federation,
            base_model_sha256=first.base_model_sha256,
            training_patients=first.training_patients,
            software_version=importlib.metadata.version("med-duallora"),
        )
        self._state.bind(joined.contract)
        self._busy_with = Task("UNSPECIFIED", 0, 0, "", 0.0, "")
        structlog.contextvars.bind_contextvars(site=joined.site, federation=joined.contract.federation)
        self._view.joined(joined, config)
        trainer = await asyncio.to_thread(_trainer, config, joined, first.cohort)
        self._phases.add("starting", began)
        began = time.monotonic()
        held = await asyncio.to_thread(trainer.warm_up, self._stopping.is_set)
        self._phases.add("activations", began)
        log.info("activations_ready", bytes=held, duration_s=round(time.monotonic() - began, 3))
        return joined, trainer

    async def _do_round(self, joined: Joined, trainer: SiteTrainer, task: Task) -> None:
        """Bring one round to its receipt, from wherever it stands."""
        finished = self._state.finished_round(task.round)
        if finished is None or finished.update.facts.base_version != task.version:
            received = await self._fetch(joined, task)
            local_before = self._state.local_adapter(task.round) or trainer.initial_local()
            await self._evaluate(trainer, received, local_before, task.round - 1)
            if not await self._train(joined, trainer, task, received, local_before):
                return
            finished = self._state.finished_round(task.round)
        assert finished is not None
        if finished.accepted:
            return
        began = time.monotonic()
        try:
            await self._client.upload(finished.update)
        except StaleRound as error:
            log.warning("update_too_late", round=task.round, error=str(error))
            return
        self._state.mark_accepted(finished.update)
        self._phases.add("uploading", began)
        log.info("update_accepted", round=task.round, bytes=len(finished.update.payload), digest=finished.update.digest)
        self._view.uploaded(task.round, len(finished.update.payload))

    async def _fetch(self, joined: Joined, task: Task) -> Adapter:
        began = time.monotonic()
        held = self._state.global_adapter()
        adapter = await self._client.fetch(joined.contract.manifest, task, held)
        if held is None or held.digest != adapter.digest:
            self._state.store_global(adapter)
        self._phases.add("fetching", began)
        return adapter

    async def _initial(self, joined: Joined) -> Adapter:
        """Return version 0; a site that joined late has not had it yet."""
        held = self._state.initial_adapter()
        if held is None:
            task = Task("FINISHED", 0, 0, joined.contract.adapter_digest, 0.0, "")
            held = await self._client.fetch(joined.contract.manifest, task, None)
            self._state.store_initial(held)
        return held

    async def _train(
        self,
        joined: Joined,
        trainer: SiteTrainer,
        task: Task,
        received: Adapter,
        local_before: dict[str, np.ndarray],
    ) -> bool:
        """Train in a thread, seal, commit. False if the round was abandoned meanwhile."""
        began = time.monotonic()
        self._progress = 0.0
        self._abandoned.clear()
        hooks = local.Hooks(on_step=self._on_step, should_stop=self._should_stop)
        try:
            trained: Trained = await asyncio.to_thread(trainer.train, task.round, received, local_before, hooks)
        except local.Stopped:
            log.info("round_abandoned", round=task.round)
            return False
        facts = UpdateFacts(
            round=task.round,
            base_version=received.version,
            training_patients=trainer.training_patients,
            metrics=trained.metrics,
        )
        update = egress.seal(received, trained.global_tensors, trainer.recipe, facts, joined.contract.policy.invited)
        self._state.commit(update, trained.local_tensors)
        self._phases.add("training", began)
        log.info("round_trained", round=task.round, duration_s=round(time.monotonic() - began, 3), **trained.metrics)
        return True

    def _on_step(self, step: int, steps: int, optimiser: Any) -> None:
        del optimiser
        self._progress = step / steps
        self._view.step(step, steps)

    def _should_stop(self) -> bool:
        return self._stopping.is_set() or self._abandoned.is_set()

    async def _heartbeat(self) -> None:
        """Tell the aggregator every 20 s that the agent is alive, whatever it is busy with; hear if its round is over."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if (task := self._busy_with) is None:
                continue  # the loop itself is asking
            answer = await self._client.await_round(
                round_number=task.round,
                following=task.instruction,
                version=task.version,
                wait_s=0,
                progress=self._progress,
            )
            if answer.instruction in ("ABANDON", "EVICTED", "FINISHED"):
                self._abandoned.set()

    async def _evaluate(
        self, trainer: SiteTrainer, adapter: Adapter, local_now: dict[str, np.ndarray], round_number: int
    ) -> None:
        """Judge a version with the site's own local part on the validation cases, keep it, report the allowed figures."""
        if adapter.version == 0:
            return
        began = time.monotonic()
        figures = await asyncio.to_thread(trainer.validate, adapter, local_now)
        self._phases.add("evaluating", began)
        if not figures:
            return
        self._state.append_history({"version": adapter.version, "round": round_number, "validation": _finite(figures)})
        reported = {"auc": figures["auc"], **figures["at_validation"]}
        reported = {k: v for k, v in reported.items() if k in ALLOWED_METRICS and np.isfinite(v)}
        await self._client.report_evaluation(round_number, adapter.version, figures["n"], reported)
        log.info("version_evaluated", version=adapter.version, round=round_number, cases=figures["n"], **reported)
        self._view.evaluated(adapter.version, figures)

    async def _finish(self, joined: Joined, trainer: SiteTrainer, task: Task) -> None:
        """Fetch the last version, judge it, compare the arms, write the site's own report."""
        final = await self._fetch(joined, task)
        local_now = self._state.local_adapter(task.round + 1) or trainer.initial_local()
        await self._evaluate(trainer, final, local_now, task.round)
        began = time.monotonic()
        self._view.comparing()
        initial = await self._initial(joined)
        hooks = local.Hooks(should_stop=self._stopping.is_set, on_step=self._on_step)  # an abandoned round is past
        compared = await asyncio.to_thread(trainer.compare_arms, initial, final, local_now, hooks)
        self._phases.add("comparing", began)
        report = {
            "site": joined.site,
            "federation": joined.contract.federation,
            "rounds": joined.contract.policy.rounds,
            **trainer.facts(),
            "adapter": {
                "version": final.version,
                "digest": final.digest,
                "parameters": final.manifest.layout.parameters,
                "bytes": final.manifest.layout.size,
            },
            "arms": compared,
            "history": self._state.history(),
            "phases_s": {k: round(v, 3) for k, v in sorted(self._phases.seconds.items())},
        }
        write_atomically(self._state.folder / REPORT, canonical_json(_finite(report)))
        log.info("federation_finished", version=final.version, digest=final.digest, **_rounded(self._phases))
        self._view.finished(report)


@dataclass(frozen=True, slots=True)
class _FirstLook:
    base_model_sha256: str
    cohort: Cohort
    training_patients: int


def _first_look(config: SiteConfig) -> _FirstLook:
    """Read what Join must say: which base model lies here and how many patients there are to train on."""
    torch.set_num_threads(config.threads)
    cohort = Cohort.load(config.cohort)
    training = cohort.train(without_fold=config.validation_fold)
    for label, name in enumerate(CLASS_NAMES):
        if all(case.label != label for case in training):
            raise InputError(
                f"empty class: no {name} case (label {label}) is left in {config.cohort} outside validation fold "
                f"{config.validation_fold}; set another validation_fold, or prepare more cases"
            )
    loaded = load_base(config.weights, config.weights_size, "stacked", warn=False)
    return _FirstLook(weights.base_model_sha256(loaded.model), cohort, len(training))


def _trainer(config: SiteConfig, joined: Joined, cohort: Cohort) -> SiteTrainer:
    frames: Any = joined.contract.manifest.metadata.frames
    loaded = load_base(config.weights, config.weights_size, frames)
    return SiteTrainer(config, joined.site, joined.contract, loaded, cohort)


def _rounded(phases: Phases) -> dict[str, float]:
    return {f"{name}_s": round(value, 3) for name, value in sorted(phases.seconds.items())}


def _finite(value: Any) -> Any:
    """Replace NaN (an AUC without both classes) by None: reports are strict JSON."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
