"""What `comm-cost` says of a run, held against a relay that counted every byte between real processes."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from site_agent.models.config import ConvViTConfig
from tests.chaos.relay import Relay
from tests.integration import federation
from tests.integration.federation import Materials

pytestmark = pytest.mark.integration

SITES = ("siemens", "philips")
WIDE = ConvViTConfig(
    image_size=(32, 32, 4), enc_conv_chans=(4, 8), enc_conv_n_blocks=1, enc_embed_dim=96, enc_depth=3, enc_n_heads=4
)
RANK = 32
"""About 172 kB an update: enough that one per cent of a run is more than a handshake."""
PER_CONNECTION = 8 * 1024
SHARE = 0.01
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


def comm_cost(*logs: Path) -> dict[str, Any]:
    """Return what `aggregator comm-cost --json` says of some logs."""
    finished = federation.run_program("aggregator", "comm-cost", *logs, "--json")
    assert finished.returncode == 0, finished.stderr
    report: dict[str, Any] = json.loads(finished.stdout)
    return report


@pytest.mark.parametrize("secure", [True, False], ids=["TLS", "plain"])
async def test_both_sides_account_for_the_same_bytes_and_a_relay_counts_little_more(materials, tmp_path, secure):
    backbone = federation.save_random_backbone(tmp_path / "backbone", seed=4, config=WIDE)
    adapter = federation.save_adapter(backbone, tmp_path / "v0.safetensors", rank=RANK)
    store = federation.create_store(tmp_path, adapter, SITES, rounds=2)
    certificates = federation.make_certificates(tmp_path / "certs", SITES)
    log = tmp_path / "aggregator.jsonl"
    ours = certificates["aggregator"]
    options = ("--tls-ca", ours.ca, "--tls-cert", ours.certificate, "--tls-key", ours.key) if secure else ("--plain",)
    with federation.aggregator_process(store, "--log", log, *options) as address:
        async with Relay([address]) as relay:
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
    check_against_relay(log, agent_logs, relay)


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


def check_against_relay(log: Path, agent_logs: list[Path], relay: Relay) -> None:
    """Fail unless the relay's count is within 1 % + 8 KB a connection of either side's log, each way."""
    allowance = PER_CONNECTION * len(relay.links)
    assert len(relay.links) >= len(agent_logs)
    for total in (comm_cost(log)["total"], comm_cost(*agent_logs)["total"]):
        for counted, said in ((relay.bytes_up, total["bytes_up"]), (relay.bytes_down, total["bytes_down"])):
            assert said > 40 * PER_CONNECTION
            assert 0 < counted - said <= SHARE * said + allowance
