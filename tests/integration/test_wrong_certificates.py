"""An agent whose certificates are wrong says so at its start, or says where to look while it waits."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog

from aggregator import certificates
from shared.errors import AggregatorUnreachable, InputError
from shared.tls import TlsFiles
from site_agent.agent import Agent
from site_agent.certificate import DOCTOR
from site_agent.view import Silent
from tests.integration import federation
from tests.integration.federation import Materials
from tests.support.serving import serve

pytestmark = pytest.mark.integration
SITES = ("siemens", "philips")


def agent(materials: Materials, folder: Path, address: str, tls: TlsFiles) -> Agent:
    config = federation.site_config(materials, folder, address, "siemens", tls=tls, give_up_after_s=1.0)
    return Agent(config, Silent())


async def test_a_key_of_another_certificate_ends_the_agent_before_it_calls_anybody(
    materials: Materials, tmp_path: Path
) -> None:
    files = federation.make_certificates(tmp_path / "certs", SITES)
    mixed = replace(files["siemens"], key=files["philips"].key)
    with pytest.raises(InputError, match=r"philips\.key is not that of certificate .*siemens\.pem"):
        await agent(materials, tmp_path, "127.0.0.1:1", mixed).run(once=True)


@pytest.mark.parametrize("wrong", ["foreign CA", "expired"])
async def test_while_nobody_answers_over_tls_the_log_says_what_to_do(
    materials: Materials, tmp_path: Path, wrong: str
) -> None:
    files = federation.make_certificates(tmp_path / "certs", SITES)
    if wrong == "foreign CA":
        own, said = federation.make_certificates(tmp_path / "foreign", SITES)["siemens"], DOCTOR
    else:
        (tmp_path / "old").mkdir()
        for name in ("ca.pem", "ca.key"):
            (tmp_path / "old" / name).write_bytes((tmp_path / "certs" / name).read_bytes())
        certificates.make(
            tmp_path / "old", [], ["siemens"], now=datetime.now(UTC) - timedelta(days=certificates.DAYS + 30)
        )
        own = TlsFiles(*(tmp_path / "old" / name for name in ("ca.pem", "siemens.pem", "siemens.key")))
        said = "renew it: site-agent join --site siemens"
    store = federation.create_store(tmp_path / "store", materials.adapter, SITES)
    with structlog.testing.capture_logs() as events:
        async with serve(store, files["aggregator"]) as running:
            with pytest.raises(AggregatorUnreachable, match=said):
                await agent(materials, tmp_path, running.address, own).run(once=True)
    waited = [one for one in events if one["event"] == "aggregator_unreachable"]
    assert waited
    assert all(said in one["advice"] for one in waited)
    assert (wrong == "expired") == any(one["event"] == "certificate_expires" for one in events)
