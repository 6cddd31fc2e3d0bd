"""Metrics, health and readiness of real servers: what Prometheus scrapes, what probes and balancers are told."""

import asyncio
import re
import shutil
import subprocess
from pathlib import Path

import aiohttp
import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from aggregator import health as healths
from aggregator.facts import current
from aggregator.server import RunningServer
from tests.support import adapters
from tests.support.postgres import PostgresServer
from tests.support.raw_site import RawSite, refusal
from tests.support.serving import SITES, make_store, serve

pytestmark = pytest.mark.integration
ANY = "127.0.0.1:0"
ROOT = Path(__file__).resolve().parents[2]
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def get(running: RunningServer, path: str) -> tuple[int, str]:
    assert running.web is not None
    async with aiohttp.ClientSession() as session, session.get(running.web.url + path) as answer:
        return answer.status, await answer.text()


def samples(text: str) -> dict[str, float]:
    """Return the metrics as name{label="value",...} to value, labels sorted."""
    found = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(one.labels.items()))
            found[f"{one.name}{{{labels}}}" if labels else one.name] = one.value
    return found


def promtool(*arguments: object, stdin: str | None = None, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    found = shutil.which("promtool")
    assert found, "promtool is missing: make servers"
    return subprocess.run(
        [found, *map(str, arguments)], input=stdin, cwd=folder, capture_output=True, text=True, check=False
    )


async def test_metrics_say_what_the_sites_sent_and_where_the_federation_stands(tmp_path: Path) -> None:
    async with serve(make_store(tmp_path), http=ANY) as running:
        sites = [RawSite(running.address, name) for name in SITES]
        await asyncio.gather(*(site.take_part(seed=k) for k, site in enumerate(sites)))
        code, _, _ = await refusal(sites[0].begin(b"x" * 50, 99))
        assert code == "INVALID_ARGUMENT"
        for site in sites:
            await site.channel.close()
        status, text = await get(running, "metrics")
    assert status == 200
    found = samples(text)
    size = adapters.adapter().manifest.layout.size
    for name in SITES:
        assert found[f'med_duallora_rpc_handled_total{{code="OK",rpc="UploadDelta",site="{name}"}}'] == 2
        assert (
            found[f'med_duallora_rpc_payload_bytes_total{{direction="up",rpc="UploadDelta",site="{name}"}}'] == 2 * size
        )
        assert found[f'med_duallora_site_update_bytes_total{{site="{name}"}}'] == 2 * size
        assert found[f'med_duallora_site_standing{{site="{name}",standing="finished"}}'] == 1
    assert found['med_duallora_rpc_handled_total{code="INVALID_ARGUMENT",rpc="BeginUpload",site="ge"}'] == 1
    assert found["med_duallora_rounds_closed_total"] == found["med_duallora_rounds_planned"] == 2
    assert found['med_duallora_federation_phase{phase="finished"}'] == 1
    assert found["med_duallora_ready"] == found["med_duallora_store_up"] == 1
    assert found['med_duallora_rpc_duration_seconds_count{rpc="UploadDelta"}'] == 2 * len(SITES)
    assert found['med_duallora_rpc_duration_seconds_bucket{le="+Inf",rpc="UploadDelta"}'] == 2 * len(SITES)
    assert found["process_resident_memory_bytes"] > 0
    documented = (ROOT / "docs" / "status-page.md").read_text()
    for name in {
        re.sub(r"_(bucket|count|sum)?\{.*|_(bucket|count|sum)$", "", one) for one in found if one.startswith("med_")
    }:
        assert f"`{name.partition('{')[0]}`" in documented, f"{name} is not in docs/status-page.md"
    lint = promtool("check", "metrics", stdin=text)
    assert (lint.returncode, lint.stdout, lint.stderr) == (0, "", ""), "names and units by Prometheus's own rules"


async def test_a_site_that_makes_names_up_adds_no_series(tmp_path: Path) -> None:
    async with serve(make_store(tmp_path), http=ANY) as running:
        for name in ("one", "two"):
            async with RawSite(running.address, name) as site:
                assert (await refusal(site.join()))[1] == "NotEnrolled"
        _, text = await get(running, "metrics")
    callers = {
        one.labels["site"]
        for f in text_string_to_metric_families(text)
        for one in f.samples
        if "rpc" in one.labels and "site" in one.labels
    }
    assert callers == {"(other)"}


def test_every_alert_is_valid_fires_when_it_should_and_asks_for_metrics_that_there_are() -> None:
    folder = ROOT / "deploy" / "prometheus"
    checked = promtool("check", "rules", "alerts.yml", folder=folder)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = promtool("test", "rules", "alerts.test.yml", folder=folder)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    rules, tests = (folder / "alerts.yml").read_text(), (folder / "alerts.test.yml").read_text()
    alerts = set(re.findall(r"- alert: (\w+)", rules))
    for alert in alerts:
        assert re.search(rf"alertname: {alert}\n\s+exp_alerts", tests), f"{alert} is never seen to fire"
        assert alert in (ROOT / "docs" / "status-page.md").read_text(), f"{alert} is not in docs/status-page.md"
    source = (ROOT / "aggregator" / "web" / "metrics.py").read_text()
    for name in set(re.findall(r"med_duallora_(\w+)", rules)) - {"duallora"}:
        assert f'"{name.removesuffix("_total")}"' in source or f"{{PREFIX}}{name.removesuffix('_total')}" in source, (
            name
        )


async def test_health_goes_with_the_store_and_comes_back(postgres: PostgresServer, tmp_path: Path) -> None:
    """PostgreSQL is stopped under a serving process: it lives, takes no calls, says why, and is ready again by itself."""
    async with (
        serve(make_store(tmp_path, url=postgres.fresh_database()), http=ANY) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        watched = stub.Watch(health_pb2.HealthCheckRequest(service="med_duallora.v1.FederationService"), timeout=60)
        assert (await watched.read()).status == SERVING
        assert await get(running, "readyz") == (200, "ready\n")
        postgres.stop()
        try:
            status, text = await get(running, "readyz")
            assert (status, text.partition(":")[0]) == (503, "not ready")
            assert "store" in text
            assert (await watched.read()).status == NOT_SERVING
            for service in healths.SERVICES:
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
                assert answer.status == NOT_SERVING
            assert await get(running, "healthz") == (200, "alive\n")
            found = samples((await get(running, "metrics"))[1])
            assert (found["med_duallora_ready"], found["med_duallora_store_up"]) == (0, 0)
            assert "med_duallora_round_number" not in found
            assert (await get(running, "status.json"))[0] == 503
        finally:
            postgres.start()
        assert (await watched.read()).status == SERVING, "nobody had to ask"
        assert await get(running, "readyz") == (200, "ready\n")


async def test_a_store_that_hangs_is_not_waited_for(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody keeps the tables locked: every reading waits, none fails."""
    monkeypatch.setattr(healths, "ANSWER_S", 0.3)
    monkeypatch.setattr(current, "READ_S", 0.3)
    url = postgres.fresh_database()
    async with serve(make_store(tmp_path, url=url), http=ANY) as running:
        with psycopg.connect(url) as holder:
            holder.execute("LOCK TABLE federations IN ACCESS EXCLUSIVE MODE")
            assert await get(running, "readyz") == (503, "not ready: the store has not answered for 0 s\n")
            assert await get(running, "status.json") == (503, "the store has not answered for 0 s\n")
            assert await get(running, "healthz") == (200, "alive\n")
        assert await get(running, "readyz") == (200, "ready\n")
        assert (await get(running, "status.json"))[0] == 200


async def test_a_server_on_its_way_out_says_so_first(tmp_path: Path) -> None:
    async with serve(make_store(tmp_path), http=ANY) as running, grpc.aio.insecure_channel(running.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watched = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert (await watched.read()).status == SERVING
        running.federation.drain()
        running.health.tell()
        assert (await watched.read()).status == NOT_SERVING
        assert await watched.read() is grpc.aio.EOF, "a watcher holds nothing up"
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
        assert await get(running, "readyz") == (503, "not ready: on its way out\n")


async def test_a_watcher_that_is_still_being_told_of_the_start_hears_of_the_end(tmp_path: Path) -> None:
    async with serve(make_store(tmp_path)) as running:
        told = healths.HealthServicer(running.health).watch(b"", None)
        assert (await anext(told)).status == SERVING
        running.federation.drain()  # while the first answer is on its way
        running.health.tell()
        assert [answer.status async for answer in told] == [NOT_SERVING]


async def test_a_process_whose_closer_died_is_dead(tmp_path: Path) -> None:
    async with serve(make_store(tmp_path), http=ANY) as running:
        running.closer.cancel()
        await asyncio.wait({running.closer})
        assert await get(running, "healthz") == (503, "dead: the task that closes rounds has ended\n")
        assert (await get(running, "readyz"))[0] == 503


async def test_the_health_service_takes_small_requests_for_services_that_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(healths, "MOST_WATCHERS", 2)
    async with serve(make_store(tmp_path), http=ANY) as running, grpc.aio.insecure_channel(running.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert (await refusal(stub.Check(health_pb2.HealthCheckRequest(service="x"))))[0] == "NOT_FOUND"
        assert (await refusal(stub.Check(health_pb2.HealthCheckRequest(service="x" * 5000))))[0] == "INVALID_ARGUMENT"
        raw = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert (await refusal(raw(b"\xff\xff\xff")))[0] == "INVALID_ARGUMENT"
        unknown = stub.Watch(health_pb2.HealthCheckRequest(service="x"))
        assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watchers = [stub.Watch(health_pb2.HealthCheckRequest(), timeout=30) for _ in range(2)]
        for one in watchers:
            assert (await one.read()).status == SERVING
        third = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await refusal(third.read()))[0] == "RESOURCE_EXHAUSTED"
        for one in watchers:
            one.cancel()
