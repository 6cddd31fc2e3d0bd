"""`aggregator observe`: what people see without access to the store, and who may look."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aggregator import certificates
from shared.tls import TlsFiles
from tests.integration.federation import run_beside, run_program
from tests.support.raw_site import RawSite
from tests.support.serving import SITES, make_store, serve, tls_of

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    certificates.make(folder, ["127.0.0.1"], SITES, coordinators=["anna"], observers=["olga"])
    return folder


def words(files: TlsFiles) -> list[object]:
    return ["--tls-ca", files.ca, "--tls-cert", files.certificate, "--tls-key", files.key]


@pytest.mark.parametrize("person", ["olga", "anna"])
async def test_observers_and_coordinators_see_sites_and_rounds_as_the_store_has_them(
    tmp_path, certs, monkeypatch, person
):
    monkeypatch.setenv("COLUMNS", "200")
    store = make_store(tmp_path)
    async with serve(store, tls_of(certs, "aggregator")) as running:
        sites = [RawSite(running.address, name, tls_of(certs, name)) for name in SITES]
        await asyncio.gather(*(site.take_part(seed=k) for k, site in enumerate(sites)))
        there = ["observe", "--aggregator", running.address, *words(tls_of(certs, person))]
        done = await run_beside("aggregator", *there)
        assert done.returncode == 0, done.stderr
        text = done.stdout
        assert text.startswith("federation demo: finished, round 2 of 2, each of 3 sites (quorum 3), version 2 ")
        assert all(name in text for name in SITES)
        facts = json.loads((await run_beside("aggregator", *there, "--json")).stdout)
        for site in sites:
            await site.channel.close()
    status = json.loads(run_program("aggregator", "status", "--store", store, "--json").stdout)
    rounds = json.loads(run_program("aggregator", "rounds", "--store", store, "--json").stdout)
    assert {
        name: facts[name] for name in ("federation", "phase", "round", "rounds", "quorum", "version", "digest")
    } == {name: status[name] for name in ("federation", "phase", "round", "rounds", "quorum", "version", "digest")}
    assert [(one["site"], one["phase"], one["training_patients"]) for one in facts["sites"]] == [
        (one["site"], one["phase"], one["training_patients"]) for one in status["sites"]
    ]
    assert [(one["manifest"], one["diagnostics"]) for one in facts["rounds_so_far"]] == [
        (one["manifest"], one["diagnostics"]) for one in rounds
    ]


async def test_a_site_may_not_look_and_an_observer_may_not_steer(tmp_path, certs):
    async with serve(make_store(tmp_path), tls_of(certs, "aggregator")) as running:
        there = ["--aggregator", running.address]
        site = await run_beside("aggregator", "observe", *there, *words(tls_of(certs, "ge")))
        assert site.returncode == 3
        assert "this call is for coordinators" in site.stderr
        steering = await run_beside("aggregator", "pause", *there, *words(tls_of(certs, "olga")))
        assert steering.returncode == 3
        assert "this call is for coordinators" in steering.stderr
        assert (await running.federation.state()).phase == "running"


def test_it_says_what_it_needs():
    done = run_program("aggregator", "observe", "--aggregator", "fed.example.org:50051")
    assert done.returncode == 3
    assert "an observer's certificate (aggregator certificates --observer NAME)" in done.stderr


async def test_people_are_told_before_their_certificate_ends(tmp_path, certs):
    twenty_left = datetime.now(UTC) - timedelta(days=certificates.DAYS - 20)
    certificates.make(tmp_path / "soon", ["127.0.0.1"], [], observers=["olga"], now=twenty_left)
    files = tls_of(tmp_path / "soon", "olga")
    async with serve(make_store(tmp_path), tls_of(tmp_path / "soon", "aggregator")) as running:
        done = await run_beside("aggregator", "observe", "--aggregator", running.address, *words(files))
    assert done.returncode == 0, done.stderr
    assert f"warning: {files.certificate} expires on " in done.stderr
    assert "in 20 days; ask whoever runs the aggregator for a new one" in done.stderr
    async with serve(make_store(tmp_path / "other"), tls_of(certs, "aggregator")) as running:
        good = await run_beside("aggregator", "observe", "--aggregator", running.address, *words(tls_of(certs, "olga")))
    assert (good.returncode, good.stderr) == (0, "")
