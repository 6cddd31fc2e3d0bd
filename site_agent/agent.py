"""The agent's loop: join, await, fetch, train, evaluate, upload, and again, for months.

What is on disk decides what happens next, so an agent killed anywhere goes on where it was: a finished round waits in the
outbox until its receipt has come, an unfinished one goes on from its last checkpoint, with the same result.
"""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np
import structlog

from shared.adapter import Adapter
from shared.canonical import canonical_json, write_atomically
from shared.contract import Contract, tells_arms
from shared.errors import (
    ConflictingUpdate,
    ContractMismatch,
    MedDualLoRAError,
    NotFound,
    StaleRound,
)
from shared.protocol import MAX_WAIT_S
from site_agent import disk, egress, report, starting
from site_agent.certificate import OwnCertificate
from site_agent.client import FederationClient, Joined, Task
from site_agent.config import SiteConfig
from site_agent.consent import ConsentWithheld, ContractChanged
from site_agent.egress import Update, UpdateFacts
from site_agent.filling import Filling
from site_agent.heartbeat import STARTING, Heartbeat
from site_agent.ledger import LEDGER, Ledger
from site_agent.local_rounds import LocalRound
from site_agent.membership import Membership
from site_agent.permission import Permission
from site_agent.privacy.budget import Budget
from site_agent.repeats import Repeats
from site_agent.report import CASES, REPORT, Phases
from site_agent.round_files import Tensors
from site_agent.starting import Beginning
from site_agent.state import PRIVATE, TRAINING, State
from site_agent.training import evaluate, local
from site_agent.training.checkpoint import Checkpoints
from site_agent.training.parallel import ALONE, Group
from site_agent.training.site import SiteTrainer
from site_agent.versions import Versions
from site_agent.view import View

log = structlog.get_logger()
T = TypeVar("T")
HEARTBEAT_S = 20.0


class Evicted(MedDualLoRAError):
    """The coordinator took this site out of the federation."""


class Agent:
    """One site's agent. `run` ends when the federation is finished, or with Stopped when `stop` was called.

    Of a group of processes it is number 0; the others follow its trainer.
    """

    def __init__(self, config: SiteConfig, view: View, group: Group = ALONE) -> None:
        self._config, self._view = config, view
        self._state = State(config.state, view.warned)
        self._checkpoints = Checkpoints(
            self._state.folder / TRAINING, config.checkpoint_s, self._state.infirmary, view.warned
        )
        self._ledger = Ledger(self._state.folder / LEDGER)
        self._certificate = OwnCertificate(config.tls, view)
        self._client = FederationClient(
            config.aggregator,
            config.tls,
            self._state.agent_id,
            self._ledger,
            plain_site=config.plain_site,
            give_up_after_s=config.give_up_after_s,
            call_timeout_s=config.call_timeout_s,
            durably=self._write,
            may_send=lambda number, size: self._permission.may_send(number, size),
            advice=self._certificate.advice,
            say=view.warned,
        )
        self._heartbeat = Heartbeat(self._client, self._certificate)
        self._versions = Versions(self._client, self._state, self._write)
        self._permission = Permission(config, self._state, self._ledger, view, self._heartbeat, self._write)
        self._membership = Membership(
            config, self._client, self._state, self._permission, self._certificate, view, group
        )
        self._budget = Budget(self._state.folder, self._ledger, self._write, view.warned)
        self._stopping = threading.Event()
        self._leave = asyncio.Event()
        self._phases = Phases()
        self._filling = Filling(view)
        self._repeats = Repeats(random.Random(self._state.agent_id))
        self._kept = self._reported = ""
        """The round (`_name`) whose update a person keeps here, and the digest of the version that the report is about."""

    def stop(self) -> None:
        """Ask the agent to leave: training ends at the next step, with a checkpoint."""
        self._stopping.set()
        self._leave.set()

    async def run(self, *, once: bool) -> None:
        """Take part; with `once` until the federation is finished, else until stopped.

        Raises asyncio.CancelledError after `stop`, and whatever the aggregator or the input was refused with.
        """
        try:
            async with asyncio.TaskGroup() as group:
                main = group.create_task(self._take_part(once))
                beside = [group.create_task(w) for w in (self._cancel_when_stopped(main), self._heartbeat.run())]
                main.add_done_callback(lambda _: [task.cancel() for task in beside])
        except* MedDualLoRAError as errors:
            raise errors.exceptions[0] from None
        finally:
            self._stopping.set()  # a thread that still trains ends at its next step
            self._filling.stop()
            await self._client.close()
            self._ledger.close()
            self._state.close()
        if main.cancelled():  # a task group takes a cancelled task for a finished one
            raise asyncio.CancelledError

    async def _cancel_when_stopped(self, main: asyncio.Task[Any]) -> None:
        await self._leave.wait()
        main.cancel()

    async def _take_part(self, once: bool) -> None:
        """Take part in whatever the site consents to, joining again when the aggregator is not as it was."""
        joined, trainer = await self._join()
        while True:
            try:
                return await self._follow(joined, trainer, once)
            except (ContractChanged, ContractMismatch, NotFound) as error:
                self._heartbeat.task = None
                await self._filling.leave_off()
                await self._membership.pause(error)
                joined, trainer = await self._join()

    async def _follow(self, joined: Joined, trainer: SiteTrainer, once: bool) -> None:
        """Do what the aggregator says, one instruction after the other."""
        following, round_number, version = "UNSPECIFIED", 0, 0
        while True:
            began = time.monotonic()
            self._heartbeat.task = None
            self._filling.begin(trainer, round_number + 1)
            task = await self._client.await_round(
                round_number=round_number,
                following=following,
                version=version,
                wait_s=MAX_WAIT_S,
                hold=self._heartbeat.held_by,
            )
            self._heartbeat.task, self._heartbeat.progress = task, 0.0
            filled_s = await self._filling.leave_off()
            self._phases.add("waiting", began)
            self._phases.move("waiting", "activations", filled_s)
            self._view.task(task)
            if self._kept != _name(task):
                self._heartbeat.let_go("KEPT")
            following, round_number = task.instruction, task.round
            if task.instruction == "TRAIN":
                version = task.version
                if self._kept == _name(task):
                    continue  # nothing of this round leaves; asked like this, the aggregator answers when it is over
                await self._repeats.hesitate(task)
                try:
                    await self._client.keep_to_contract()
                    await self._do_round(joined, trainer, task)
                    following = "TRAIN" if self._kept == _name(task) else "WAIT"
                except ConsentWithheld as error:
                    await self._permission.withhold(error)
                    following = "UNSPECIFIED"
            elif task.instruction == "FINISHED":
                if self._reported != task.digest:
                    try:
                        await self._client.keep_to_contract()
                        await self._finish(joined, trainer, task, stays=not once)
                    except ConsentWithheld as error:
                        await self._permission.withhold(error)
                        continue
                    self._reported = task.digest
                if once:
                    return
                await asyncio.sleep(MAX_WAIT_S)  # FINISHED is answered at once; the coordinator may still roll back
            elif task.instruction == "EVICTED":
                raise Evicted(f"the coordinator evicted this site: {task.reason or 'no reason given'}")

    async def _join(self) -> tuple[Joined, SiteTrainer]:
        """Join, and put model and data together."""
        began = time.monotonic()
        joined = await self._membership.join()
        self._heartbeat.task = STARTING
        trainer = await self._membership.trainer(joined)
        self._phases.add("starting", began)
        return joined, trainer

    async def _do_round(self, joined: Joined, trainer: SiteTrainer, task: Task) -> None:
        """Bring one round to its receipt, from wherever it stands."""
        rounds = self._state.rounds
        finished = rounds.find(task.round)
        fresh = finished is None or not _is_what_is_asked(finished, task)
        if fresh:
            await self._settle(before_round=task.round)
            received = await self._fetch(joined.contract, trainer, task)
            await self._budget.plan(joined.contract, trainer, task.round, received)
            local_before = self._begin(trainer, task.round, received).local
            await self._evaluate(trainer, received, local_before, task.round - 1)
            if not await self._train(joined, trainer, task, received, local_before):
                return
            finished = rounds.find(task.round)
        if finished is not None:  # else it was damaged meanwhile, and set aside: the aggregator asks for it again
            self._checkpoints.clear()
            await self._send(finished.update, fresh)
            if self._permission.is_withheld(finished.update):
                self._kept = _name(task)
                self._heartbeat.hold("KEPT")

    async def _settle(self, before_round: int) -> None:
        """Ask for the receipts of updates that were on their way when the agent was killed, and note them."""
        for earlier in self._state.rounds.unsettled(before_round):
            try:
                await self._send(earlier.update)
            except ConsentWithheld as error:  # its round is over: it stays, and stops nothing
                log.warning("update_too_late", round=earlier.number, error=str(error))
                await self._write(partial(self._state.rounds.mark, earlier.number, "refused"))

    async def _send(self, update: Update, fresh: bool = False) -> None:
        """Bring an update to its receipt, or learn that it will never count.

        One that is not `fresh` may have arrived before: it costs one call to learn that, and no bytes.
        """
        began, number = time.monotonic(), update.facts.round
        await self._budget.forget(number)
        if not await self._permission.may_leave(update, lambda: self._heartbeat.is_asked(number)):
            await self._write(lambda: self._state.rounds.mark(number, "refused"))
            return
        try:
            await self._client.upload(update, fresh=fresh)
        except (StaleRound, ConflictingUpdate, NotFound) as error:
            log.warning("update_too_late", round=number, error=str(error))
            await self._write(lambda: self._state.rounds.mark(number, "refused"))
            return
        await self._write(lambda: self._state.rounds.mark(number, "accepted"))
        self._phases.add("uploading", began)
        log.info("update_accepted", round=number, bytes=len(update.payload), digest=update.digest)
        self._view.uploaded(number, len(update.payload))

    def _begin(self, trainer: SiteTrainer, number: int, received: Adapter) -> Beginning:
        return starting.beginning(self._state.rounds, trainer, number, received)

    async def _write(self, write: Callable[[], T]) -> T:
        """Write to the state folder, however long its disk is full."""

        def full(words: str) -> None:
            self._heartbeat.hold("DISK")
            self._view.warned(words)

        try:
            return await disk.keep_trying(write, self._state.folder, full)
        finally:
            self._heartbeat.let_go("DISK")

    async def _fetch(self, contract: Contract, trainer: SiteTrainer, task: Task) -> Adapter:
        began = time.monotonic()
        adapter = await self._versions.get(contract, trainer, task)
        self._phases.add("fetching", began)
        return adapter

    async def _train(
        self,
        joined: Joined,
        trainer: SiteTrainer,
        task: Task,
        received: Adapter,
        local_before: dict[str, np.ndarray],
    ) -> bool:
        """Train in a thread, seal, commit. False if the round was abandoned meanwhile. Under differential privacy it is paid for
        first."""
        began = time.monotonic()
        self._heartbeat.progress = 0.0
        self._heartbeat.abandoned.clear()
        beginning = self._begin(trainer, task.round, received)
        hooks = self._hooks(trainer, self._should_stop)
        await self._permission.window(lambda: self._heartbeat.is_asked(task.round))
        if self._heartbeat.abandoned.is_set():
            return self._abandon(task)
        stream = await self._budget.pay()
        while True:
            try:
                trained = await self._to_its_end(
                    lambda: trainer.train(task.round, received, local_before, hooks, self._checkpoints, stream)
                )
                break
            except local.Stopped:
                if self._heartbeat.abandoned.is_set() or self._stopping.is_set():
                    return self._abandon(task)
                # the training window closed: it goes on from the checkpoint in the next one
                await self._permission.window(lambda: self._heartbeat.is_asked(task.round))
        facts = UpdateFacts(
            round=task.round,
            base_version=received.version,
            training_patients=trainer.training_patients,
            metrics=self._config.agreed.may_leave(trained.metrics),
        )
        update, owed = egress.seal(
            received,
            trained.global_tensors,
            trainer.recipe,
            facts,
            joined.contract.policy.invited,
            beginning.residual,
            canonical_json([trainer.seed, task.round]),
        )
        local_now = self._finite(task.round, trained.local_tensors, local_before)
        await self._write(lambda: self._state.rounds.commit(update, local_now, beginning.start, owed))
        self._checkpoints.clear()
        self._phases.add("training", began)
        took = {} if trainer.recipe.dp_noise else {"duration_s": round(time.monotonic() - began, 3)}
        log.info("round_trained", round=task.round, **took, **trained.metrics)
        return True

    def _finite(self, number: int, trained: Tensors, before: Tensors) -> Tensors:
        """Return the local part as a round left it; as it was before where that holds what is no number: no round could begin
        with it."""
        name = next((name for name in sorted(trained) if not np.isfinite(trained[name]).all()), None)
        if name is None:
            return trained
        reason, fallback = f"tensor {name} is not finite", "the local part stays as it was before the round"
        log.warning("local_part_not_finite", round=number, reason=reason, fallback=fallback)
        self._view.warned(
            f"round {number}: {reason} after training; {fallback}, and the update leaves all the same. If it happens again, ask "
            "the coordinator for a smaller lr_local"
        )
        return before

    def _abandon(self, task: Task) -> bool:
        if self._heartbeat.abandoned.is_set():
            self._checkpoints.clear()
        log.info("round_abandoned", round=task.round)
        return False

    async def _to_its_end(self, work: Callable[[], T]) -> T:
        """Run in a thread. If the agent is to leave meanwhile, it stays until the thread has stopped: it writes checkpoints,
        and the state folder is let go only when nobody writes to it."""
        running = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self._stopping.set()
            await asyncio.wait([running])
            running.exception()  # Stopped, most likely: looked at, so that nobody reports it as forgotten
            raise

    def _hooks(self, trainer: SiteTrainer, should_stop: Callable[[], bool]) -> local.Hooks:
        """What training is watched by. Under differential privacy heartbeats do not say how far it is: how long a step takes tells
        how many patients were drawn."""
        on_step = self._on_unsaid_step if trainer.recipe.dp_noise else self._on_step
        return local.Hooks(on_step=on_step, should_stop=should_stop)

    def _on_step(self, step: int, steps: int, optimiser: Any) -> None:
        del optimiser
        self._heartbeat.progress = step / steps
        self._view.step(step, steps)

    def _on_unsaid_step(self, step: int, steps: int, optimiser: Any) -> None:
        del optimiser
        self._view.step(step, steps)

    def _should_stop(self) -> bool:
        return self._stopping.is_set() or self._heartbeat.abandoned.is_set() or not self._permission.may_train

    async def _evaluate(
        self, trainer: SiteTrainer, adapter: Adapter, local_now: dict[str, np.ndarray], round_number: int
    ) -> None:
        """Judge a version with the site's own local part on the validation cases, keep it, report the allowed figures."""
        if adapter.version == 0:
            return
        began = time.monotonic()
        judged = await asyncio.to_thread(trainer.validate, adapter, local_now)
        self._phases.add("evaluating", began)
        if not judged.own:
            return
        entry = {"version": adapter.version, "round": round_number, "validation": report.finite(judged.own)}
        await self._write(lambda: self._state.append_history(entry))
        self._view.evaluated(adapter.version, judged.own)
        if trainer.recipe.dp_noise:
            log.info("version_evaluated", version=adapter.version, round=round_number)
            return
        reported, cases = self._config.agreed.may_leave(judged.reportable), judged.own["n"]
        await self._client.report_evaluation(round_number, adapter.version, cases, reported)
        log.info("version_evaluated", version=adapter.version, round=round_number, cases=cases, **reported)

    async def _finish(self, joined: Joined, trainer: SiteTrainer, task: Task, *, stays: bool) -> None:
        """Fetch the last version, judge it, compare the arms, write the site's own report."""
        await self._settle(before_round=task.round + 1)
        final = await self._fetch(joined.contract, trainer, task)
        local_now = self._begin(trainer, task.round + 1, final).local
        await self._evaluate(trainer, final, local_now, task.round)
        await self._permission.window(lambda: True)
        began = time.monotonic()
        self._view.comparing()
        initial = await self._versions.initial(joined.contract, trainer)
        hooks = self._hooks(trainer, self._stopping.is_set)  # an abandoned round is past
        compared = await asyncio.to_thread(trainer.compare_arms, initial, final, local_now, hooks)
        self._phases.add("comparing", began)
        made = report.finite(report.make(joined, trainer, final, compared, self._state.history(), self._phases))
        scores = compared.scores.to_csv()
        await self._write(lambda: write_atomically(self._state.folder / CASES, scores, PRIVATE))
        await self._write(lambda: write_atomically(self._state.folder / REPORT, canonical_json(made), PRIVATE))
        await self._tell_arms(joined.contract, compared.figures, task.round, final.version)
        log.info("federation_finished", version=final.version, digest=final.digest, **self._phases.rounded("_s"))
        self._view.finished(made, self._state.folder, stays=stays)

    async def _tell_arms(
        self, contract: Contract, compared: Mapping[str, Any], round_number: int, version: int
    ) -> None:
        """Report the allowed figures of the four models on held-out cases, if this site and the recipe let them leave."""
        if not self._config.agreed.arms or not tells_arms(contract.recipe):
            return
        for arm, of_sets in compared.items():
            if figures := of_sets.get("test"):
                told = self._config.agreed.may_leave(evaluate.reportable(figures))
                await self._client.report_evaluation(round_number, version, figures["n"], told, arm)
                log.info("arm_reported", arm=arm, version=version, round=round_number, cases=figures["n"], **told)


def _name(task: Task) -> str:
    """Name a round: a number alone does not, since another version may be given for it."""
    return f"{task.round} {task.digest}"


def _is_what_is_asked(finished: LocalRound, task: Task) -> bool:
    """Return whether a finished round was trained from the version that the task names; if not, say what differs.

    A number alone does not name a version: an aggregator whose store was restored from a backup gives it again.
    """
    held = finished.update.facts.base_version, finished.start.received
    if held == (task.version, task.digest):
        return True
    log.warning(
        "finished_round_replaced",
        round=task.round,
        held_version=held[0],
        asked_version=task.version,
        held_digest=held[1],
        asked_digest=task.digest,
    )
    return False
