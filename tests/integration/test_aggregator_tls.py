"""Who may call what, with real certificates on both ends."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from med_duallora.v1 import coordinator_pb2 as cpb
from med_duallora.v1.coordinator_pb2_grpc import CoordinatorServiceStub

from aggregator import certificates
from aggregator.errors import CannotBind
from aggregator.server import RunningServer, ServerConfig
from shared.certificates import PREFIXES
from shared.errors import InputError
from shared.tls import TlsFiles
from tests.support.raw_site import RawSite, refusal
from tests.support.serving import SITES, make_store, serve, tls_of

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    certificates.make(folder, ["127.0.0.1"], [*SITES, "stranger"], ["anna"])
    return folder


@pytest.fixture
async def running(tmp_path: Path, certs: Path) -> AsyncIterator[RunningServer]:
    async with serve(make_store(tmp_path), tls_of(certs, "aggregator")) as server_:
        yield server_


async def test_a_federation_finishes_over_mtls_with_names_from_certificates(tmp_path: Path, certs: Path) -> None:
    async with serve(make_store(tmp_path), tls_of(certs, "aggregator")) as running:
        sites = [RawSite(running.address, name, tls_of(certs, name)) for name in SITES]
        answers = await asyncio.gather(*(site.take_part(seed=k) for k, site in enumerate(sites)))
        assert len({a.digest for a in answers}) == 1
        state = await running.federation.state()
        assert all(site.authenticated for site in state.sites.values())


async def test_the_name_comes_from_the_certificate_and_never_from_metadata(running: RunningServer, certs: Path) -> None:
    async with RawSite(running.address, "siemens", tls_of(certs, "ge")) as site:  # metadata says siemens
        assert (await site.join()).site == "ge"


async def test_a_plain_name_is_marked_unauthenticated(tmp_path: Path) -> None:
    async with serve(make_store(tmp_path)) as running, RawSite(running.address, "ge") as site:
        await site.join()
        assert not (await running.federation.state()).sites["ge"].authenticated


async def test_a_certificate_of_a_site_that_is_not_enrolled_is_refused(running: RunningServer, certs: Path) -> None:
    async with RawSite(running.address, "stranger", tls_of(certs, "stranger")) as site:
        assert (await refusal(site.join()))[:2] == ("PERMISSION_DENIED", "NotEnrolled")


async def test_a_coordinators_certificate_is_no_sites(running: RunningServer, certs: Path) -> None:
    async with RawSite(running.address, "ge", tls_of(certs, "anna")) as site:
        code, kind, text = await refusal(site.join())
        assert (code, kind) == ("PERMISSION_DENIED", "NotEnrolled")
        assert "names 0 sites" in text


async def test_only_a_coordinator_reads_and_steers(running: RunningServer, certs: Path) -> None:
    async with RawSite(running.address, "anna", tls_of(certs, "anna")) as anna:
        assert (await CoordinatorServiceStub(anna.channel).GetStatus(cpb.GetStatusRequest())).federation == "demo"
    async with RawSite(running.address, "ge", tls_of(certs, "ge")) as site:
        stub = CoordinatorServiceStub(site.channel)
        for call in (
            stub.GetStatus(cpb.GetStatusRequest()),
            stub.ListRounds(cpb.ListRoundsRequest()),
            stub.Pause(cpb.PauseRequest()),
            stub.Resume(cpb.ResumeRequest()),
            stub.Evict(cpb.EvictRequest(site="siemens")),
            stub.Rollback(cpb.RollbackRequest(version=0)),
        ):
            code, kind, text = await refusal(call)
            assert (code, kind) == ("PERMISSION_DENIED", "NotEnrolled")
            assert "for coordinators" in text
    assert (await running.federation.state()).phase == "running"


async def test_a_foreign_ca_gets_no_connection(running: RunningServer, certs: Path, tmp_path: Path) -> None:
    certificates.make(tmp_path / "foreign", [], ["ge"])
    mixed = TlsFiles(certs / "ca.pem", tmp_path / "foreign" / "ge.pem", tmp_path / "foreign" / "ge.key")
    async with RawSite(running.address, "ge", mixed) as site:
        assert (await refusal(site.join()))[0] == "UNAVAILABLE"


async def test_a_client_without_a_certificate_gets_no_connection(running: RunningServer, certs: Path) -> None:
    async with RawSite(running.address, "ge") as plain:
        assert (await refusal(plain.join()))[0] == "UNAVAILABLE"
    async with RawSite(running.address, "ge") as site:
        await site.channel.close()
        credentials = grpc.ssl_channel_credentials((certs / "ca.pem").read_bytes())
        async with grpc.aio.secure_channel(running.address, credentials) as channel:
            site.stub = type(site.stub)(channel)
            assert (await refusal(site.join()))[0] == "UNAVAILABLE"


async def test_an_expired_certificate_gets_no_connection(running: RunningServer, certs: Path, tmp_path: Path) -> None:
    for name in ("ca.pem", "ca.key"):
        (tmp_path / name).write_bytes((certs / name).read_bytes())
    long_ago = datetime.now(UTC) - timedelta(days=certificates.DAYS + 30)
    certificates.make(tmp_path, [], ["ge"], now=long_ago)
    async with RawSite(running.address, "ge", tls_of(tmp_path, "ge")) as site:
        assert (await refusal(site.join()))[0] == "UNAVAILABLE"


async def test_a_certificate_that_names_two_sites_is_refused(
    running: RunningServer, certs: Path, tmp_path: Path
) -> None:
    authority = certificates.Authority.read(certs)
    uris = [x509.UniformResourceIdentifier(PREFIXES["site"] + name) for name in ("ge", "siemens")]
    (tmp_path / "ca.pem").write_bytes((certs / "ca.pem").read_bytes())
    authority.issue(tmp_path, "both", uris, datetime.now(UTC), server=False)
    async with RawSite(running.address, "ge", tls_of(tmp_path, "both")) as site:
        assert "names 2 sites" in (await refusal(site.join()))[2]


async def test_a_site_refuses_an_aggregator_of_another_ca(running: RunningServer, certs: Path, tmp_path: Path) -> None:
    certificates.make(tmp_path / "foreign", [], ["ge"])
    mixed = TlsFiles(tmp_path / "foreign" / "ca.pem", certs / "ge.pem", certs / "ge.key")
    async with RawSite(running.address, "ge", mixed) as site:
        assert (await refusal(site.join()))[0] == "UNAVAILABLE"


async def certificate_shown(address: str, tls: TlsFiles) -> bytes:
    """Return the certificate (PEM) that a server shows to a new connection with these files."""
    context = ssl.create_default_context(cafile=tls.ca)
    context.load_cert_chain(tls.certificate, tls.key)
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return ssl.DER_cert_to_PEM_cert(shown).encode()


async def test_a_renewed_certificate_is_shown_with_the_next_connection_and_calls_under_way_go_on(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "certs"
    certificates.make(folder, ["127.0.0.1"], SITES)
    before = (folder / "aggregator.pem").read_bytes()
    async with (
        serve(make_store(tmp_path), tls_of(folder, "aggregator")) as running,
        RawSite(running.address, "ge", tls_of(folder, "ge")) as connected,
    ):
        await connected.join()
        assert await certificate_shown(running.address, tls_of(folder, "siemens")) == before
        certificates.renew(folder)
        renewed = (folder / "aggregator.pem").read_bytes()
        assert renewed != before
        assert await certificate_shown(running.address, tls_of(folder, "siemens")) == renewed
        await connected.join()
        async with RawSite(running.address, "philips", tls_of(folder, "philips")) as new:
            await new.join()


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:50051", "example.org:50051"])
def test_plain_text_is_for_loopback_only(listen: str) -> None:
    with pytest.raises(InputError, match="plain text is allowed on loopback only"):
        ServerConfig(listen=listen, tls=None)


@pytest.mark.parametrize("listen", ["127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", ""])
def test_an_address_that_is_none_is_named(listen: str) -> None:
    with pytest.raises(InputError, match="listen must be host:port"):
        ServerConfig(listen=listen, tls=None)


async def test_a_port_in_use_is_an_error_and_no_second_server(running: RunningServer, tmp_path: Path) -> None:
    folder = tmp_path / "second"
    with pytest.raises(CannotBind, match=rf"cannot listen on {running.address}: the port is in use"):
        async with serve(make_store(folder), listen=running.address):
            pytest.fail("two servers listen on one port")
