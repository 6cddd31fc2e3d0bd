"""Who may look at the status page, and what its port takes: certificates, names, methods, connections."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from aggregator import certificates
from aggregator.errors import CannotBind
from aggregator.facts.calls import Calls
from aggregator.facts.current import CurrentFacts
from aggregator.server import RunningServer, ServerConfig
from aggregator.store import revocations
from aggregator.web import doors
from aggregator.web import server as web
from aggregator.web.metrics import Metrics
from aggregator.web.server import RunningWeb
from shared.certificates import holder_in
from shared.errors import InputError
from shared.tls import TlsFiles
from tests.support.serving import SITES, make_store, serve, tls_of

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
ANY = "127.0.0.1:0"
BEHIND_TLS = ("", "status.json", "metrics", "static/page.js")


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of the aggregator, its sites, anna (coordinator), otto (observer) and, of another CA, eve."""
    folder = tmp_path_factory.mktemp("certs")
    certificates.make(folder, ["127.0.0.1"], SITES, coordinators=["anna"], observers=["otto", "rita"])
    certificates.make(folder / "other", ["127.0.0.1"], [], observers=["eve"])
    return folder


@dataclass
class Reachable:
    """A server whose page is served as it is to other machines, over TLS; here on loopback all the same."""

    running: RunningServer
    page: RunningWeb


@asynccontextmanager
async def served_to_others(store: str, tls: TlsFiles) -> AsyncIterator[Reachable]:
    async with serve(store, tls) as running:
        calls = Calls(lambda: running.federation.last_state, time.time)
        current = CurrentFacts(running.federation, calls)
        pages = web.Pages(
            federation=running.federation,
            health=running.health,
            current=current,
            metrics=Metrics(calls, current, running.health, tls),
            encrypted=True,
        )
        page = await web.start(pages, "127.0.0.1:0", tls)
        try:
            yield Reachable(running, page)
        finally:
            await page.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory, certs: Path) -> AsyncIterator[Reachable]:
    async with served_to_others(make_store(tmp_path_factory.mktemp("guarded")), tls_of(certs, "aggregator")) as found:
        yield found


async def get(url: str, ca: Path, who: TlsFiles | None = None, method: str = "GET") -> tuple[int, str, dict[str, str]]:
    context = ssl.create_default_context(cafile=ca)
    if who is not None:
        context.load_cert_chain(who.certificate, who.key)
    async with aiohttp.ClientSession() as session, session.request(method, url, ssl=context) as answer:
        return answer.status, await answer.text(), dict(answer.headers)


@pytest.mark.parametrize("who", ["anna", "otto"])
async def test_people_with_a_certificate_see_everything(guarded: Reachable, certs: Path, who: str) -> None:
    for path in BEHIND_TLS:
        status, text, _ = await get(guarded.page.url + path, certs / "ca.pem", tls_of(certs, who))
        assert (status, bool(text)) == (200, True), path


@pytest.mark.parametrize("who", [None, "ge"])
async def test_nobody_else_sees_anything_but_whether_it_is_healthy(
    guarded: Reachable, certs: Path, who: str | None
) -> None:
    files = tls_of(certs, who) if who else None
    for path in BEHIND_TLS:
        status, text, _ = await get(guarded.page.url + path, certs / "ca.pem", files)
        assert status == 403, path
        assert "certificates --observer NAME" in text
        assert "demo" not in text
    assert [(await get(guarded.page.url + path, certs / "ca.pem", files))[:2] for path in ("healthz", "readyz")] == [
        (200, "alive\n"),
        (200, "ready\n"),
    ]


async def test_a_certificate_of_another_ca_makes_no_connection(guarded: Reachable, certs: Path) -> None:
    with pytest.raises(aiohttp.ClientError):
        await get(guarded.page.url, certs / "ca.pem", tls_of(certs / "other", "eve"))


async def test_revoked_certificates_do_not_open_the_page(guarded: Reachable, certs: Path) -> None:
    rita = tls_of(certs, "rita")
    assert (await get(guarded.page.url, certs / "ca.pem", rita))[0] == 200
    serial = holder_in(rita.certificate).serial
    await guarded.running.federation.record(revocations.add, "demo", serial, "rita", "left", "anna", time.time())
    status, text, _ = await get(guarded.page.url, certs / "ca.pem", rita)
    assert (status, "was revoked" in text) == (403, True)


async def test_a_certificate_that_ends_while_its_connection_lasts(tmp_path: Path, certs: Path) -> None:
    """TLS checks it when the connection is made; a browser keeps connections."""
    short = datetime.now(UTC) - timedelta(days=certificates.DAYS) + timedelta(seconds=30)
    certificates.make(tmp_path / "short", ["127.0.0.1"], [], observers=["otto"], now=short)
    made = tls_of(tmp_path / "short", "aggregator")
    files = replace(tls_of(certs, "aggregator"), ca=made.ca)
    async with served_to_others(make_store(tmp_path / "s"), files) as found:
        otto = tls_of(tmp_path / "short", "otto")
        assert (await get(found.page.url, certs / "ca.pem", otto))[0] == 200
        found.running.federation.clock = lambda: time.time() + 60.0
        status, text, _ = await get(found.page.url, certs / "ca.pem", otto)
    assert (status, "has ended" in text) == (403, True)


async def test_replaced_files_take_effect_without_a_restart(tmp_path: Path, certs: Path) -> None:
    folder = tmp_path / "certs"
    certificates.make(folder, ["127.0.0.1"], [], observers=["otto"])
    async with served_to_others(make_store(tmp_path / "s"), tls_of(folder, "aggregator")) as found:
        assert (await get(found.page.url, folder / "ca.pem", tls_of(folder, "otto")))[0] == 200
        for name in ("ca.pem", "aggregator.pem", "aggregator.key"):
            (folder / name).write_bytes((certs / name).read_bytes())
        assert (await get(found.page.url, certs / "ca.pem", tls_of(certs, "otto")))[0] == 200
        with pytest.raises(aiohttp.ClientError):
            await get(found.page.url, certs / "ca.pem", tls_of(folder, "otto"))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_there_is_nothing_to_change(guarded: Reachable, certs: Path, method: str) -> None:
    assert (await get(guarded.page.url, certs / "ca.pem", tls_of(certs, "anna"), method))[0] == 405


@pytest.mark.parametrize("path", [*BEHIND_TLS, "healthz", "nothing"])
async def test_every_answer_has_the_headers_of_a_page_that_loads_nothing(
    guarded: Reachable, certs: Path, path: str
) -> None:
    _, text, headers = await get(guarded.page.url + path, certs / "ca.pem", tls_of(certs, "anna"), "HEAD")
    assert text == ""
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == ("nosniff", "no-referrer")
    assert headers["Cache-Control"] == "no-store"
    assert "Server" not in headers


async def test_a_name_of_elsewhere_does_not_open_the_page_on_loopback(tmp_path: Path) -> None:
    """A page in this machine's browser could give 127.0.0.1 a name of its own and read what is served there."""
    async with serve(make_store(tmp_path), http=ANY) as running, aiohttp.ClientSession() as session:
        assert running.web is not None
        for host, expected in (("evil.example.org", 403), ("localhost:80", 200), ("[::1]", 200)):
            async with session.get(running.web.url, headers={"Host": host}) as answer:
                assert answer.status == expected, host


async def test_connections_that_say_nothing_keep_nobody_out_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "MOST", 3)
    monkeypatch.setattr(doors, "SILENT_S", 1.0)
    async with serve(make_store(tmp_path), http=ANY) as running, aiohttp.ClientSession() as session:
        assert running.web is not None
        host, port = running.web.url.removeprefix("http://").strip("/").split(":")
        idle = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
        with pytest.raises(aiohttp.ClientError):
            await session.get(running.web.url + "healthz")
        for reader, _ in idle:
            assert await asyncio.wait_for(reader.read(), 20.0) == b"", "it was closed"
        async with session.get(running.web.url + "healthz") as answer:
            assert answer.status == 200


async def test_a_port_that_is_taken_stops_the_start(tmp_path: Path) -> None:
    async with serve(make_store(tmp_path / "one"), http=ANY) as running:
        assert running.web is not None
        taken = running.web.url.removeprefix("http://").strip("/")
        with pytest.raises(CannotBind, match=r"for the status page: .*in use.* choose another address with --http"):
            async with serve(make_store(tmp_path / "two"), http=taken):
                raise AssertionError("it started")


async def test_plain_pages_are_for_this_machine_alone(certs: Path) -> None:
    for local in ("127.0.0.1:8080", "localhost:0", "[::1]:0"):
        assert ServerConfig(listen="127.0.0.1:0", tls=None, http=local).http_is_local
    with pytest.raises(InputError, match=r"--http 127\.0\.0\.1:8080"):
        ServerConfig(listen="127.0.0.1:0", tls=None, http="192.0.2.1:8080")
    with pytest.raises(InputError, match="http must be host:port"):
        ServerConfig(listen="127.0.0.1:0", tls=None, http="8080")
    assert not ServerConfig(listen="127.0.0.1:0", tls=tls_of(certs, "aggregator"), http="192.0.2.1:8443").http_is_local


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: [::\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\r\n\r\n",
        b"GET /%00%ff/../static/../../server.py HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=["bad host", "spaces", "no host", "TLS", "path", "long"],
)
async def test_what_is_no_request_for_a_page_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], request_: bytes
) -> None:
    async with serve(make_store(tmp_path), http=ANY) as running:
        assert running.web is not None
        host, port = running.web.url.removeprefix("http://").strip("/").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request_)
        status = (await asyncio.wait_for(reader.readline(), 20.0)).split()[1]
        writer.close()
    assert status in (b"400", b"403", b"404")
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
