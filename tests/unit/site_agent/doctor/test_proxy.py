"""Which proxy is used. That gRPC goes by the same rules is shown in tests/integration/test_doctor.py."""

from pathlib import Path

import pytest

from site_agent.doctor import proxy
from site_agent.doctor.finding import Proxy
from tests.support.doctored import certified, examined

P = "http://proxy.example.org:3128"
USED = Proxy("proxy.example.org", 3128, "https_proxy")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory):
    return certified(tmp_path_factory.mktemp("certificates"))


@pytest.mark.parametrize(
    ("environ", "status", "used"),
    [
        ({}, "PASS", None),
        ({"https_proxy": P}, "PASS", USED),
        ({"http_proxy": P}, "PASS", Proxy("proxy.example.org", 3128, "http_proxy")),
        ({"grpc_proxy": P, "https_proxy": "http://other:1"}, "PASS", Proxy("proxy.example.org", 3128, "grpc_proxy")),
        ({"https_proxy": "", "http_proxy": P}, "PASS", None),
        ({"https_proxy": P, "no_proxy": "localhost,.example.org"}, "PASS", None),
        ({"https_proxy": P, "no_proxy": "ample.org"}, "PASS", USED),
        ({"https_proxy": P, "no_proxy": "*"}, "PASS", USED),
        ({"https_proxy": P, "no_proxy": "fed.example.org", "no_grpc_proxy": "other"}, "PASS", USED),
        ({"https_proxy": P, "NO_PROXY": "fed.example.org"}, "WARN", USED),
        ({"HTTPS_PROXY": P}, "WARN", None),
        ({"HTTPS_PROXY": P, "NO_PROXY": "example.org"}, "PASS", None),
        ({"https_proxy": "socks5://proxy:1080"}, "WARN", None),
        ({"https_proxy": "https://proxy:3128"}, "WARN", None),
        ({"https_proxy": "proxy:3128"}, "WARN", None),
        ({"https_proxy": "http://proxy:port"}, "WARN", None),
    ],
)
def test_what_gRPC_makes_of_the_environment(tmp_path: Path, files, environ, status: str, used: Proxy | None) -> None:
    site = examined(tmp_path, files, 443, "fed.example.org", environ=environ)
    assert proxy.settings(site).status == status
    assert site.proxy == used


@pytest.mark.parametrize(("network", "used"), [("10.0.0.0/8", False), ("11.0.0.0/8", True), ("10.1.2.3", False)])
def test_an_address_is_left_out_by_its_network(tmp_path: Path, files, network: str, used: bool) -> None:
    site = examined(tmp_path, files, 443, "10.1.2.3", environ={"https_proxy": P, "no_proxy": network})
    proxy.settings(site)
    assert (site.proxy is not None) == used


def test_a_password_in_a_variable_is_never_shown(tmp_path: Path, files) -> None:
    for address in ("http://anna:s3cret@proxy:3128", "socks5://anna:s3cret@proxy:1080", "anna:s3cret@proxy:1080"):
        site = examined(tmp_path, files, environ={"https_proxy": address})
        assert "s3cret" not in repr(proxy.settings(site)) + repr(site.proxy)


def test_plain_text_goes_through_no_proxy(tmp_path: Path) -> None:
    site = examined(tmp_path, None, environ={"https_proxy": P})
    assert (proxy.settings(site).status, site.proxy) == ("PASS", None)
