"""Every call refuses everybody it is not for; certificates are asked for, renewed and revoked while all goes on."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import structlog
from med_duallora.v1 import coordinator_pb2 as cpb
from med_duallora.v1 import federation_pb2 as pb
from med_duallora.v1.coordinator_pb2_grpc import CoordinatorServiceStub
from typer.testing import CliRunner

from aggregator import audit, certificates, cli, enrolment
from aggregator.server import RunningServer
from aggregator.store import engine, evaluations
from shared import certificates as held
from shared import chunks
from shared.certificates import DAY_S
from shared.errors import NotEnrolled
from shared.tls import TlsFiles
from site_agent.agent import Agent
from site_agent.cli import app as site_app
from site_agent.view import Silent
from tests.integration import federation
from tests.integration.federation import Materials
from tests.support import adapters
from tests.support.raw_site import RawSite, digest, refusal
from tests.support.serving import SITES, make_store, serve, tls_of

pytestmark = pytest.mark.integration

PAYLOAD = adapters.delta(adapters.adapter().manifest.layout, 1)


async def _announced(site: RawSite) -> Any:
    request = pb.BeginUploadRequest(agent_id="a", round=1, digest=digest(PAYLOAD), size=len(PAYLOAD), codec="f32")

    async def stream() -> AsyncIterator[pb.UploadDeltaRequest]:
        yield pb.UploadDeltaRequest(start=pb.UploadStart(announcement=request))
        yield pb.UploadDeltaRequest(chunk=pb.Chunk(data=PAYLOAD))

    return await site.stub.UploadDelta(stream(), timeout=10)


async def _fetched(site: RawSite) -> Any:
    return [part async for part in site.stub.FetchAdapter(pb.FetchAdapterRequest(), timeout=10)]


def _coordinators(name: str, request: Any) -> Callable[[RawSite], Any]:
    return lambda site: getattr(CoordinatorServiceStub(site.channel), name)(request, timeout=10)


SITE_CALLS: dict[str, Callable[[RawSite], Any]] = {
    "Join": lambda site: site.join(),
    "AwaitRound": lambda site: site.wait(),
    "FetchAdapter": _fetched,
    "BeginUpload": lambda site: site.begin(PAYLOAD),
    "UploadDelta": lambda site: site.stream([], digest(PAYLOAD)),
    "UploadDelta, announced": _announced,
    "ReportEvaluation": lambda site: site.stub.ReportEvaluation(pb.ReportEvaluationRequest(), timeout=10),
    "Probe": lambda site: site.stub.Probe(pb.ProbeRequest(payload=b"x"), timeout=10),
}
READING_CALLS = {
    "GetStatus": _coordinators("GetStatus", cpb.GetStatusRequest()),
    "ListRounds": _coordinators("ListRounds", cpb.ListRoundsRequest()),
}
STEERING_CALLS = {
    "Pause": _coordinators("Pause", cpb.PauseRequest()),
    "Resume": _coordinators("Resume", cpb.ResumeRequest()),
    "Evict": _coordinators("Evict", cpb.EvictRequest(site="ge")),
    "Rollback": _coordinators("Rollback", cpb.RollbackRequest()),
}
CALLS = SITE_CALLS | READING_CALLS | STEERING_CALLS
NO_CONNECTION = ("no certificate", "foreign CA", "expired")


@dataclass(frozen=True)
class Lab:
    """A server, and whom it may meet: TLS files by who they are. None: a client that shows no certificate."""

    running: RunningServer
    ca: Path
    people: dict[str, TlsFiles | None]

    def site(self, who: str) -> RawSite:
        files = self.people[who]
        made = RawSite(self.running.address, "ge", files or self.people["foreign CA"])
        if files is None:
            credentials = grpc.ssl_channel_credentials(self.ca.read_bytes())
            made.channel = grpc.aio.secure_channel(self.running.address, credentials)
            made.stub = type(made.stub)(made.channel)
        return made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    folder = tmp_path_factory.mktemp("identity")
    certs, foreign, past, lost = (folder / name for name in ("certs", "foreign", "past", "lost"))
    certificates.make(certs, ["127.0.0.1"], [*SITES, "stranger"], ["anna"], ["olga"])
    certificates.make(foreign, [], ["ge"])
    for place in (past, lost):
        place.mkdir()
        for name in ("ca.pem", "ca.key"):
            (place / name).write_bytes((certs / name).read_bytes())
    certificates.make(past, [], ["ge"], now=datetime.now(UTC) - timedelta(days=certificates.DAYS + 30))
    certificates.make(lost, [], ["ge"], ["carl"])
    async with serve(make_store(folder), tls_of(certs, "aggregator")) as running:
        store = running.federation.store
        for name in ("ge", "carl"):
            serial = held.holder_in(lost / f"{name}.pem").serial
            await asyncio.to_thread(enrolment.revoke, store, serial, name, "lost", 0.0)
        foreign_files = tls_of(foreign, "ge")
        people = {
            "no certificate": None,
            "foreign CA": TlsFiles(certs / "ca.pem", foreign_files.certificate, foreign_files.key),
            "expired": tls_of(past, "ge"),
            "revoked": tls_of(lost, "ge"),
            "revoked coordinator's": tls_of(lost, "carl"),
            "site of no federation": tls_of(certs, "stranger"),
            "site's": tls_of(certs, "ge"),
            "observer's": tls_of(certs, "olga"),
            "coordinator's": tls_of(certs, "anna"),
        }
        yield Lab(running, certs / "ca.pem", people)


def refused() -> list[tuple[str, str]]:
    """Every call with everybody whom it is not for."""
    everybody = [(call, who) for call in CALLS for who in NO_CONNECTION]
    everybody += [(call, who) for call in CALLS for who in ("revoked", "site of no federation")]
    everybody += [(call, "revoked coordinator's") for call in CALLS]
    everybody += [(call, who) for call in SITE_CALLS for who in ("observer's", "coordinator's")]
    everybody += [(call, "observer's") for call in STEERING_CALLS]
    return everybody + [(call, "site's") for call in (*READING_CALLS, *STEERING_CALLS)]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("call", "who"), refused())
async def test_a_call_refuses_everybody_it_is_not_for(lab: Lab, call: str, who: str) -> None:
    before = (await lab.running.federation.state()).basis
    async with lab.site(who) as site:
        code, kind, text = await refusal(CALLS[call](site))
    if who in NO_CONNECTION:
        assert code == "UNAVAILABLE"
    else:
        assert (code, kind) == ("PERMISSION_DENIED", "NotEnrolled")
        assert text
    assert (await lab.running.federation.state()).basis == before


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("who", ["coordinator's", "observer's"])
async def test_people_read(lab: Lab, who: str) -> None:
    async with lab.site(who) as person:
        assert (await READING_CALLS["GetStatus"](person)).federation == "demo"


async def test_a_second_agent_with_a_sites_certificate_is_refused_by_every_call_that_changes_something(
    tmp_path: Path,
) -> None:
    certificates.make(tmp_path / "certs", ["127.0.0.1"], SITES)
    async with serve(make_store(tmp_path), tls_of(tmp_path / "certs", "aggregator")) as running:
        files = tls_of(tmp_path / "certs", "ge")
        async with (
            RawSite(running.address, "ge", files) as own,
            RawSite(running.address, "ge", files, "thief") as thief,
        ):
            await own.join()
            await own.begin(PAYLOAD)  # so that the thief's upload is one that is announced
            calls = {
                "Join": thief.join(),
                "AwaitRound": thief.wait(),
                "BeginUpload": thief.begin(PAYLOAD),
                "UploadDelta": thief.stream(list(chunks.split(PAYLOAD)), digest(PAYLOAD)),
                "UploadDelta, announced": whole(thief, PAYLOAD),
                "ReportEvaluation": thief.stub.ReportEvaluation(
                    pb.ReportEvaluationRequest(agent_id="thief", round=1, cases=8, metrics={"auc": 0.75}), timeout=10
                ),
            }
            for name, call in calls.items():
                assert (await refusal(call))[:2] == ("ALREADY_EXISTS", "IdentityInUse"), name
            state = await running.federation.state()
            assert not state.round.accepted
            assert await running.federation.read(evaluations.read, "demo") == []
            assert (await own.upload(PAYLOAD)).digest == digest(PAYLOAD)  # nothing of it was in the way


async def whole(site: RawSite, payload: bytes) -> Any:
    """Announce an update and send it, in one call."""
    announcement = pb.BeginUploadRequest(
        agent_id=site.agent_id,
        round=1,
        digest=digest(payload),
        size=len(payload),
        codec="f32",
        training_patients=site.patients,
        layout_digest=site.layout.digest,
    )

    async def stream() -> AsyncIterator[pb.UploadDeltaRequest]:
        yield pb.UploadDeltaRequest(start=pb.UploadStart(announcement=announcement))
        yield pb.UploadDeltaRequest(chunk=pb.Chunk(data=payload))

    return await site.stub.UploadDelta(stream(), metadata=site.metadata, timeout=10)


# asking, renewing, revoking


def run(app: Any, *arguments: object) -> Any:
    found = CliRunner().invoke(app, [str(part) for part in arguments])
    assert found.exit_code == 0, found.output
    return found


async def test_a_site_joins_in_three_commands_renews_and_is_revoked_while_it_runs(
    materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    where = federation.create_store(tmp_path / "store", materials.adapter, ("siemens",), rounds=1)
    run(cli.build(), "certificates", "--out", "certs", "--host", "127.0.0.1")
    asked = run(site_app, "join", "--site", "siemens", "--out", "site").output
    shown = asked.split("compared with them: ")[1].splitlines()[0]
    approve = ["approve", "site/siemens.csr", "--store", where]
    wrong = CliRunner().invoke(cli.build(), [*approve, "--fingerprint", "0000"])
    assert "it is not the one the site made" in str(wrong.exception)
    answered = run(cli.build(), *approve, "--fingerprint", shown, "--days", "20").output
    assert f"site siemens, key {shown}" in answered
    read_out = answered.split("compared by each site: ")[1].splitlines()[0]
    run(site_app, "join", "--finish", "siemens.approved.pem", "--out", "site", "--ca-fingerprint", read_out)

    files = TlsFiles(*(tmp_path / "site" / name for name in ("ca.pem", "siemens.pem", "siemens.key")))
    server = TlsFiles(*(tmp_path / "certs" / name for name in ("ca.pem", "aggregator.pem", "aggregator.key")))
    serial = held.holder_in(files.certificate).serial
    with structlog.testing.capture_logs() as events:
        async with serve(where, server) as running:
            config = federation.site_config(materials, tmp_path, running.address, "siemens", tls=files)
            agent = Agent(replace(config, plain_site=""), Silent())
            going = asyncio.create_task(agent.run(once=False))
            await federation.until(lambda: any(one["event"] == "federation_finished" for one in events))

            site = (await running.federation.state()).sites["siemens"]
            assert site.expires_at == held.holder_in(files.certificate).expires_at
            status = (await asyncio.to_thread(run, cli.build(), "status", "--store", where)).output
            assert "certificate expires on " in status
            assert "in 20 days" in status

            run(site_app, "join", "--site", "siemens", "--out", "site")
            run(cli.build(), *approve)
            run(site_app, "join", "--finish", "siemens.approved.pem", "--out", "site")
            await federation.until(lambda: any(one["event"] == "certificate_replaced" for one in events))
            renewed_until = held.holder_in(files.certificate).expires_at
            async with asyncio.timeout(federation.TIMEOUT_S):
                while (await running.federation.state()).sites["siemens"].expires_at != renewed_until:
                    await asyncio.sleep(0.5)
                    running.federation._copy = None  # heartbeats raise no revision
            await asyncio.to_thread(enrolment.revoke, running.federation.store, serial, "siemens", "renewed", 1.0)
            async with RawSite(running.address, "siemens", files) as renewed:
                await renewed.wait(agent_id=agent._state.agent_id)

            number = held.holder_in(files.certificate).serial
            run(cli.build(), "revoke", "--store", where, "--certificate", files.certificate, "--reason", "key lost")
            async with RawSite(running.address, "siemens", files) as lost:
                assert "was revoked" in (await refusal(lost.wait()))[2]
            agent.stop()
            with pytest.raises((NotEnrolled, asyncio.CancelledError)):
                await going
    warned = [one for one in events if one["event"] == "certificate_expires"]
    assert {one.get("site") or one["holder"] for one in warned} == {"siemens"}
    opened = engine.open_store(where)
    told = [
        (one.event, one.facts["serial"])
        for one in audit.check(opened, federation.NAME).entries
        if "serial" in one.facts
    ]
    opened.close()
    assert [event for event, _ in told] == [
        "site_approved",
        "site_approved",
        "certificate_revoked",
        "certificate_revoked",
    ]
    assert [one for _, one in told][2:] == [serial, number]


def test_an_agent_that_takes_the_answer_by_itself_shows_what_is_to_be_compared(
    materials: Materials, tmp_path: Path
) -> None:
    store = federation.create_store(tmp_path / "store", materials.adapter, ("siemens",), rounds=1)
    known = run(cli.build(), "certificates", "--out", tmp_path / "certs").output.split("compared by each site: ")[1]
    asked = run(site_app, "join", "--site", "siemens", "--out", tmp_path / "site").output
    approve = ["approve", tmp_path / "site" / "siemens.csr", "--store", store, "--certs", tmp_path / "certs"]
    run(cli.build(), *approve, "--out", tmp_path / "site" / "siemens.approved.pem")
    files = tls_of(tmp_path / "site", "siemens")
    away = f"127.0.0.1:{federation.free_port()}"
    config = federation.site_config(materials, tmp_path, away, "siemens", tls=files, give_up_after_s=0.5)
    agent = federation.run_program("site-agent", *federation.agent_arguments(config))
    assert agent.returncode == 4, agent.stderr
    assert "took the coordinator's answer; this is site siemens" in agent.stderr
    assert f"fingerprint of the CA: {known.strip()}\n" in agent.stderr
    assert f"fingerprint of the key: {asked.split('compared with them: ')[1].splitlines()[0]}\n" in agent.stderr
    assert "compare the CA's with the coordinator by telephone" in agent.stderr


async def test_both_sides_say_that_the_ca_ends(
    materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "CA_DAYS", 20)
    files = federation.make_certificates(tmp_path / "certs", ("siemens",))
    store = federation.create_store(tmp_path / "store", materials.adapter, ("siemens",), rounds=1)
    with structlog.testing.capture_logs() as events:
        async with serve(store, files["aggregator"]) as running:
            config = federation.site_config(
                materials, tmp_path, running.address, "siemens", tls=files["siemens"], federation=federation.NAME
            )
            await federation.finish(Agent(config, Silent()))
    ends = held.holder_in(files["siemens"].ca).expires_at
    said = [one for one in events if one["event"] == "certificate_expires" and one.get("holder") == "CA"]
    assert len(said) == 2  # one of each
    assert all(one["expires_at"] == ends for one in said)


async def test_a_server_takes_a_new_certificate_with_the_next_connection(tmp_path: Path) -> None:
    certs, later = tmp_path / "certs", tmp_path / "later"
    certificates.make(certs, ["127.0.0.1"], SITES)
    later.mkdir()
    for name in ("ca.pem", "ca.key"):
        (later / name).write_bytes((certs / name).read_bytes())
    certificates.make(later, ["127.0.0.1"], ())
    async with serve(make_store(tmp_path), tls_of(certs, "aggregator")) as running:
        shown = [await _server_serial(running.address, certs)]
        (certs / "aggregator.pem").write_bytes((later / "aggregator.pem").read_bytes())
        shown.append(await _server_serial(running.address, certs))  # its key is not there yet
        (certs / "aggregator.key").write_bytes((later / "aggregator.key").read_bytes())
        shown.append(await _server_serial(running.address, certs))
    assert shown[0] == shown[1] != shown[2]
    assert shown[2] == held.holder_in(later / "aggregator.pem").serial


async def _server_serial(address: str, certs: Path) -> str:
    """Return the serial number of the certificate that a server shows in a new connection."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=str(certs / "ca.pem"))
    context.load_cert_chain(certs / "ge.pem", certs / "ge.key")
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=host)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return held.holder(ssl.DER_cert_to_PEM_cert(der).encode()).serial


async def test_an_expired_certificate_is_said_in_words_at_the_coordinator(tmp_path: Path) -> None:
    certificates.make(tmp_path / "certs", ["127.0.0.1"], SITES)
    where = make_store(tmp_path)
    async with serve(where, tls_of(tmp_path / "certs", "aggregator")) as running:
        async with RawSite(running.address, "ge", tls_of(tmp_path / "certs", "ge")) as site:
            await site.join()
        ends = (await running.federation.state()).sites["ge"].expires_at
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(time, "time", lambda: ends + 3 * DAY_S)
            status = CliRunner().invoke(cli.build(), ["sites", "--store", where])
    assert "EXPIRED on" in status.output
    assert "3 days ago" in status.output
