"""The way to a port, blocked in one way, on loopback."""

import socket
from pathlib import Path

import pytest

from site_agent.doctor import network, tls
from site_agent.doctor.finding import Proxy
from tests.support import tls_server
from tests.support.doctored import certified, examined
from tests.support.serving import tls_of
from tests.support.tls_server import http_proxy, listening


def test_an_address_needs_no_resolution_and_a_name_is_looked_up(tmp_path: Path) -> None:
    assert network.name(examined(tmp_path, None)).words == "127.0.0.1 is an address"
    found = network.name(examined(tmp_path, None, host="localhost"))
    assert found.status == "PASS"
    assert set(found.facts["addresses"]) & {"127.0.0.1", "::1"}


def test_a_name_that_none_can_have_fails(tmp_path: Path) -> None:
    found = network.name(examined(tmp_path, certified(tmp_path), host="fed..example.org"))
    assert (found.status, found.words) == ("FAIL", "'fed..example.org' has no address: it is no host name")


def test_a_port_that_answers_passes(tmp_path: Path) -> None:
    with listening(tls_server.silent) as port:
        found = network.tcp(examined(tmp_path, None, port))
    assert found.status == "PASS"


def test_a_port_on_which_nobody_listens_fails_as_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    found = network.tcp(examined(tmp_path, None, port))
    assert (found.status, found.words) == ("FAIL", f"127.0.0.1 port {port} refuses the connection")
    assert "nobody listens there" in found.remedy


def test_an_address_without_a_route_fails_as_that(tmp_path: Path) -> None:
    site = examined(tmp_path, certified(tmp_path), 443, "224.0.0.1")  # a multicast group's: TCP has no route to one
    found = network.tcp(site)
    assert (found.status, found.words) == ("FAIL", "224.0.0.1 port 443 cannot be reached: Network is unreachable")
    assert "this machine has no route there" in found.remedy


def test_a_port_that_drops_what_comes_fails_as_silence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        waiting = [
            socket.socket() for _ in range(3)
        ]  # the queue is full: the kernel drops further SYNs, as firewalls do
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        found = network.tcp(examined(tmp_path, None, port, patience_s=0.2))
        for one in waiting:
            one.close()
    assert (found.status, found.words) == ("FAIL", f"127.0.0.1 port {port} does not answer within 0.2 s")
    assert "firewall" in found.remedy


# --- through a proxy --------------------------------------------------------------------------------------------------


def test_through_a_proxy_the_whole_way_is_looked_at(tmp_path: Path) -> None:
    files, heads = certified(tmp_path), list[str]()
    shown = tls_server.tls(tmp_path / "aggregator.pem", tmp_path / "aggregator.key")
    with listening(shown) as port, listening(http_proxy(seen=heads)) as proxy_port:
        site = examined(tmp_path, files, port)
        site.proxy = Proxy("127.0.0.1", proxy_port, "https_proxy", "anna:s3cret")
        assert network.tcp(site).status == "PASS"
        assert tls.chain(site).status == "PASS"
    assert heads[0].startswith(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n")
    assert "Proxy-Authorization: Basic YW5uYTpzM2NyZXQ=\r\n" in heads[0]


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        ("403 Forbidden", "have the proxy allow CONNECT to"),
        ("407 Proxy Authentication Required", "the proxy wants a login"),
        ("502 Bad Gateway", "have the proxy allow CONNECT to"),
    ],
)
def test_a_proxy_that_refuses_fails_with_its_answer(tmp_path: Path, status: str, remedy: str) -> None:
    files = certified(tmp_path)
    with listening(http_proxy(status)) as port:
        site = examined(tmp_path, files, 443, "fed.example.org")
        site.proxy = Proxy("127.0.0.1", port, "https_proxy")
        found = network.tcp(site)
    assert found.status == "FAIL"
    assert f"the proxy answered: HTTP/1.1 {status}" in found.words
    assert found.remedy.startswith(remedy)


def test_a_proxy_that_is_none_and_one_that_is_away_fail(tmp_path: Path) -> None:
    certified(tmp_path)
    with listening(tls_server.plain(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")) as port:
        site = examined(tmp_path, tls_of(tmp_path, "ge"), 443, "fed.example.org")
        site.proxy = Proxy("127.0.0.1", port, "https_proxy")
        assert "does not seem to be an HTTP proxy" in network.tcp(site).remedy
    found = network.tcp(site)
    assert (found.status, found.words) == ("FAIL", f"the proxy 127.0.0.1 port {port} refuses the connection")
