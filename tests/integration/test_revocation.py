"""A certificate that is revoked: what is under way with it, what came before, and where people see it."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from med_duallora.v1 import federation_pb2 as pb
from typer.testing import CliRunner

from aggregator import certificates, cli, enrolment
from aggregator.facts import current
from aggregator.server import RunningServer
from aggregator.store import rounds as round_rows
from shared import certificates as held
from shared.tls import TlsFiles
from tests.support import adapters
from tests.support.raw_site import RawSite, digest, refusal
from tests.support.serving import SITES, make_store, serve, tls_of

pytestmark = pytest.mark.integration

PAYLOAD = adapters.delta(adapters.adapter().manifest.layout, 1)


@pytest.mark.parametrize("announced_before", [True, False])
async def test_an_upload_that_is_under_way_when_its_certificate_is_revoked_does_not_count(
    tmp_path: Path, announced_before: bool
) -> None:
    certs = tmp_path / "certs"
    certificates.make(certs, ["127.0.0.1"], SITES)
    async with serve(make_store(tmp_path), tls_of(certs, "aggregator")) as running:
        async with RawSite(running.address, "ge", tls_of(certs, "ge")) as site:
            await site.join()
            going_on = asyncio.Event()
            values = {"agent_id": site.agent_id, "round": 1, "digest": digest(PAYLOAD)}
            announcement = pb.BeginUploadRequest(
                **values, size=len(PAYLOAD), codec="f32", training_patients=10, layout_digest=site.layout.digest
            )
            start = pb.UploadStart(announcement=announcement)
            if announced_before:
                await site.begin(PAYLOAD)
                start = pb.UploadStart(**values)

            async def stream() -> AsyncIterator[pb.UploadDeltaRequest]:
                yield pb.UploadDeltaRequest(start=start)
                await going_on.wait()
                yield pb.UploadDeltaRequest(chunk=pb.Chunk(data=PAYLOAD))

            call = asyncio.ensure_future(refusal(site.stub.UploadDelta(stream(), timeout=20)))
            await asyncio.sleep(0.3)
            serial = held.holder_in(certs / "ge.pem").serial
            await asyncio.to_thread(enrolment.revoke, running.federation.store, serial, "ge", "lost", 0.0)
            going_on.set()
            code, kind, text = await call
            assert (code, kind) == ("PERMISSION_DENIED", "NotEnrolled")
            assert "was revoked" in text
        assert not (await running.federation.state()).round.accepted


async def test_a_revoked_certificate_is_told_wherever_people_look_and_what_was_accepted_before_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(current, "AGE_S", 0.0)
    certs, later = tmp_path / "certs", tmp_path / "later"
    certificates.make(certs, ["127.0.0.1"], SITES, observers=["olga"])
    later.mkdir()
    for name in ("ca.pem", "ca.key"):
        (later / name).write_bytes((certs / name).read_bytes())
    certificates.make(later, [], ["ge"])
    where = make_store(tmp_path, rounds=2)
    async with (
        serve(where, tls_of(certs, "aggregator"), http="127.0.0.1:0") as running,
        RawSite(running.address, "ge", tls_of(certs, "ge")) as ge,
        RawSite(running.address, "ge", tls_of(later, "ge")) as renewed,
        RawSite(running.address, "philips", tls_of(certs, "philips")) as philips,
        RawSite(running.address, "siemens", tls_of(certs, "siemens")) as siemens,
    ):
        for site in (ge, philips):
            await site.join()
        await ge.upload(PAYLOAD)
        told = await told_everywhere(running, where, tls_of(certs, "olga"))
        assert [name for name, text in told.items() if "revoked" in text] == ["metrics"], "as the name of one"
        assert 'med_duallora_site_certificate_revoked{site="ge"} 0' in told["metrics"]

        said = await command("revoke", "--store", where, "--certificate", certs / "ge.pem", "--reason", "key lost")
        assert "the update of ge in round 1 was accepted before, stays in it and counts" in said
        told = await told_everywhere(running, where, tls_of(certs, "olga"))
        for name in ("status", "sites", "observe"):
            (line,) = (line for line in told[name].splitlines() if line.startswith("ge "))
            assert line.endswith("certificate revoked"), name
        assert '<span class="bad">revoked</span>' in told["page"]
        assert 'med_duallora_site_certificate_revoked{site="ge"} 1' in told["metrics"]
        assert 'med_duallora_site_certificate_revoked{site="philips"} 0' in told["metrics"]

        await siemens.join()
        for k, site in enumerate((philips, siemens)):
            await site.upload(adapters.delta(site.layout, 7 + k))
        assert (await siemens.wait("WAIT", 1, wait_s=10)).round == 2
        closed, _ = await running.federation.read(round_rows.records, "demo")
        entries = {one["site"]: one["digest"] for one in json.loads(closed.manifest)["entries"]}
        assert entries.keys() == set(SITES)
        assert entries["ge"] == digest(PAYLOAD)
        page = await page_of(running, "status.json")
        assert "its certificate is revoked" in json.loads(page)["why_missing"]["ge"]

        await renewed.join()
        assert "certificate revoked" not in await command("status", "--store", where)


async def told_everywhere(running: RunningServer, where: str, person: TlsFiles) -> dict[str, str]:
    """What is said of the sites wherever people look."""
    tls = ["--tls-ca", person.ca, "--tls-cert", person.certificate, "--tls-key", person.key]
    return {
        "status": await command("status", "--store", where),
        "sites": await command("sites", "--store", where),
        "observe": await command("observe", "--aggregator", running.address, *tls),
        "page": await page_of(running, ""),
        "metrics": await page_of(running, "metrics"),
    }


async def command(*words: object) -> str:
    done = await asyncio.to_thread(CliRunner().invoke, cli.build(), [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


async def page_of(running: RunningServer, name: str) -> str:
    assert running.web is not None
    async with aiohttp.ClientSession() as session, session.get(running.web.url + name) as answer:
        return await answer.text()
