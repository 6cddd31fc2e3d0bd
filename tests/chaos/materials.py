"""What every federation of a batch is made of, made once; and the store and the processes of one of them."""

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from shared.tls import TlsFiles
from tests.chaos.points import Fault
from tests.chaos.processes import Program
from tests.chaos.scenario import AGGREGATOR, Scenario
from tests.integration import federation
from tests.integration.federation import SITES, Materials

ROUNDS = 5
EPOCHS, BATCH_SIZE = 2, 4
"""So that every site has steps in the middle of an epoch: 12, 6 and 4 a round."""
GIVE_UP_AFTER_S = 90.0
CALL_TIMEOUT_S = 3.0
"""A connection that says nothing is given up in seconds here."""
PORTS = range(20_000, 32_000)
"""Below those that outgoing connections are given: a port stays ours while the process that listens on it is down."""


@dataclass(frozen=True)
class Parts:
    """Base model, version 0 and cohorts; and the TLS files of the aggregator and each site."""

    made: Materials
    tls: dict[str, TlsFiles]


def make(folder: Path) -> Parts:
    """Write a random backbone, version 0, the three sites' cohorts, and certificates."""
    backbone = federation.save_random_backbone(folder / "backbone", seed=1)
    adapter = federation.save_adapter(backbone, folder / "v0.safetensors")
    made = Materials(backbone, adapter, federation.prepare_phantoms(folder, federation.PHANTOMS, size=32))
    return Parts(made, federation.make_certificates(folder / "certificates", SITES))


def free_ports() -> Iterator[int]:
    """Yield ports nobody listens on, each once; another process begins elsewhere."""
    for number in range(len(PORTS)):
        port = PORTS[(61 * os.getpid() + number) % len(PORTS)]
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port


def disk(folder: Path, role: str) -> Path:
    """Return the folder of everything a role keeps, which may be a disk of its own."""
    return folder / f"disk-{role}"


def state(folder: Path, site: str) -> Path:
    """Return where a site's agent keeps its state."""
    return disk(folder, site) / "state"


def create_store(parts: Parts, folder: Path, database: str, codec: str) -> str:
    """Make the federation: three sites, all of whom are needed for each of five rounds. Returns its store."""
    training = {"local_epochs": str(EPOCHS), "batch_size": str(BATCH_SIZE), "codec": codec}
    return federation.create_store(
        disk(folder, AGGREGATOR), parts.made.adapter, rounds=ROUNDS, url=database, **training
    )


def aggregator(parts: Parts, folder: Path, store: str, name: str, address: str, scenario: Scenario) -> Program:
    """Return one serving process of a store."""
    arguments = ["serve", "--store", store, "--listen", address, "--log", str(folder / f"{name}.jsonl")]
    if scenario.setting.tls:
        own = parts.tls[AGGREGATOR]
        arguments += ["--tls-ca", str(own.ca), "--tls-cert", str(own.certificate), "--tls-key", str(own.key)]
    else:
        arguments.append("--plain")
    return Program(
        name=name,
        role=AGGREGATOR,
        program="aggregator",
        arguments=tuple(arguments),
        logs=folder,
        points=folder / "points",
        faults=_placed(folder, AGGREGATOR, scenario),
        chunk_bytes=scenario.setting.chunk_bytes,
    )


def agent(parts: Parts, folder: Path, address: str, site: str, scenario: Scenario) -> Program:
    """Return a site's agent, which ends with the federation."""
    disk(folder, site).mkdir(exist_ok=True)
    config = folder / f"{site}.toml"
    config.write_text(_site_toml(parts, folder, address, site, scenario.setting.tls))
    return Program(
        name=site,
        role=site,
        program="site-agent",
        arguments=("--config", str(config), "--state", str(state(folder, site)), "--once"),
        logs=folder,
        points=folder / "points",
        faults=_placed(folder, site, scenario),
        state=str(state(folder, site)),
        chunk_bytes=scenario.setting.chunk_bytes,
    )


def _site_toml(parts: Parts, folder: Path, address: str, site: str, tls: bool) -> str:
    settings: dict[str, object] = {
        "aggregator": address,
        "cohort": str(parts.made.cohorts / site),
        "weights": str(parts.made.backbone),
        "device": "cpu",
        "give_up_after_s": GIVE_UP_AFTER_S,
        "call_timeout_s": CALL_TIMEOUT_S,
        "checkpoint_s": 0.0,
        "log": str(folder / f"{site}.jsonl"),
        **({} if tls else {"plain_site": site}),
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    if tls:
        own = parts.tls[site]
        files = {"ca": own.ca, "certificate": own.certificate, "key": own.key}
        lines += ["[tls]", *(f"{key} = {json.dumps(str(path))}" for key, path in files.items())]
    return "\n".join(lines) + "\n"


def _placed(folder: Path, role: str, scenario: Scenario) -> tuple[Fault, ...]:
    """Return a role's faults, with the folder of its disk."""
    return tuple(replace(fault, disk=str(disk(folder, role))) for fault in scenario.faults if fault.role == role)
