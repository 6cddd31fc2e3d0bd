"""`site-agent --aggregator host:port`: the agent itself, the only command without a name."""

import _thread
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from site_agent.cli import settings

if TYPE_CHECKING:
    from site_agent.training.launch import Launch
    from site_agent.training.parallel import Group

LEAVES_WITHIN_S = 20.0
"""After a signal. A pass over many cases may take longer than that to notice; nothing is lost by not waiting for it, because
whatever is on disk is whole at any instant."""
STOPPED = 130
STOPPED_SAFELY = "site-agent: stopped; started again, it goes on from here"
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass
class Leaving:
    """Hears SIGTERM and SIGINT on a thread of its own: the process ends in time whatever its other threads hang on.

    Those have both signals blocked, for the rest of the process: a thread that waits for a file server that is away would
    be handed the signal and never act on it. `leave` is called on the listening thread.
    """

    leave: Callable[[], object] = _thread.interrupt_main

    def listen(self) -> None:
        """Begin to listen. There must be no other thread yet: it would not have the signals blocked."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=self._wait, name="leaving", daemon=True).start()

    def _wait(self) -> None:
        signal.sigwait(SIGNALS)
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is at its end
            self.leave()
        time.sleep(LEAVES_WITHIN_S)
        os._exit(STOPPED)


@contextlib.contextmanager
def _deaf_threads() -> Iterator[None]:
    """Threads that are started within never get a signal that is meant for the process: one of them would end it at once."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _tell_version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        from shared.protocol import VERSION

        typer.echo(f"site-agent {importlib.metadata.version('med-duallora')} (protocol {VERSION})")
        raise typer.Exit


def register(app: typer.Typer) -> None:
    """Make the agent what `site-agent` does when no command is named."""
    app.callback(invoke_without_command=True)(run)


def run(
    context: typer.Context,
    aggregator: settings.Aggregator = None,
    config: settings.Config = None,
    cohort: settings.CohortFolder = None,
    weights: settings.Weights = None,
    weights_size: settings.Size = None,
    state: settings.State = None,
    ca: settings.CA = None,
    certificate: settings.Certificate = None,
    key: settings.Key = None,
    plain_site: settings.PlainSite = None,
    cache: settings.CacheFolder = None,
    cache_mb: settings.CacheMB = None,
    cache_dtype: Annotated[str | None, typer.Option(help="How they are kept: float16, bfloat16 or float32.")] = None,
    device: settings.Device = None,
    precision: settings.Precision = None,
    threads: settings.Threads = None,
    seed: Annotated[int | None, typer.Option(help="Seed of this site's local adapter and order of cases.")] = None,
    validation_fold: settings.Fold = None,
    give_up_after_s: Annotated[float | None, typer.Option(help="Longest outage to sit out, seconds.")] = None,
    call_timeout_s: Annotated[
        float | None, typer.Option(help="Longest silence in a call before it is made again.")
    ] = None,
    checkpoint_s: Annotated[float | None, typer.Option(help="Seconds of training between two checkpoints.")] = None,
    log: Annotated[Path | None, typer.Option(help="Append JSON log lines to this file.")] = None,
    once: Annotated[bool, typer.Option(help="End with the federation instead of waiting for the next.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print all settings as TOML, and end.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version, and end.")
    ] = False,
) -> None:
    """Take part in a federation: join, await, fetch, train, evaluate, upload - for months, through restarts and outages.

    Example: site-agent --aggregator fed.example.org:443 --config site.toml
    On several GPUs: torchrun --standalone --nproc-per-node 4 --no-python -- site-agent --aggregator ... --config site.toml
    """
    del version
    if context.invoked_subcommand is not None:
        return
    with _deaf_threads():  # reading them loads numpy, whose BLAS starts some
        found = settings.read(
            config,
            ca,
            certificate,
            key,
            aggregator=aggregator,
            cohort=cohort,
            weights=weights,
            weights_size=weights_size,
            state=state,
            plain_site=plain_site,
            cache=cache,
            cache_mb=cache_mb,
            cache_dtype=cache_dtype,
            device=device,
            precision=precision,
            threads=threads,
            seed=seed,
            validation_fold=validation_fold,
            give_up_after_s=give_up_after_s,
            call_timeout_s=call_timeout_s,
            checkpoint_s=checkpoint_s,
            log=log,
        )
    if print_config:
        typer.echo(found.to_toml(), nl=False)
        return
    _serve(found, once)


def _serve(config: Any, once: bool) -> None:
    """Run the agent until the federation is finished, or a signal asks it to leave; under torchrun it is process 0 of several."""
    leaving = Leaving()
    leaving.listen()

    from site_agent.training.launch import Launch

    with _group(Launch.of(os.environ)) as group:
        if group.rank == 0:
            _take_part(config, once, leaving, group)
        else:
            _follow(config, leaving, group)


@contextlib.contextmanager
def _group(launch: "Launch | None") -> Iterator["Group"]:
    """Yield the site's processes when all are there; at the end of process 0 the others are let go."""
    from site_agent.training.parallel import ALONE

    if launch is None:
        yield ALONE
        return
    if launch.local_size == launch.size:  # nobody outside this machine has any business with them
        names = [name for _, name in socket.if_nameindex()]
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if "lo" in names else "lo0")
    from site_agent.training.processes import Processes

    processes = Processes(launch)
    try:
        yield processes
    finally:
        processes.end()


def _take_part(config: Any, once: bool, leaving: Leaving, group: "Group") -> None:
    import asyncio
    import sys

    import structlog

    from shared import logs
    from shared.errors import InputError, MedDualLoRAError
    from site_agent import enrolment, view

    if config.tls and (enrolled := enrolment.take_answer(config.tls)):
        typer.echo(f"site-agent: took the coordinator's answer; this is site {enrolled.holder.site}", err=True)
        typer.echo(f"{enrolled.to_compare}\ncompare the CA's with the coordinator by telephone", err=True)
    from site_agent.agent import Agent

    logs.configure(config.log or (config.state / "agent.jsonl" if sys.stderr.isatty() else None), side="site")
    shown = view.for_stream(log_is_a_file=config.log is not None)
    agent = Agent(config, shown, group)

    async def until_done() -> None:
        loop = asyncio.get_running_loop()
        leaving.leave = lambda: loop.call_soon_threadsafe(agent.stop)
        await agent.run(once=once)

    log = structlog.get_logger()
    try:
        asyncio.run(until_done())
        return
    except asyncio.CancelledError:
        log.info("agent_stopped", exit_code=STOPPED)
    except MedDualLoRAError as error:
        # what is wrong with an input may name a patient's file: that is for the screen alone
        said = {} if isinstance(error, InputError) else {"error": str(error)}
        log.error("agent_refused", reason=type(error).__name__, **said)
        raise
    finally:
        shown.close()
    typer.echo(STOPPED_SAFELY, err=True)
    raise typer.Exit(STOPPED)


def _follow(config: Any, leaving: Leaving, group: "Group") -> None:
    """Do what process 0 says. A signal reaches that one too, and it ends all of them between two steps."""
    from shared import logs
    from site_agent.training import orders
    from site_agent.training.parallel import ProcessLost

    asked = threading.Event()
    leaving.leave = asked.set
    logs.configure(config.log, side="site", process=group.rank)
    try:
        orders.follow(config, group)
    except ProcessLost:
        if not asked.is_set():
            raise
    if asked.is_set():
        raise typer.Exit(STOPPED)
