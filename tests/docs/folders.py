"""The folders in which the pages' commands find what they speak of: what the federation of the guides left, and a little more."""

import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.docs import machines
from tests.docs.federation import ROUNDS, SITES, Federation
from tests.docs.machines import Machine, Running
from tests.docs.pages import ROOT

READ_ONLY = ("scans", "weights", "cohort", "activations")
STATUS_PAGE = "127.0.0.1:8080"
CINE_FRAMES = 10
STOPPED = 130


@dataclass(frozen=True)
class Folders:
    """What commands are run in copies of."""

    machines: dict[str, Machine]
    heads: dict[str, str]
    """Digests that pages leave to the reader: of the audit journal, of the ledger, of a key, of the CA, of an update that waits."""


def copy(folder: Path, to: Path) -> Path:
    """Copy a folder; what is only read is linked."""
    shutil.copytree(folder, to, symlinks=True)
    return to


@contextmanager
def serving(machine: Machine, folder: Path) -> Iterator[Machine]:
    """Serve a copy of the store as the guide does, until the block ends."""
    served = machine.at(copy(machine.folder, folder))
    with _aggregator(served, f"0.0.0.0:443 --http {STATUS_PAGE}"):
        yield served


@contextmanager
def _aggregator(machine: Machine, listen: str) -> Iterator[None]:
    tls = "--tls-ca certs/ca.pem --tls-cert certs/aggregator.pem --tls-key certs/aggregator.key"
    running = machines.fork(
        machine, machine.written(f"aggregator serve --store fed.db --listen {listen} {tls}").split()
    )
    running.wait_for("listening")
    try:
        yield
    finally:
        assert running.stop() == 0, running.said


def where_a_person_is_asked(there: Mapping[str, Machine], work: Path) -> dict[str, Machine]:
    """Return a hospital's folder in which an update waits to be released, and one in which a changed contract is offered.

    The federation of `serving` is being served. It takes one agent a site, so the first is another hospital's.
    """
    held = there["other"].at(copy(there["other"].folder, work / "held"))
    shutil.rmtree(held.folder / "state")  # it had sent an update of the round that is open now
    _edit(held, lambda text: f'egress = "manual"\n{text}')
    offered = there["hospital"].at(copy(there["hospital"].folder, work / "offered"))
    hub = there["open"].at(copy(there["open"].folder, work / "changed"))
    (hub.folder / "fed.db").unlink()
    sites = " ".join(f"--site {site}" for site in SITES)
    _done(
        hub, f"aggregator init --store fed.db --federation heart --adapter v0.safetensors {sites} --rounds {ROUNDS + 1}"
    )
    port = machines.free_port() if hub.instead else 444
    _edit(offered, lambda text: re.sub(r'(aggregator = ".*):\d+"', rf'\1:{port}"', text))
    with _aggregator(hub, f"{'127.0.0.1' if hub.instead else '0.0.0.0'}:{port}"):
        waits = {held: "update_held", offered: "consent_withheld"}
        agents = {machine.folder.name: (_agent(machine), said) for machine, said in waits.items()}
        for running, said in agents.values():
            running.wait_for(said)
        for running, _ in agents.values():
            assert running.stop() == STOPPED, running.said
    return {"held": held, "offered": offered}


def _agent(machine: Machine) -> Running:
    (machine.folder / "agent.jsonl").unlink()
    running = machines.fork(machine, ["site-agent", "--config", "site.toml"])
    running.events = machine.folder / "agent.jsonl"
    return running


def _edit(machine: Machine, change: Callable[[str], str]) -> None:
    file = machine.folder / "site.toml"
    file.write_text(change(file.read_text()))


def furnish(federation: Federation, to: Path) -> Folders:
    """Return the folders in which pages find what they speak of: certificates of an observer, a renewal that waits, two images."""
    hub, site = federation.coordinator, federation.hospitals["siemens"]
    to.mkdir(parents=True)
    coordinator, opened, hospital = (to / name for name in ("coordinator", "open", "hospital"))
    shutil.copytree(hub.folder, coordinator, symlinks=True)
    shutil.copytree(federation.before_the_end, opened, symlinks=True)
    shutil.copytree(site.folder, hospital, symlinks=True, ignore=shutil.ignore_patterns(*READ_ONLY))
    for name in READ_ONLY:
        if (site.folder / name).exists():
            (hospital / name).symlink_to((site.folder / name).resolve())
    for folder in (coordinator, opened):
        _furnish_coordinator(hub.at(folder), site.folder)
    _renew(site.at(hospital), hub.at(opened))
    _furnish_hospital(hospital, coordinator)
    _demo(coordinator, hospital)
    places = {"coordinator": hub.at(coordinator), "open": hub.at(opened), "hospital": site.at(hospital)}
    places["other"] = federation.hospitals["ge"]
    project = Machine(_project(to / "project"))
    return Folders({**places, "project": project}, _heads(places))


def _project(folder: Path) -> Path:
    """Return a folder that looks like the checkout and keeps what is written to it."""
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("runs", ".git"):
            (folder / path.name).symlink_to(path)
    return folder


def _demo(coordinator: Path, hospital: Path) -> None:
    """Lay out both folders as the demo leaves its own."""
    for folder in (coordinator, hospital):
        demo = folder / "runs" / "demo"
        (demo / "aggregator").mkdir(parents=True)
        (demo / "logs").mkdir()
        shutil.copy(coordinator / "fed.db", demo / "aggregator" / "fed.db")
        shutil.copy(coordinator / "aggregator.jsonl", demo / "logs" / "aggregator.jsonl")
        shutil.copytree(hospital / "state", demo / "sites" / "siemens")
        shutil.copytree(demo, folder / "runs" / "reports")


def _furnish_coordinator(machine: Machine, site: Path) -> None:
    people = "aggregator certificates --out certs --observer otto --observer olga"
    _done(machine, people)
    for name in ("ca.pem", *(f"{who}.{kind}" for who in ("anna", "otto", "olga") for kind in ("pem", "key"))):
        shutil.copy(machine.folder / "certs" / name, machine.folder / name)
    shutil.copy(site / "siemens.pem", machine.folder / "siemens.pem")
    shutil.copy(machine.folder / "v0.safetensors", machine.folder / "old.safetensors")
    for log in ("agent.jsonl", "siemens.jsonl", "sites/siemens/agent.jsonl"):
        (machine.folder / log).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(site / "agent.jsonl", machine.folder / log)
    _done(machine, "aggregator contract --store fed.db --out contract.json")
    _done(machine, "site-agent join --site canon")


def _renew(site: Machine, hub: Machine) -> None:
    """Ask for a new certificate and get the answer, in the folder itself and in one called `site`."""
    _done(site, "site-agent join --site siemens")
    shutil.copy(site.folder / "siemens.csr", hub.folder / "siemens.csr")
    _done(hub, "aggregator approve siemens.csr --store fed.db --certs certs")
    shutil.copy(hub.folder / "siemens.approved.pem", site.folder / "siemens.approved.pem")
    for name in ("site", "tls"):
        (site.folder / name).mkdir()
        for file in [*site.folder.glob("siemens.*"), site.folder / "ca.pem"]:
            shutil.copy(file, site.folder / name / file.name)


def _furnish_hospital(folder: Path, coordinator: Path) -> None:
    shutil.copy(coordinator / "contract.json", folder / "contract.json")
    case = next((folder / "cohort" / "siemens").rglob("ed.nii.gz")).parent
    for name in ("ed.nii.gz", "es.nii.gz"):
        shutil.copy(case / name, folder / name)
    frames = [nib.load(case / f"{name}.nii.gz") for name in ("ed", "es")]
    cine = np.stack([np.asarray(frame.dataobj) for frame in frames for _ in range(CINE_FRAMES // 2)], axis=-1)
    nib.save(nib.Nifti1Image(cine, frames[0].affine), folder / "cine.nii.gz")
    (folder / "cases.csv").write_text("case,ed,es\nA,ed.nii.gz,es.nii.gz\n")
    (folder / "raw").symlink_to((folder / "scans").resolve())
    ours = folder / "our-scans"
    ours.mkdir()
    rows = ["case_id,vendor,label,ed_image,es_image"]
    for number, name in enumerate(("a", "b", "c", "d")):
        rows.append(f"{name},siemens,{number % 2},{name}-ed.nii.gz,{name}-es.nii.gz")
        for frame in ("ed", "es"):
            shutil.copy(case / f"{frame}.nii.gz", ours / f"{name}-{frame}.nii.gz")
    (ours / "cases.csv").write_text("\n".join(rows) + "\n")


def _heads(there: Mapping[str, Machine]) -> dict[str, str]:
    """Return what a reader puts in the place of digests that pages make up."""
    audit = _done(there["coordinator"], "aggregator audit --store fed.db")
    ledger = _done(there["hospital"], "site-agent ledger verify --state state")
    journal, left = (re.search(r"head ([0-9a-f]{12,64})", said) for said in (audit, ledger))
    approved = _done(there["open"], "aggregator approve siemens.csr --store fed.db --certs certs")
    key, ca = re.search(r"key ([0-9a-f ]+):", approved), re.search(r"of the CA.*: ([0-9a-f ]+)", approved)
    assert journal, audit
    assert left, ledger
    assert key, approved
    assert ca, approved
    return {
        "audit.jsonl --head 3f0c9a8e41d2": f"audit.jsonl --head {journal[1]}",
        "--head 3f0c9a8e41d2": f"--head {left[1]}",
        "3f0c 9a8e ...": key[1],
        "5b71 02cd ...": ca[1],
    }


def held_update(held: Machine) -> dict[str, str]:
    """Return what a reader puts in the place of the digest of an update that waits for a person."""
    shown = _done(held, "site-agent release --state state --show")
    digest = re.search(r"--digest ([0-9a-f]{12,64})", shown)
    assert digest, shown
    return {"--digest 9b1de0c27a55": f"--digest {digest[1]}"}


def _done(machine: Machine, text: str) -> str:
    running = machines.fork(machine, shlex.split(text))
    code = running.ended()
    assert code == 0, f"{text} ended with {code}:\n{running.said}"
    return running.said
