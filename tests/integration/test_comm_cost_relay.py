"""What `comm-cost` says of a run, held against a relay that counted every byte between real processes.

Two runs: a federation, whose bytes are tensors, and agents that do nothing but ask, whose bytes are frames and headers. This is
the test that the command's bound names.
"""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from experiments.relay import Fault, FaultPlan, Relay
from shared.adapter import Adapter
from shared.tls import TlsFiles
from site_agent.models.config import ConvViTConfig
from tests.integration import federation
from tests.integration.federation import Materials

pytestmark = pytest.mark.integration

SITES = ("siemens", "philips")
WIDE = ConvViTConfig(
    image_size=(32, 32, 4), enc_conv_chans=(4, 8), enc_conv_n_blocks=1, enc_embed_dim=96, enc_depth=3, enc_n_heads=4
)
RANK = 96
"""About 516 kB an update."""
POLLS = 2500
PER_CONNECTION = 8 * 1024
SHARE = 0.005
BYTES = ("messages_up", "bytes_up", "payload_bytes_up", "messages_down", "bytes_down", "payload_bytes_down")


def calls_of(log: Path) -> dict[str, dict[str, Any]]:
    """Return the `rpc_finished` events of a log by call id."""
    events = [json.loads(line) for line in log.read_text().splitlines()]
    finished = [event for event in events if event["event"] == "rpc_finished" and event["call_id"]]
    by_id = {event["call_id"]: event for event in finished}
    assert len(by_id) == len(finished)
    return by_id


def sums(calls: dict[str, dict[str, Any]], ids: set[str]) -> Counter[str]:
    """Return messages and bytes of these calls in all."""
    return Counter({name: sum(calls[call_id][name] for call_id in ids) for name in BYTES})


def comm_cost(*arguments: object) -> dict[str, Any]:
    """Return what `aggregator comm-cost --json` says of some logs."""
    finished = federation.run_program("aggregator", "comm-cost", *arguments, "--json")
    assert finished.returncode == 0, finished.stderr
    report: dict[str, Any] = json.loads(finished.stdout)
    return report


@asynccontextmanager
async def relayed(store: str, log: Path, ours: TlsFiles | None, plan: FaultPlan = FaultPlan()) -> AsyncIterator[Relay]:
    """Serve a store in a process of its own, behind a relay that counts."""
    options = (
        ("--plain",) if ours is None else ("--tls-ca", ours.ca, "--tls-cert", ours.certificate, "--tls-key", ours.key)
    )
    with federation.aggregator_process(store, "--log", log, *options) as address:
        async with Relay([address], plan) as relay:
            yield relay


def certificates_of(folder: Path, secure: bool) -> Mapping[str, TlsFiles]:
    """Return everybody's files; none without TLS."""
    return federation.make_certificates(folder, SITES) if secure else {}


@pytest.mark.parametrize("secure", [True, False], ids=["TLS", "plain"])
async def test_a_federation_costs_what_either_sides_log_says(
    materials: Materials, tmp_path: Path, secure: bool
) -> None:
    backbone = federation.save_random_backbone(tmp_path / "backbone", seed=4, config=WIDE)
    adapter = federation.save_adapter(backbone, tmp_path / "v0.safetensors", rank=RANK)
    store = federation.create_store(tmp_path, adapter, SITES, rounds=2)
    certificates = certificates_of(tmp_path / "certs", secure)
    log = tmp_path / "aggregator.jsonl"
    async with relayed(store, log, certificates.get("aggregator")) as relay:
        configs = [
            federation.site_config(
                Materials(backbone, adapter, materials.cohorts),
                tmp_path,
                relay.address,
                site,
                log=tmp_path / f"{site}.jsonl",
                **({"tls": certificates[site]} if secure else {}),
            )
            for site in SITES
        ]
        ended = await asyncio.gather(
            *(federation.run_beside("site-agent", *federation.agent_arguments(config)) for config in configs)
        )
    assert [finished.returncode for finished in ended] == [0, 0], [finished.stderr for finished in ended]
    federation.assert_finished(store)
    agent_logs = [config.log for config in configs if config.log is not None]
    check_accounts(log, agent_logs, secure)
    total = comm_cost(log)["total"]
    for way in ("up", "down"):
        assert total[f"payload_bytes_{way}"] > 0.9 * total[f"bytes_{way}"] > 100 * PER_CONNECTION
    check_against_relay(log, agent_logs, relay, secure)


@pytest.mark.parametrize("secure", [True, False], ids=["TLS", "plain"])
async def test_thousands_of_small_calls_cost_what_either_sides_log_says(
    materials: Materials, tmp_path: Path, secure: bool
) -> None:
    store = federation.create_store(tmp_path, materials.adapter, SITES)
    base_model = Adapter.read(materials.adapter).manifest.metadata.base_model_sha256
    certificates = certificates_of(tmp_path / "certs", secure)
    log, agent_logs = tmp_path / "aggregator.jsonl", [tmp_path / f"{site}.jsonl" for site in SITES]
    async with relayed(store, log, certificates.get("aggregator")) as relay:

        def poll(site: str, own: Path) -> "subprocess.CompletedProcess[str]":
            tls = certificates.get(site)
            files = () if tls is None else (tls.ca, tls.certificate, tls.key)
            words = [relay.address, site, own, POLLS, base_model, *files]
            command = [sys.executable, "-m", "tests.support.polling_agent", *map(str, words)]
            return subprocess.run(command, capture_output=True, text=True, timeout=federation.TIMEOUT_S, check=False)

        ended = await asyncio.gather(
            *(asyncio.to_thread(poll, site, own) for site, own in zip(SITES, agent_logs, strict=True))
        )
    assert [finished.returncode for finished in ended] == [0, 0], [finished.stderr for finished in ended]
    total = comm_cost(log)["total"]
    assert total["calls"] >= POLLS * len(SITES)
    for way, counted in (("up", relay.bytes_up), ("down", relay.bytes_down)):
        assert counted - total[f"bytes_{way}"] > 10 * (
            SHARE * counted + PER_CONNECTION
        )  # what is added is what matters
    check_against_relay(log, agent_logs, relay, secure)


async def test_tensors_of_cut_uploads_are_counted_once(materials: Materials, tmp_path: Path) -> None:
    """Both sites' first connections are reset in the middle of an upload. What counts is what the shapes say, to the byte."""
    backbone = federation.save_random_backbone(tmp_path / "backbone", seed=4, config=WIDE)
    adapter = federation.save_adapter(backbone, tmp_path / "v0.safetensors", rank=RANK)
    store = federation.create_store(tmp_path, adapter, SITES, rounds=2, codec="f32")
    log = tmp_path / "aggregator.jsonl"
    cuts = FaultPlan(script=(Fault("reset", 300_000), Fault("reset", 300_000)))
    async with relayed(store, log, None, cuts) as relay:
        made = Materials(backbone, adapter, materials.cohorts)
        configs = [
            federation.site_config(made, tmp_path, relay.address, site, log=tmp_path / f"{site}.jsonl")
            for site in SITES
        ]
        ended = await asyncio.gather(
            *(federation.run_beside("site-agent", *federation.agent_arguments(config)) for config in configs)
        )
    assert [finished.returncode for finished in ended] == [0, 0], [finished.stderr for finished in ended]
    assert [link.fault_came for link in relay.links[:2]] == [True, True]
    agent_logs = [config.log for config in configs]
    for given in ([log, *agent_logs], [log], agent_logs):
        report = comm_cost(*given, "--plain", "--compare", adapter)
        rows = {row["method"]: row for row in report["comparison"]}
        computed = next(row for name, row in rows.items() if name.startswith("this adapter"))
        once = rows["this run: tensors, each once"]
        assert (computed["source"], once["source"]) == ("computed", "measured")
        assert once["bytes_up"] == computed["bytes_up"] == Adapter.read(adapter).manifest.layout.size
        assert report["retried_calls"] >= 2
        assert report["total"]["repeated_bytes_up"] > 0


def check_accounts(log: Path, agent_logs: list[Path], secure: bool) -> None:
    """Fail unless the aggregator's log and the agents' agree to the byte on every call that ended well on both sides."""
    theirs = {call_id: call for one in agent_logs for call_id, call in calls_of(one).items()}
    ours = calls_of(log)
    well = {i for i in theirs.keys() & ours.keys() if theirs[i]["code"] == ours[i]["code"] == "OK"}
    assert len(well) >= len(agent_logs) * 2 * len(("AwaitRound", "FetchAdapter", "BeginUpload", "UploadDelta"))
    assert sums(ours, well) == sums(theirs, well)

    both = comm_cost(log, *agent_logs)
    reconciliation = both["reconciliation"]
    assert reconciliation["compared"] == reconciliation["agreed"] == len(well)
    assert reconciliation["differing"] == []
    listed = len(reconciliation["ended_badly"]) + len(reconciliation["one_sided"])
    assert listed == len(theirs.keys() | ours.keys()) - len(well)
    assert both["wire_model"]["tls"] == secure

    for single, calls in ((comm_cost(log), ours), (comm_cost(*agent_logs), theirs)):
        assert single["total"]["calls"] == len(calls)
        everything = sums(calls, set(calls))
        assert {name: single["total"][name] for name in BYTES} == everything


def check_against_relay(log: Path, agent_logs: Sequence[Path], relay: Relay, secure: bool) -> None:
    """Fail unless the model is within 0.5 % + 8 KB a connection of the relay's count, each way, from either side's log alone."""
    kind = "--tls" if secure else "--plain"  # which an agent's log does not say
    for side, report in (("aggregator", comm_cost(log)), ("agents", comm_cost(*agent_logs, kind))):
        wire = report["wire_model"]
        assert (wire["connections"], wire["connections_counted"]) == (len(relay.links), side == "aggregator")
        for way, counted in (("up", relay.bytes_up), ("down", relay.bytes_down)):
            modelled = wire[f"wire_{way}"]
            print(
                f"{kind} {side} {way}: {modelled:,} modelled, {counted:,} counted, {wire[f'messages_{way}']:,} messages"
            )
            assert abs(modelled - counted) <= SHARE * counted + PER_CONNECTION * len(relay.links), (side, way)
