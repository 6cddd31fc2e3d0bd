"""Patients' names in file names, folders, tables and NIfTI headers reach no log, no wire, no store, no report, and nothing that an
aggregator shows."""

import json
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import nibabel as nib
import pytest

from experiments.relay import Relay
from shared.log_fields import WITHHELD
from site_agent.data import cases as table
from site_agent.ledger import LEDGER
from site_agent.report import CASES, REPORT
from site_agent.training.case_scores import CaseScores
from tests.integration import federation
from tests.integration.federation import Materials

pytestmark = pytest.mark.integration
CANARY = "CANARY7731"
AGGREGATORS_LOG = "aggregator.jsonl"


def marked(materials: Materials, folder: Path) -> Path:
    """Return a cohort whose folder, patients, files and NIfTI headers all hold the canary."""
    cohort = folder / CANARY / "siemens"
    shutil.copytree(materials.cohorts / "siemens", cohort)
    renamed = []
    for case in table.read(cohort):
        named = replace(
            case, case_id=f"{CANARY}-{case.case_id}", folder=case.folder.with_name(f"{CANARY}-{case.case_id}")
        )
        case.folder.rename(named.folder)
        for path in (named.ed_path, named.es_path):
            image = nib.load(path)
            image.header["descrip"] = CANARY.encode()  # type: ignore[index]
            image.header["aux_file"] = CANARY.encode()  # type: ignore[index]
            nib.save(nib.Nifti1Image(image.get_fdata().astype("uint8"), image.affine, image.header), path)
        renamed.append(named)
    table.write(cohort / table.CASES, renamed)
    return cohort


def where_it_is(*places: Path) -> list[str]:
    """Return the files in which the canary is found, by name or content."""
    files = [path for place in places for path in ([place] if place.is_file() else sorted(place.rglob("*")))]
    return [path.name for path in files if path.is_file() and CANARY.encode() in path.read_bytes()]


@contextmanager
def aggregator(store: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Run an aggregator with a log and a status page; yield the addresses of both of its ports."""
    page = f"127.0.0.1:{federation.free_port()}"
    with federation.aggregator_process(store, "--plain", "--http", page, "--log", folder / AGGREGATORS_LOG) as address:
        yield address, page


async def said_by(page: str) -> dict[str, bytes]:
    """Return everything that a status page's port shows of a federation, whose site must be named there."""
    found = {}
    async with aiohttp.ClientSession() as session:
        for name in ("", "status.json", "metrics", "healthz", "readyz"):
            async with session.get(f"http://{page}/{name}") as answer:
                assert answer.status == 200
                found[name] = await answer.read()
    assert all(b"siemens" in found[name] for name in ("", "status.json", "metrics"))
    return found


def kept(state: Path) -> list[float]:
    """Return the score of every case under every arm, as the agent keeps it for its own report."""
    scores = CaseScores.from_csv((state / CASES).read_bytes())
    assert len(scores) > 0
    return [float(value) for values in scores.margins.values() for value in values]


def spoken(score: float) -> tuple[bytes, ...]:
    """Return a score as it could be said: as a double, and in digits."""
    return struct.pack("<d", score), repr(score)[:12].encode()


async def test_a_patients_name_stays_in_the_cohort(materials: Materials, tmp_path: Path) -> None:
    where = federation.create_store(tmp_path / "store", materials.adapter, ("siemens",), rounds=2)
    cohort = marked(materials, tmp_path)
    with aggregator(where, tmp_path) as (address, page):
        async with Relay([address], keep=True) as relay:
            config = federation.site_config(
                materials, tmp_path, relay.address, "siemens", cohort=cohort, log=tmp_path / "agent.jsonl"
            )
            agent = await federation.run_beside("site-agent", *federation.agent_arguments(config))
        assert agent.returncode == 0, agent.stderr
        pages = await said_by(page)
        assert [name for name, text in pages.items() if CANARY.encode() in text] == []
        assert not any(
            said in text for score in kept(config.state) for said in spoken(score) for text in pages.values()
        )
        assert not any(CANARY.encode() in capture for capture in relay.captures)
        assert not any(
            said in capture for score in kept(config.state) for said in spoken(score) for capture in relay.captures
        )
    assert len(where_it_is(cohort)) > 0
    assert where_it_is(config.state / CASES) == [CASES]  # so that it could be found
    logs = [tmp_path / "agent.jsonl", tmp_path / AGGREGATORS_LOG]
    assert b'"site_joined"' in logs[1].read_bytes()  # it is the log of this federation
    assert where_it_is(*logs, tmp_path / "store", config.state / LEDGER, config.state / REPORT) == []
    assert CANARY not in agent.stdout + agent.stderr
    shown = federation.run_program("site-agent", "report", "--state", config.state)
    assert shown.stdout.startswith("PRIVATE: ")
    assert CANARY not in shown.stdout  # what is printed has no keys; the page and the table do
    events = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    assert not [one for one in events if WITHHELD in one.values()]
    costs = federation.run_program("aggregator", "comm-cost", tmp_path / "agent.jsonl", "--plain", "--json")
    assert CANARY not in costs.stdout


async def test_what_is_wrong_with_a_patients_file_is_said_on_the_screen_alone(
    materials: Materials, tmp_path: Path
) -> None:
    where = federation.create_store(tmp_path / "store", materials.adapter, ("siemens",), rounds=1)
    cohort = marked(materials, tmp_path)
    table.read(cohort)[0].ed_path.write_bytes(b"no image")
    with aggregator(where, tmp_path) as (address, page):
        async with Relay([address], keep=True) as relay:
            config = federation.site_config(
                materials, tmp_path, relay.address, "siemens", cohort=cohort, log=tmp_path / "agent.jsonl"
            )
            agent = await federation.run_beside("site-agent", *federation.agent_arguments(config))
        assert agent.returncode == 3
        assert [name for name, text in (await said_by(page)).items() if CANARY.encode() in text] == []
        assert not any(CANARY.encode() in capture for capture in relay.captures)
    assert CANARY in agent.stderr
    logs = [tmp_path / "agent.jsonl", tmp_path / AGGREGATORS_LOG]
    assert where_it_is(*logs, tmp_path / "store", config.state / LEDGER) == []
