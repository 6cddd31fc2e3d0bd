"""A whole federation that takes seconds: a random backbone of a few thousand numbers, phantom cohorts of a dozen cases through
the real `phantom` and `prepare`, a real aggregator, real agents.
"""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aggregator import certificates, setup
from aggregator.store import engine, federations
from aggregator.store import rounds as round_rows
from shared.adapter import Adapter
from shared.tls import TlsFiles
from site_agent.agent import Agent
from site_agent.config import SiteConfig
from site_agent.data.phantom.cohort import write_cohort
from site_agent.data.phantom.profile import PhantomConfig
from site_agent.data.prepare import PrepareOptions, prepare
from site_agent.models.config import ConvViTConfig
from site_agent.models.convvit import ConvViT
from site_agent.models.weights import save_backbone
from site_agent.new_adapter import AdapterChoices, init_adapter
from site_agent.view import Silent

NAME = "hearts"
SITES = ("siemens", "philips", "ge")
TINY = ConvViTConfig(
    image_size=(32, 32, 4), enc_conv_chans=(4, 8), enc_conv_n_blocks=1, enc_embed_dim=16, enc_depth=3, enc_n_heads=2
)
PHANTOMS = PhantomConfig(
    seed=11, shape=(32, 32, 4), spacing=(4.0, 4.0, 20.0), scale=0.1, test_cases=4, label_shift=0.0, vendors=SITES
)
"""27, 12 and 8 training cases; every site has both classes outside of validation fold 0."""
FEW_STEPS: Mapping[str, str] = {"augmentation": "none", "local_epochs": "1", "batch_size": "8", "rank_local": "4"}
TIMEOUT_S = 120.0
PROCESS_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@dataclass(frozen=True)
class Materials:
    """What the federations here are made of. `cohorts` has one prepared folder per site."""

    backbone: Path
    adapter: Path
    cohorts: Path


# --- materials ------------------------------------------------------------------------------------------------------


def save_random_backbone(folder: Path, seed: int, config: ConvViTConfig = TINY) -> Path:
    """Write an untrained backbone; the same seed, the same base model."""
    network = ConvViT(config, heads=False, generator=torch.Generator().manual_seed(seed))
    save_backbone(folder, config, network.state_dict())
    return folder


def save_adapter(backbone: Path, out: Path, **choices: Any) -> Path:
    """Write version 0 for a backbone folder."""
    init_adapter(backbone, "", AdapterChoices(**{"rank": 4, "seed": 3, **choices})).write(out)
    return out


def prepare_phantoms(
    folder: Path,
    phantoms: PhantomConfig,
    size: int,
    spacing_mm: tuple[float, float, float] | None = None,
    more: Sequence[Path] = (),
) -> Path:
    """Write a synthetic raw cohort and prepare it, with `more` raw folders; return the folder of the sites' cohorts.

    `spacing_mm` None keeps the phantoms' own.
    """
    write_cohort(phantoms, folder / "raw")
    options = PrepareOptions(spacing_mm=spacing_mm or phantoms.spacing, size=(size, size), jobs=1)
    report = prepare([folder / "raw", *more], folder / "prepared", options)
    assert not report.rejections, report.rejections
    return folder / "prepared"


# --- the aggregator's store, which tests.support.serving.serve serves ------------------------------------------------


def create_store(
    folder: Path,
    adapter: Path,
    sites: Sequence[str] = SITES,
    rounds: int = 2,
    url: str = "",
    recipe: str = "med-duallora",
    **parameters: str,
) -> str:
    """Make a federation of these sites, quorum = all: in a new SQLite file, or in the empty database at `url`."""
    folder.mkdir(exist_ok=True)
    plan = setup.FederationPlan(
        name=NAME,
        adapter=adapter,
        recipe=recipe,
        parameters={**FEW_STEPS, **parameters},
        sites=dict.fromkeys(sites),
        rounds=rounds,
        quorum=len(sites),
    )
    where = url or str(folder / "fed.db")
    setup.create(where, plan, time.time())
    return where


def outcome(store: str) -> tuple[str, int, Adapter]:
    """Return a store's federation: its phase, its current version, and that version."""
    opened = engine.open_store(store)
    try:
        state = opened.read(federations.state, NAME)
        return state.phase, state.version, opened.read(federations.adapter, NAME, state.version)
    finally:
        opened.close()


def assert_finished(store: str, rounds: int = 2) -> None:
    """Fail unless all rounds are closed."""
    phase, version, _ = outcome(store)
    assert (phase, version) == ("finished", rounds)


def order_of_arrival(store: str, round_number: int) -> list[str]:
    """Return the sites in the order in which their updates were accepted."""
    opened = engine.open_store(store)
    try:
        accepted = opened.read(round_rows.record, NAME, round_number).state.accepted
        return sorted(accepted, key=lambda site: accepted[site].at)
    finally:
        opened.close()


def manifests(store: str, rounds: int = 2) -> list[str]:
    """Return the digest of what each round was made of: its sites, their updates and weights."""
    opened = engine.open_store(store)
    try:
        return [str(opened.read(round_rows.record, NAME, number).input_digest) for number in range(1, rounds + 1)]
    finally:
        opened.close()


async def until(condition: Callable[[], bool]) -> None:
    """Return once a condition on what lies in a store holds."""
    for _ in range(int(TIMEOUT_S / 0.05)):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise TimeoutError("what the test waits for did not come")


async def arrived(store: str, round_number: int, *sites: str) -> None:
    """Return once the updates of these sites, and no others, are accepted."""
    await until(lambda: set(order_of_arrival(store, round_number)) == set(sites))


# --- agents, in this process ----------------------------------------------------------------------------------------


def site_config(materials: Materials, folder: Path, address: str, site: str, **changes: Any) -> SiteConfig:
    """Return a site's settings: plain on loopback unless `tls` is among the changes."""
    settings: dict[str, Any] = {
        "aggregator": address,
        "cohort": materials.cohorts / site,
        "weights": materials.backbone,
        "state": folder / f"state-{site}",
        "plain_site": "" if "tls" in changes else site,
        "give_up_after_s": 60.0,
    }
    return SiteConfig(**{**settings, **changes})


def agents_of(
    materials: Materials, folder: Path, address: str, sites: Sequence[str] = SITES, kind: type[Agent] = Agent
) -> list[Agent]:
    """Return one agent a site."""
    return [kind(site_config(materials, folder, address, site), Silent()) for site in sites]


async def finish(*agents: Agent) -> None:
    """Let agents take part until the federation is finished."""
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
        for agent in agents:
            group.create_task(agent.run(once=True))


# --- both as processes ----------------------------------------------------------------------------------------------


def program(name: str) -> str:
    """Return the installed command beside this interpreter."""
    return str(Path(sys.executable).with_name(name))


def run_program(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `aggregator` or `site-agent` to its end."""
    command = [program(name), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, env=PROCESS_ENVIRONMENT, check=False
    )


async def run_beside(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end while this process goes on serving."""
    return await asyncio.to_thread(run_program, name, *arguments)


def agent_arguments(config: SiteConfig) -> list[object]:
    """Return the command line of `site-agent` that means these settings."""
    arguments: list[object] = [
        "--aggregator",
        config.aggregator,
        "--cohort",
        config.cohort,
        "--weights",
        config.weights,
    ]
    arguments += ["--state", config.state, "--give-up-after-s", config.give_up_after_s, "--once"]
    if config.log is not None:
        arguments += ["--log", config.log]
    if config.tls is None:
        return [*arguments, "--plain-site", config.plain_site]
    return [*arguments, "--tls-ca", config.tls.ca, "--tls-cert", config.tls.certificate, "--tls-key", config.tls.key]


@contextmanager
def aggregator_process(store: str, *options: object) -> Iterator[str]:
    """Run `aggregator serve` on a free port; yield host:port. Ends with SIGTERM and demands exit code 0."""
    command = [program("aggregator"), "serve", "--store", store, "--listen", "127.0.0.1:0", *options]
    with subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, text=True, env=PROCESS_ENVIRONMENT
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split("listening on ")[1].split()[0]
        finally:
            process.terminate()
            code = process.wait(20)
    assert code == 0


def make_certificates(folder: Path, sites: Sequence[str] = SITES) -> dict[str, TlsFiles]:
    """Make a CA and certificates for the aggregator and the sites; return the files by name."""
    certificates.make(folder, ["127.0.0.1"], sites)
    return {
        name: TlsFiles(folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key")
        for name in ("aggregator", *sites)
    }


def free_port() -> int:
    """Return a port of this machine on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
