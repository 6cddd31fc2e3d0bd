"""The federation of the guides: set up on machines of its own by the commands that stand in them, and by nothing else.

What is smaller than on the page is in REDUCED: a backbone of 3 MB, a few synthetic patients, two rounds.
"""

import asyncio
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from experiments.communication import namespaces
from tests.docs import machines
from tests.docs.machines import HOST, Machine, Running
from tests.docs.pages import ROOT, commands_of

SITES = ("siemens", "philips", "ge")
ROUNDS = 2
LINE_BITS_PER_S = 100_000_000
BACKBONE = ROOT / "site_agent" / "models" / "demo"
REDUCED = {
    "--weights cinema.safetensors --size base --frames siamese": "--weights weights",
    "--rounds 20": f"--rounds {ROUNDS}",
    "prepare scans --out cohort": "prepare scans --out cohort --spacing 2 2 10 --size 64 64",
    'weights = "weights/cinema.safetensors"\nweights_size = "base"': 'weights = "weights"',
}
PATIENTS = "--scale 0.1 --test-cases 4 --vendors siemens,philips,ge --label-shift 0 --jobs 1 --seed 11"
SETTLED_S = 120.0


@dataclass(frozen=True)
class Guide:
    """What a guide tells its reader to do under `## Set up`."""

    commands: list[str]
    site_toml: str

    @classmethod
    def read(cls, page: str) -> "Guide":
        """Read the section. What stands there about installing is elsewhere on the page."""
        text = (ROOT / page).read_text(encoding="utf-8")
        (section,) = re.findall(r"^## Set up\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
        files = re.findall(r"^```toml\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
        return cls([one.text for one in commands_of(page, section)], "".join(files))


@dataclass(frozen=True)
class Federation:
    """It has ended. Folders are as the commands left them."""

    coordinator: Machine
    hospitals: dict[str, Machine]
    given: dict[str, list[str]]
    """The commands that were given on each machine, in order, as they ran."""
    before_the_end: Path
    """The coordinator's folder after the first round, with a copy of the store."""
    seconds: float


def reduced(text: str) -> str:
    """Return a command or a file of the guide at the size of the test."""
    for page, here in REDUCED.items():
        text = text.replace(page, here)
    return text


@contextmanager
def network(folder: Path) -> Iterator[tuple[Machine, dict[str, Machine]]]:
    """Yield the coordinator's machine and the hospitals', each in a network of its own where that can be made."""
    places = {name: folder / name for name in ("coordinator", *SITES)}
    for place in places.values():
        place.mkdir()
    if os.geteuid() != 0:
        address = f"127.0.0.1:{machines.free_port()}"
        instead = {f"{HOST}:443": address, "0.0.0.0:443": address, f"--host {HOST}": "--host 127.0.0.1"}
        instead["127.0.0.1:8080"] = f"127.0.0.1:{machines.free_port()}"
        here = {name: Machine(place, instead=instead) for name, place in places.items()}
        yield here["coordinator"], {site: here[site] for site in SITES}
        return
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{namespaces.HUB_ADDRESS} {HOST}\n")
    with asyncio.Runner() as runner:
        star = namespaces.star(len(SITES), LINE_BITS_PER_S)
        lines = runner.run(star.__aenter__())
        try:
            sites = {
                site: Machine(places[site], line[-1], hosts) for site, line in zip(SITES, lines.sites, strict=True)
            }
            yield Machine(places["coordinator"], lines.hub[-1], hosts), sites
        finally:
            runner.run(star.__aexit__(None, None, None))


class Setup:
    """Somebody at each machine, who reads the guide and types. Every command that is given is kept.

    The coordinator and the first hospital type into a shell; the other hospitals' programs are forked, which saves seconds.
    """

    def __init__(self, coordinator: Machine, hospitals: dict[str, Machine]) -> None:
        self.coordinator, self.hospitals = coordinator, hospitals
        self.given: dict[str, list[str]] = {name: [] for name in ("coordinator", *hospitals)}

    def begin(self, who: str, command: str) -> Running:
        machine = self.coordinator if who == "coordinator" else self.hospitals[who]
        self.given[who].append(command)
        if who in ("coordinator", SITES[0]):
            return machines.start(machine, reduced(command))
        return machines.fork(machine, machine.written(reduced(command)).replace(SITES[0], who).split())

    def give(self, who: str, command: str) -> None:
        running = self.begin(who, command)
        code = running.ended(SETTLED_S)
        assert code == 0, f"{who}: {command} ended with {code}:\n{running.said}"


def send(name: str, origin: Machine, to: Machine) -> None:
    """Carry a file by mail."""
    shutil.copy(origin.folder / name, to.folder / name)


@contextmanager
def run(folder: Path) -> Iterator[Federation]:
    """Set a federation up by the guides and let it come to its end."""
    began = time.monotonic()
    coordinator, hospital = Guide.read("docs/coordinator.md"), Guide.read("docs/hospital-it.md")
    init_adapter, init, serve, *_ = coordinator.commands
    join, prepare, agent, *_ = hospital.commands
    with network(folder) as (hub, sites):
        people = Setup(hub, sites)
        for machine in (hub, *sites.values()):
            shutil.copytree(BACKBONE, machine.folder / "weights")
        raw = machines.fork(Machine(folder), f"site-agent phantom --out scans {PATIENTS}".split())
        first = people.begin("coordinator", init_adapter)
        asked = {site: people.begin(site, join) for site in SITES}
        for site, running in asked.items():
            assert running.ended() == 0, running.said
            send(f"{site}.csr", sites[site], hub)
        assert first.ended(SETTLED_S) == 0, first.said
        people.give("coordinator", init)
        assert raw.ended(SETTLED_S) == 0, raw.said
        serving = people.begin("coordinator", serve)
        agents: dict[str, Running] = {}
        try:
            preparing = {}
            for site in SITES:
                (sites[site].folder / "scans").symlink_to(folder / "scans")
                preparing[site] = people.begin(site, prepare)
            for site, running in preparing.items():
                assert running.ended(SETTLED_S) == 0, running.said
                text = sites[site].written(reduced(hospital.site_toml)).replace("siemens", site)
                (sites[site].folder / "site.toml").write_text(text)
                send(f"{site}.approved.pem", hub, sites[site])
            serving.wait_for("listening")
            agents = {site: people.begin(site, agent) for site in SITES}
            open_folder = _until_closed(hub, folder / "before-the-end", agents)
            _until_reported(sites, agents)
        finally:
            codes = {site: running.stop() for site, running in agents.items()}
            ended = serving.stop()
        assert set(codes.values()) == {130}, {site: (codes[site], agents[site].said[-2000:]) for site in SITES}
        assert ended == 0, serving.said
        yield Federation(hub, sites, people.given, open_folder, time.monotonic() - began)


def _alive(agents: dict[str, Running], end: float) -> None:
    """Fail, with what the agents said, if one is gone or it is too late."""
    said = "\n".join(f"{site}:\n{running.said[-1500:]}" for site, running in agents.items())
    assert all(running.alive for running in agents.values()), f"an agent is gone\n{said}"
    assert time.monotonic() < end, f"it took too long\n{said}"


def _until_closed(hub: Machine, to: Path, agents: dict[str, Running]) -> Path:
    """Wait for the first round; return a copy of the coordinator's folder, the store by the command of its guide."""
    from aggregator.store import engine, federations

    opened, end = engine.open_store(str(hub.folder / "fed.db")), time.monotonic() + SETTLED_S
    try:
        while opened.read(federations.state, "heart").round.number < 2:
            _alive(agents, end)
            time.sleep(0.02)
    finally:
        opened.close()
    shutil.copytree(hub.folder, to, ignore=shutil.ignore_patterns("fed.db*"))
    backup = next(
        one.text for one in commands_of("", (ROOT / "docs/coordinator.md").read_text()) if one.program == "sqlite3"
    )
    copying = machines.start(hub, backup)
    assert copying.ended() == 0, copying.said
    (hub.folder / "fed-backup.db").rename(to / "fed.db")
    return to


def _until_reported(sites: dict[str, Machine], agents: dict[str, Running]) -> None:
    """Wait until every hospital has compared its four models."""
    end = time.monotonic() + SETTLED_S
    while not all((machine.folder / "state" / "report.json").exists() for machine in sites.values()):
        _alive(agents, end)
        time.sleep(0.05)
