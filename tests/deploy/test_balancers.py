"""The two balancers documented for replicas: their own programs take the files, and nginx passes mTLS through.

HAProxy in front of replicas that die or hang: tests/integration/test_replicas.py.
"""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from aggregator import certificates
from shared.tls import TlsFiles
from tests.deploy import nginx
from tests.integration import federation
from tests.support import haproxy
from tests.support.postgres import PostgresServer
from tests.support.raw_site import RawSite, refusal
from tests.support.serving import SITES, make_store, serve, tls_of

pytestmark = pytest.mark.integration

ENDS_TLS = """
pid {folder}/nginx.pid;
error_log stderr notice;
events {{}}
http {{
    access_log off;
    server {{
        listen {listen} ssl http2;
        ssl_certificate {certs}/aggregator.pem;
        ssl_certificate_key {certs}/aggregator.key;
        ssl_client_certificate {certs}/ca.pem;
        ssl_verify_client on;
        location / {{
            grpc_pass grpcs://{replica};
            grpc_ssl_certificate {certs}/{shown}.pem;
            grpc_ssl_certificate_key {certs}/{shown}.key;
        }}
    }}
}}
"""
"""What not to do: TLS of the sites ends in the proxy, which shows a certificate of its own."""


def test_haproxy_takes_its_file() -> None:
    addresses = {
        "MED_DUALLORA_LISTEN": "127.0.0.1:50051",
        "REPLICA_1": "10.0.0.11:50051",
        "REPLICA_2": "10.0.0.12:50051",
    }
    done = subprocess.run(
        [haproxy.binary(), "-c", "-f", haproxy.CONFIGURATION],
        env={**os.environ, **addresses},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "WARNING" in done.stderr) == (0, False), done.stderr


def test_nginx_takes_its_file(tmp_path: Path) -> None:
    listen = f"127.0.0.1:{federation.free_port()}"
    configuration = nginx.documented(tmp_path / "nginx", listen, "10.0.0.11:50051", "10.0.0.12:50051")
    done = subprocess.run([*nginx.command(configuration), "-t"], capture_output=True, text=True, check=False)
    assert (done.returncode, "[warn]" in done.stderr) == (0, False), done.stderr


@contextlib.asynccontextmanager
async def joined(address: str, names: tuple[str, ...], certs: Path) -> AsyncIterator[list[RawSite]]:
    """Yield sites that joined over connections of their own, at the first try."""
    async with contextlib.AsyncExitStack() as stack:
        sites = []
        for name in names:
            site = await stack.enter_async_context(RawSite(address, name, tls_of(certs, name)))
            await site.join()
            sites.append(site)
        yield sites


async def answered(site: RawSite) -> None:
    """Call as an agent does, again until the call is answered."""
    async with asyncio.timeout(20.0):
        while True:
            try:
                await site.wait()
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.1)
            else:
                return


async def test_nginx_balances_sites_with_mtls_and_leaves_a_replica_that_is_gone(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    certs, port = tmp_path / "certs", federation.free_port()
    certificates.make(certs, ["127.0.0.1"], SITES)
    tls = tls_of(certs, "aggregator")
    store = make_store(tmp_path, url=postgres.fresh_database())
    async with serve(store, tls) as first, serve(store, tls) as second:
        address = f"127.0.0.1:{port}"
        configuration = nginx.documented(tmp_path / "nginx", address, first.address, second.address)
        with nginx.running(configuration, port):
            async with joined(address, SITES[:2], certs) as before:
                await first.stop(0.0)
                await asyncio.gather(*map(answered, before))
                async with joined(address, SITES * 2, certs):  # none of those that dial now meets the one that is gone
                    pass
            log = tmp_path / "nginx" / "connections.log"  # a line a connection, when it has ended
            for replica in (first, second):
                served = f"to {replica.address} 200"
                await federation.until(lambda served=served: served in log.read_text())


async def test_a_proxy_that_ends_tls_is_refused_because_the_certificate_says_who_calls(tmp_path: Path) -> None:
    certs, port = tmp_path / "certs", federation.free_port()
    certificates.make(certs, ["127.0.0.1"], SITES, observers=["proxy"])
    site: TlsFiles = tls_of(certs, "ge")
    async with serve(make_store(tmp_path), tls_of(certs, "aggregator")) as running:
        text = ENDS_TLS.format(
            folder=tmp_path / "nginx", certs=certs, listen=f"127.0.0.1:{port}", replica=running.address, shown="proxy"
        )
        with nginx.running(nginx.written(tmp_path / "nginx", text), port):
            async with (
                RawSite(f"127.0.0.1:{port}", "ge", site) as through,
                RawSite(running.address, "ge", site) as direct,
            ):
                code, kind, words = await refusal(through.join())
                assert (code, kind) == ("PERMISSION_DENIED", "NotEnrolled")
                assert "the certificate names 0 sites" in words
                await direct.join()
