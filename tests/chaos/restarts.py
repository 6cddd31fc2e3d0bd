"""The aggregator killed and started again on its port while agents wait in AwaitRound: how soon is everybody back?

Eight clients of the agent's own kind poll from this process, and if asked up to three real `site-agent`s wait beside them. A
client is back with the first answer after the port answers again; an agent, whose poll is held for half a minute, once the
aggregator has heard it. The trap is grpc/grpc#38290: channels that never reconnect.
"""

import asyncio
import contextlib
import io
import os
import random
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aggregator.store import engine, federations
from shared import logs
from shared.adapter import Adapter
from shared.tls import TlsFiles
from site_agent.client import FederationClient
from tests.chaos import materials
from tests.integration import federation
from tests.integration.federation import Materials
from tests.support.ledgers import throwaway

CLIENTS = tuple(f"site-{number}" for number in range(8))
AGENT, *MORE_AGENTS = federation.SITES
POLL_S = 2.0
"""How long an in-process client's poll is held: what it may add to the time until its answer."""
LIMIT_S = 10.0
TIMEOUT_S = 60.0
OUTAGES_S = (0.5, 8.0, 20.0)
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
TLS_OPTIONS = ("--tls-ca", "--tls-cert", "--tls-key")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GRPC_VERBOSITY": "NONE"}


@dataclass(frozen=True, slots=True)
class Restart:
    """One restart. `back_s`: seconds from the port answering until each was back; None if one never was."""

    secure: bool
    signal: str
    outage_s: float
    back_s: dict[str, float | None]

    @property
    def is_good(self) -> bool:
        return all(seconds is not None and seconds <= LIMIT_S for seconds in self.back_s.values())


@dataclass(frozen=True, slots=True)
class Figures:
    """What a number of restarts showed."""

    restarts: tuple[Restart, ...]

    @property
    def is_good(self) -> bool:
        return all(restart.is_good for restart in self.restarts)

    def lines(self) -> list[str]:
        """Return the distribution to print."""
        rows = [f"seconds from the port answering until everybody was back (allowed {LIMIT_S:.0f})"]
        for one in self.restarts:
            back = sorted(seconds for seconds in one.back_s.values() if seconds is not None)
            shown = f"median {statistics.median(back):.2f}, last {back[-1]:.2f}" if back else "nobody"
            agents = [seconds for site, seconds in one.back_s.items() if site not in CLIENTS and seconds is not None]
            rows.append(
                f"  {'mTLS' if one.secure else 'plain':<6}{one.signal:<8} away {one.outage_s:>4.1f} s: "
                f"{len(back)} of {len(one.back_s)} back, {shown}"
                + (f", agent processes {', '.join(f'{seconds:.2f}' for seconds in sorted(agents))}" if agents else "")
                + ("" if one.is_good else "  FAILED")
            )
        return rows


def run(outages_s: Sequence[float] = OUTAGES_S, seed: int = 0) -> Figures:
    """Restart an aggregator after each of these outages, ended by either signal, plain and with mTLS; real agents wait too."""
    found: list[Restart] = []
    with tempfile.TemporaryDirectory() as folder:
        logs.configure(Path(folder) / "clients.jsonl", terminal=io.StringIO())  # the screen is for the figures
        made = materials.make(Path(folder)).made
        for secure in (False, True):
            place = Path(folder) / ("secure" if secure else "plain")
            plan = [(number, outage_s) for outage_s in outages_s for number in SIGNALS]
            found += asyncio.run(restart(place, made, plan, secure=secure, seed=seed, more_agents=MORE_AGENTS))
    return Figures(tuple(found))


async def restart(
    folder: Path,
    made: Materials,
    plan: Sequence[tuple[signal.Signals, float]],
    *,
    secure: bool,
    seed: int,
    with_agent: bool = True,
    more_agents: Sequence[str] = (),
) -> list[Restart]:
    """Serve a federation in a new folder, and end and start its aggregator once for each signal and outage of the plan.

    A real agent waits too `with_agent`, and beside it one for each of `more_agents`, which are among `federation.SITES`.
    """
    agents = (AGENT, *more_agents) if with_agent else ()
    sites = (*CLIENTS, *agents)
    store = federation.create_store(folder, made.adapter, sites)
    certificates = federation.make_certificates(folder / "certs", sites) if secure else {}
    serving = _Serving(store, folder / "aggregator.jsonl", next(materials.free_ports()), certificates.get("aggregator"))
    base_model = Adapter.read(made.adapter).manifest.metadata.base_model_sha256
    rng, found = random.Random(seed), []
    async with _running(serving), contextlib.AsyncExitStack() as stack:
        pollers = [Poller(serving.address, site, certificates.get(site), base_model) for site in CLIENTS]
        for poller in pollers:
            await stack.enter_async_context(poller.polling())
        for site in agents:
            await stack.enter_async_context(_agent(made, folder, serving.address, site, certificates.get(site)))
        await federation.arrived(store, 1, *agents)
        for number, outage_s in plan:
            await asyncio.sleep(rng.uniform(0.5, 2.5))
            await serving.end(number)
            await asyncio.sleep(outage_s)
            began, at = await serving.start()
            back = await asyncio.gather(*(poller.answered_since(began) for poller in pollers))
            back_s = dict(zip(CLIENTS, back, strict=True))
            heard = await asyncio.gather(*(_heard_since(store, site, at) for site in agents))
            back_s |= dict(zip(agents, heard, strict=True))
            found.append(Restart(secure, number.name, outage_s, back_s))
    return found


@dataclass
class Poller:
    """A site's client that polls without an end, and when its answers came (time.monotonic)."""

    address: str
    site: str
    tls: TlsFiles | None
    base_model: str
    answers: list[float] = field(default_factory=list)

    @asynccontextmanager
    async def polling(self) -> AsyncIterator[None]:
        """Join, then poll as long as the block lasts."""
        plain_site = "" if self.tls else self.site
        client = FederationClient(
            self.address, self.tls, f"agent-of-{self.site}", throwaway(), plain_site=plain_site, give_up_after_s=3600.0
        )
        await client.join(
            federation="", base_model_sha256=self.base_model, training_patients=10, software_version="chaos"
        )
        task = asyncio.create_task(self._poll(client))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await client.close()

    async def _poll(self, client: FederationClient) -> None:
        while True:
            await client.await_round(round_number=1, following="TRAIN", version=0, wait_s=POLL_S)
            self.answers.append(time.monotonic())

    async def answered_since(self, began: float) -> float | None:
        """Return how many seconds after `began` the first answer came; None if none does."""
        for _ in range(int(TIMEOUT_S / 0.02)):
            after = next((at for at in self.answers if at > began), None)
            if after is not None:
                return after - began
            await asyncio.sleep(0.02)
        return None


@dataclass
class _Serving:
    """`aggregator serve` on one port, over and over."""

    store: str
    log: Path
    port: int
    tls: TlsFiles | None
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> tuple[float, float]:
        """Start it; return when its port answered, as time.monotonic and time.time."""
        command = [federation.program("aggregator"), "serve", "--store", self.store, "--listen", self.address]
        command += ["--log", str(self.log)]
        if self.tls is None:
            command += ["--plain"]
        else:
            files = (self.tls.ca, self.tls.certificate, self.tls.key)
            command += [str(part) for pair in zip(TLS_OPTIONS, files, strict=True) for part in pair]
        silent = subprocess.DEVNULL
        self.process = await asyncio.to_thread(subprocess.Popen, command, env=ENVIRONMENT, stdout=silent, stderr=silent)
        for _ in range(int(TIMEOUT_S / 0.01)):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return time.monotonic(), time.time()
            await asyncio.sleep(0.01)
        raise TimeoutError(f"the aggregator does not answer on {self.address}; see {self.log}")

    async def end(self, number: signal.Signals) -> None:
        """Send the signal; return once the process is gone."""
        if self.process is not None:
            self.process.send_signal(number)
            await asyncio.to_thread(self.process.wait, TIMEOUT_S)


@asynccontextmanager
async def _running(serving: _Serving) -> AsyncIterator[None]:
    await serving.start()
    try:
        yield
    finally:
        await serving.end(signal.SIGKILL)


@asynccontextmanager
async def _agent(made: Materials, folder: Path, address: str, site: str, tls: TlsFiles | None) -> AsyncIterator[None]:
    """Run a real agent as long as the block lasts: it trains its round, uploads, and waits for the others."""
    changes = {"tls": tls} if tls else {}
    config = federation.site_config(
        made, folder, address, site, log=folder / f"{site}.jsonl", give_up_after_s=600.0, **changes
    )
    command = [federation.program("site-agent"), *(str(part) for part in federation.agent_arguments(config))]
    silent = subprocess.DEVNULL
    process = await asyncio.to_thread(subprocess.Popen, command, env=ENVIRONMENT, stdout=silent, stderr=silent)
    try:
        yield
    finally:
        process.kill()
        await asyncio.to_thread(process.wait, TIMEOUT_S)


async def _heard_since(store: str, site: str, at: float) -> float | None:
    """Return how many seconds after `at` (time.time) the aggregator heard of a site's agent; None if it does not."""
    opened = engine.open_store(store)
    try:
        for _ in range(int(TIMEOUT_S / 0.05)):
            state = await asyncio.to_thread(opened.read, federations.state, federation.NAME)
            if state.sites[site].last_seen > at:
                return state.sites[site].last_seen - at
            await asyncio.sleep(0.05)
        return None
    finally:
        opened.close()
