"""The `aggregator` command as a process: what a person sees, and the exit codes that scripts rely on."""

import asyncio
import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aggregator.rounds import quorum_warning
from aggregator.store import migrations
from shared import logs
from tests.support import adapters, closed_rounds, rpc_events
from tests.support.command import Finished, check_failure, fails, run
from tests.support.postgres import PostgresServer
from tests.support.raw_site import RawSite
from tests.support.serving import make_store

pytestmark = pytest.mark.integration

COMMAND = [sys.executable, "-c", "from aggregator.cli import main; main()"]
COMMANDS = (
    "init",
    "certificates",
    "approve",
    "revoke",
    "serve",
    "status",
    "rounds",
    "sites",
    "export",
    "verify",
    "comm-cost",
    "observe",
    "pause",
    "resume",
    "evict",
    "rollback",
)
SCREEN = {"COLUMNS": "200", "TERM": "dumb"}
READY = re.compile(r"aggregator listening on (127\.0\.0\.1:\d+) \(federation demo, round 1 of 2\)\n")


@pytest.fixture(autouse=True)
def wide_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep help texts from being wrapped."""
    for name, value in SCREEN.items():
        monkeypatch.setenv(name, value)


def run_process(*arguments: object) -> Finished:
    """Run a command as a process of its own."""
    found = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    return Finished(found.returncode, found.stdout, found.stderr)


@contextmanager
def serving(store: object, *arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [*COMMAND, "serve", "--store", str(store), "--listen", "127.0.0.1:0", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        ready = READY.fullmatch(line)
        assert ready, line or process.communicate()[1]
        yield process, ready.group(1)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def adapter_file(tmp_path: Path) -> Path:
    adapters.adapter().write(tmp_path / "v0.safetensors")
    return tmp_path / "v0.safetensors"


def init(folder: Path, *more: object) -> list[object]:
    sites = ("--site", "ge", "--site", "philips=40", "--site", "siemens")
    return ["init", "--store", folder / "fed.db", "--federation", "demo", "--rounds", 2, *sites, *more]


# start-up


def test_help_documents_the_exit_codes() -> None:
    result = run_process("--help")
    assert result.returncode == 0
    assert "Exit codes: 0 done, 1 a check failed, 2 wrong usage, 3 input that cannot be used" in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.returncode == 0
    assert f"Example: aggregator {command}" in result.stdout


def test_nothing_heavy_is_imported_by_serving_or_by_help() -> None:
    code = (
        "import sys\n"
        "import aggregator.cli\n"
        "aggregator.cli.build()\n"
        "light = [m for m in ('grpc', 'sqlalchemy', 'numpy') if m in sys.modules]\n"
        "assert not light, light\n"
        "import aggregator.server, aggregator.verify, aggregator.export, aggregator.accounts.report, aggregator.certificates\n"
        "heavy = [m for m in ('torch', 'monai', 'nibabel', 'scipy', 'sklearn', 'matplotlib', 'site_agent') if m in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr


# serving


def test_serve_runs_a_federation_and_stops_on_sigterm(tmp_path: Path) -> None:
    store, log = make_store(tmp_path), tmp_path / "logs" / "aggregator.jsonl"

    async def take_part(address: str) -> None:
        sites = [RawSite(address, name) for name in ("ge", "philips", "siemens")]
        await asyncio.gather(*(site.take_part(seed=k) for k, site in enumerate(sites)))
        for site in sites:
            await site.channel.close()

    with serving(store, "--plain", "--log", log) as (process, address):
        asyncio.run(take_part(address))
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 0
    assert stdout == ""
    assert "Never: images, local adapters, per-case values" in stderr
    events = [json.loads(line) for line in log.read_text().splitlines()]
    names = [event["event"] for event in events]
    for expected in ("serving", "site_joined", "update_accepted", "round_closed", "federation_finished", "stopped"):
        assert expected in names
    result = run("comm-cost", log, "--full-model-bytes", 358_000_000, "--json")
    report = json.loads(result.stdout)
    updates = [r for r in report["rows"] if r["purpose"] == "delta_up" and r["direction"] == "up"]
    assert len(updates) == 6  # three sites, two rounds
    size = adapters.adapter().manifest.layout.size
    assert {r["payload_bytes"] for r in updates} == {size}
    assert report["full_model"]["updates"] == 6
    assert report["malformed_lines"] == []
    assert report["wire_model"]["tls"] is False


def test_sigterm_while_a_site_waits_ends_at_once(tmp_path: Path) -> None:
    async def wait(address: str, process: subprocess.Popen[str]) -> float:
        async with RawSite(address, "ge") as site:
            await site.join()
            waiting = asyncio.create_task(site.wait("TRAIN", 1, wait_s=30))
            await asyncio.sleep(0.3)
            start = time.monotonic()
            process.send_signal(signal.SIGTERM)
            await waiting
            await asyncio.to_thread(process.wait, 20)
            return time.monotonic() - start

    with serving(make_store(tmp_path), "--plain", "--log", tmp_path / "a.jsonl") as (process, address):
        assert asyncio.run(wait(address, process)) < 4.0
        assert process.returncode == 0


def test_a_port_in_use_has_its_own_exit_code(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with serving(store, "--plain", "--log", tmp_path / "a.jsonl") as (_, address):
        text = rf"cannot listen on {address}: the port is in use; .* choose another address with --listen"
        second = ["serve", "--store", store, "--listen", address, "--plain", "--log", tmp_path / "b.jsonl"]
        check_failure(run_process(*second), 5, text)


def test_a_store_has_one_serving_process(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with serving(store, "--plain", "--log", tmp_path / "a.jsonl"):
        second = ["serve", "--store", store, "--listen", "127.0.0.1:0", "--plain", "--log", tmp_path / "b.jsonl"]
        check_failure(run_process(*second), 3, "is served by another process already")
    with serving(store, "--plain", "--log", tmp_path / "a.jsonl"):  # killed, and free again
        pass


def test_certificates_that_are_none_are_not_called_a_port_in_use(tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("not a certificate")
    tls = [part for name in ("ca", "cert", "key") for part in (f"--tls-{name}", tmp_path / "x.pem")]
    arguments = ["--store", make_store(tmp_path), "--listen", "127.0.0.1:0", "--log", tmp_path / "a.jsonl", *tls]
    check_failure(
        run_process("serve", *arguments), 3, r"x\.pem holds no key in PEM form, .*aggregator certificates --out"
    )


def test_a_key_of_another_certificate_is_named_with_the_next_command(tmp_path: Path) -> None:
    assert run("certificates", "--out", tmp_path, "--host", "127.0.0.1", "--site", "ge").returncode == 0
    tls = ["--tls-ca", tmp_path / "ca.pem", "--tls-cert", tmp_path / "aggregator.pem", "--tls-key", tmp_path / "ge.key"]
    arguments = ["--store", make_store(tmp_path), "--listen", "127.0.0.1:0", "--log", tmp_path / "a.jsonl", *tls]
    named = rf"key {tmp_path}/ge\.key is not that of certificate {tmp_path}/aggregator\.pem; .*--out {tmp_path} --renew"
    result = run_process("serve", *arguments)
    check_failure(result, 3, named)
    assert "TlsFiles(" not in result.stderr


def test_a_port_of_the_page_in_use_is_named_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        said = rf"cannot listen on 127\.0\.0\.1:{port} for the status page: the port is in use; .*ss -ltnp.*:{port}.* with --http"
        there = ["--store", make_store(tmp_path), "--plain", "--listen", "127.0.0.1:0", "--log", tmp_path / "a.jsonl"]
        result = run_process("serve", *there, "--http", f"127.0.0.1:{port}")
    check_failure(result, 5, said)
    assert "Errno" not in result.stderr


def test_a_store_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with sqlite3.connect(store) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    for command in (["serve", "--plain"], ["status"], ["verify"]):
        read = f"has schema revision 9999, this release reads up to {migrations.HEAD}; upgrade"
        fails(3, read, *command, "--store", store)


def test_serving_needs_tls_or_plain_on_loopback(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    fails(3, "--tls-ca, --tls-cert, --tls-key missing: give the three TLS files", "serve", "--store", store)
    fails(3, "plain text is allowed on loopback only", "serve", "--store", store, "--plain", "--listen", "0.0.0.0:0")
    tls = ["--tls-ca", tmp_path / "no.pem", "--tls-cert", tmp_path / "no.pem", "--tls-key", tmp_path / "no.key"]
    text = r"cannot read TLS \w+ file .*no\.\w+: No such file"
    check_failure(run_process("serve", "--store", store, *tls), 3, text)
    fails(3, "exclude each other", "serve", "--store", store, "--plain", *tls)


def test_a_missing_store_is_named_with_the_next_command(tmp_path: Path) -> None:
    fails(3, r"no store at .*; make one with: aggregator init", "serve", "--plain", "--store", tmp_path / "no.db")
    fails(3, r"no store at .*; make one with: aggregator init", "status", "--store", tmp_path / "no.db")


def test_watching_a_store_that_is_not_there_ends_with_ctrl_c(tmp_path: Path) -> None:
    command = [*COMMAND, "status", "--store", str(tmp_path / "no.db"), "--watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().endswith("Ctrl-C ends the waiting\n")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout, stderr) == (0, "", "")


def test_a_database_that_is_away_is_exit_code_4_and_one_that_refuses_is_3(
    tmp_path: Path, adapter_file: Path, postgres: PostgresServer
) -> None:
    away = ["--store", "postgresql://med@127.0.0.1:1/hearts"]
    new = ["--federation", "demo", "--adapter", adapter_file, "--site", "ge", "--quorum", 1]
    for command in (["status"], ["serve", "--plain"], ["init", *new], ["init", "--if-missing", *new]):
        fails(4, r"Connection refused\): check host and port, and that PostgreSQL is running there", *command, *away)
    absent = ["--store", f"postgresql://tests@127.0.0.1:{postgres.port}/nosuch"]
    fails(3, "make the user and the database first: createuser NAME; createdb", "status", *absent)
    assert "4 aggregator or store out of reach now" in run("--help").stdout


# init


def test_init_says_what_was_made_and_what_comes_next(tmp_path: Path, adapter_file: Path) -> None:
    result = run(*init(tmp_path, "--adapter", adapter_file, "--set", "local_epochs=3", "--json"))
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["adapter_digest"] == adapters.adapter().digest
    assert (facts["quorum"], facts["sites"]) == (3, {"ge": None, "philips": 40, "siemens": None})
    status = json.loads(run("status", "--store", tmp_path / "fed.db", "--json").stdout)
    assert status["contract_sha256"] == facts["contract_sha256"]
    assert status["missing"] == ["ge", "philips", "siemens"]


def test_init_refuses_what_cannot_be_used(tmp_path: Path, adapter_file: Path) -> None:
    fails(
        3,
        r"cannot read adapter file .*no\.safetensors: No such file",
        *init(tmp_path, "--adapter", tmp_path / "no.safetensors"),
    )
    given = ["--adapter", adapter_file]
    fails(3, "has no parameter 'speed'", *init(tmp_path, *given, "--set", "speed=1"))
    fails(3, "quorum must be between 1 and invited", *init(tmp_path, *given, "--quorum", 9))
    fails(3, "site 'ge' is named twice", *init(tmp_path, *given, "--site", "ge"))
    (tmp_path / "broken.safetensors").write_bytes(b"12345678 this is no adapter")
    fails(3, "header", *init(tmp_path, "--adapter", tmp_path / "broken.safetensors"))
    assert not (tmp_path / "fed.db").exists()
    assert run(*init(tmp_path, *given)).returncode == 0
    fails(3, "holds federation 'demo' already", *init(tmp_path, *given))


def test_a_quorum_of_two_warns(tmp_path: Path, adapter_file: Path) -> None:
    result = run(*init(tmp_path, "--adapter", adapter_file, "--quorum", 2))
    assert result.returncode == 0
    assert "warning: with a quorum of 2 each of two sites can subtract" in result.stderr


def test_wrong_usage_has_the_usual_exit_code() -> None:
    assert run("serve").returncode == 2
    assert run("nonsense").returncode == 2
    assert run("status", "--colour").returncode == 2


def test_certificates_say_what_was_written(tmp_path: Path) -> None:
    result = run("certificates", "--out", tmp_path / "certs", "--host", "127.0.0.1", "--site", "ge")
    assert result.returncode == 0
    assert result.stdout.startswith("wrote ca.pem, ca.key, aggregator.pem, aggregator.key, ge.pem, ge.key in ")
    fails(3, r"ge\.pem exists already", "certificates", "--out", tmp_path / "certs", "--site", "ge")


def test_a_renewal_says_until_when_and_what_is_left_to_do(tmp_path: Path) -> None:
    assert run("certificates", "--out", tmp_path, "--host", "127.0.0.1").returncode == 0
    result = run("certificates", "--out", tmp_path, "--renew")
    assert result.returncode == 0
    renewed, taken, authority = result.stdout.splitlines()
    kept = r"the old pair: aggregator\.old\.pem, aggregator\.old\.key"
    assert re.fullmatch(
        rf"renewed aggregator\.pem and aggregator\.key in {tmp_path}, until \d{{4}}-\d\d-\d\d; {kept}", renewed
    )
    assert taken == "aggregator serve takes them with its next connection; under systemd restart the service"
    assert authority.startswith("fingerprint of the CA")


# reading a store


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("closed")
    store = closed_rounds.make(folder)
    closed_rounds.run(store)
    store.close()
    return folder / "fed.db"


def test_rounds_and_sites_print_facts(closed: Path) -> None:
    found = json.loads(run("rounds", "--store", closed, "--json").stdout)
    assert [(r["round"], r["phase"], r["version"]) for r in found] == [(1, "closed", 1), (2, "closed", 2)]
    assert sorted(found[0]["accepted"]) == ["canon", "ge", "siemens"]
    assert 0 < found[0]["diagnostics"]["aggregation_error"] < 1
    assert "0 -> 1" in run("rounds", "--store", closed).stdout
    assert [s["site"] for s in json.loads(run("sites", "--store", closed, "--json").stdout)] == [
        "canon",
        "ge",
        "siemens",
    ]
    assert "siemens" in run("sites", "--store", closed).stdout
    assert "finished, round 2 closed (2 of 2 closed)" in run("status", "--store", closed).stdout


def test_verify_passes_and_a_tampered_row_fails_with_exit_code_1(closed: Path, tmp_path: Path) -> None:
    result = run("verify", "--store", closed, "--all")
    assert result.returncode == 0
    assert result.stdout.endswith("2 of 2 closed rounds recompute to the same bytes\n")
    copy = tmp_path / "fed.db"
    copy.write_bytes(closed.read_bytes())
    with sqlite3.connect(copy) as raw:
        raw.execute("UPDATE chunks SET data = zeroblob(size) WHERE round = 2 AND site = 'ge' AND offset = 0")
    result = run("verify", "--store", copy, "--json")
    assert result.returncode == 1
    report = json.loads(result.stdout)
    assert report["ok"] is False
    assert [bool(r["difference"]) for r in report["rounds"]] == [False, True]
    assert run("verify", "--store", copy, "--round", 1).returncode == 0
    fails(3, "round 5 is not closed; closed rounds are 1, 2", "verify", "--store", copy, "--round", 5)


def test_export_writes_a_peft_folder(closed: Path, tmp_path: Path) -> None:
    result = run("export", "--store", closed, "--version", 1, "--out", tmp_path / "peft")
    assert result.returncode == 0
    assert sorted(p.name for p in (tmp_path / "peft").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    fails(
        3, "no adapter version 9; versions are 0 to 2", "export", "--store", closed, "--version", 9, "--out", tmp_path
    )


# accounts


def test_comm_cost_of_logs_that_disagree_fails(tmp_path: Path) -> None:
    def line(side: str, size: int) -> str:
        counts = {f"{what}_{way}": size for what in ("messages", "bytes", "payload_bytes") for way in ("up", "down")}
        fields = {
            "event": "rpc_finished",
            "side": side,
            "rpc": "Join",
            "purpose": "control",
            "call_id": "c",
            "attempt": 0,
        }
        return json.dumps({**fields, "site": "ge", "round": 0, "code": "OK", **counts}) + "\n"

    (tmp_path / "a.jsonl").write_text(line("aggregator", 10) + "broken\n")
    (tmp_path / "s.jsonl").write_text(line("site-agent", 10))
    result = run("comm-cost", tmp_path / "a.jsonl", tmp_path / "s.jsonl")
    assert result.returncode == 0
    assert "1 of 1 calls that ended well agree to the byte" in result.stdout
    assert "malformed lines, passed over (1):\n  a.jsonl:2: " in result.stdout
    (tmp_path / "s.jsonl").write_text(line("site-agent", 11))
    result = run("comm-cost", tmp_path / "a.jsonl", tmp_path / "s.jsonl", "--by", "site")
    assert result.returncode == 1
    assert "differ (1):" in result.stdout
    csv = run("comm-cost", tmp_path / "a.jsonl", "--csv").stdout.splitlines()
    assert csv[0] == "site,round,direction,purpose,calls,messages,bytes,payload_bytes,goodput_bytes,repeated_bytes"
    assert csv[1:] == ["ge,0,down,control,1,10,10,10,10,0", "ge,0,up,control,1,10,10,10,10,0"]


def test_comm_cost_without_calls_says_what_it_wants(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    fails(3, "no rpc_finished events in", "comm-cost", tmp_path / "empty.jsonl")
    fails(3, r"cannot read log .*no\.jsonl: No such file", "comm-cost", tmp_path / "no.jsonl")


@pytest.fixture
def one_upload(tmp_path: Path) -> Path:
    """An aggregator's log of one update of 400 bytes."""
    log = tmp_path / "a.jsonl"
    log.write_text(rpc_events.upload("u1", 400, connection="c") + "\n")
    return log


def test_comm_cost_compares_with_other_methods(tmp_path: Path, one_upload: Path) -> None:
    """100 numbers in the adapter file; a model of 4,000 bytes with 12 blocks, which the file does not say."""
    adapters.adapter().write(tmp_path / "v0.safetensors")
    said = ["--compare", tmp_path / "v0.safetensors", "--full-model-bytes", 4000, "--base-blocks", 12]
    rows = json.loads(run("comm-cost", one_upload, *said, "--json").stdout)["comparison"]
    sizes = {row["method"]: (row["source"], row["bytes_up"]) for row in rows}
    assert sizes["full fine-tuning"] == ("computed", 4000)
    assert sizes["this adapter: LoRA, rank 2, 2 blocks"] == ("computed", 400)
    assert sizes["this run: tensors, each once"] == ("measured", 400)
    text = run("comm-cost", one_upload, *said).stdout
    assert re.search(r"^LoRA, rank 2, all 12 blocks +computed +2,160 +2,160 ", text, re.MULTILINE)
    fails(3, r"how large its base model is .* say it with --full-model-bytes", "comm-cost", one_upload, *said[:2])
    fails(
        3,
        r"cannot read adapter file .*no\.safetensors",
        "comm-cost",
        one_upload,
        "--compare",
        tmp_path / "no.safetensors",
    )


def test_comm_cost_prints_a_page(one_upload: Path) -> None:
    page = run("comm-cost", one_upload, "--html").stdout
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")


def test_comm_cost_models_the_wire_as_it_is_told_where_no_log_says(one_upload: Path) -> None:
    text = run("comm-cost", one_upload).stdout
    assert len(text.splitlines()) < 20
    assert "modelled with TLS (assumed: no log says; --plain if there was none) and 1 connections" in text
    assert "bound: within 0.5 % + 8 KB a connection" in text
    assert "modelled without TLS and 1 connections" in run("comm-cost", one_upload, "--plain").stdout


def test_comm_cost_takes_one_way_to_print(one_upload: Path) -> None:
    assert run("comm-cost", one_upload, "--json", "--html").returncode == 2
    assert run("comm-cost", one_upload, "--all", "--by", "site").returncode == 2
    assert run("comm-cost", one_upload, "--base-blocks", 12).returncode == 2


# steering


def test_a_coordinator_steers_over_the_wire(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with serving(store, "--plain", "--log", tmp_path / "a.jsonl") as (_, address):
        there = ["--aggregator", address, "--plain"]
        assert run("pause", *there, "--reason", "maintenance").stdout.startswith("paused")
        assert json.loads(run("status", "--store", store, "--json").stdout)["reason"] == "maintenance"
        assert run("resume", *there).stdout == "running again\n"
        begun = "version 0 is the current one; round 1 is abandoned, the last one is round 2\n"
        again = "version 0 is the current one; no round is abandoned, the last one is round 2\n"
        assert [run("rollback", 0, *there).stdout for _ in range(2)] == [begun, again]
        assert "round 2 is abandoned, the last one is round 3" in run("rollback", 0, "--round", 2, *there).stdout
        fails(3, "round 2 cannot be given up: the last one is round 3", "rollback", 0, "--round", 2, *there)
        fails(3, "with a quorum of 2 .* say so with --allow-quorum 2", "evict", "ge", *there, "--reason", "left")
        evicted = run("evict", "ge", *there, "--reason", "left", "--allow-quorum", 2)
        assert (evicted.returncode, evicted.stdout) == (0, "ge is evicted\n")
        assert evicted.stderr == f"warning: {quorum_warning(2)}\n"
        assert run("evict", "ge", *there).stderr == ""
        fails(3, "no site 'nobody' in federation 'demo'", "evict", "nobody", *there)
        fails(3, "no adapter version 4", "rollback", 4, *there)


def test_nobody_there_is_exit_code_4(tmp_path: Path) -> None:
    fails(4, r"no answer from 127\.0\.0\.1:1 .* check the address", "pause", "--aggregator", "127.0.0.1:1", "--plain")
    fails(3, "plain text is allowed on loopback only", "pause", "--aggregator", "192.0.2.1:1", "--plain")


def test_steering_says_what_it_needs() -> None:
    needed = "--tls-ca, --tls-cert, --tls-key missing: .* a coordinator's certificate"
    for command in (["pause"], ["resume"], ["evict", "ge"], ["rollback", 0]):
        fails(3, needed, *command, "--aggregator", "fed.example.org:50051")
        without = run(*command)
        assert without.returncode == 2
        assert "--aggregator" in without.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "127.0.0.1:0", "127.0.0.1", ":50051"])
def test_an_address_to_dial_that_is_none_is_refused(address: str) -> None:
    fails(3, "--aggregator must be host:port with a port of 1 to 65535", "pause", "--aggregator", address, "--plain")


# paths and stores that cannot be used


def test_a_port_out_of_range_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    fails(3, "a port of 0 to 65535", "serve", "--store", store, "--plain", "--listen", "127.0.0.1:99999")


def test_too_many_rounds_are_refused(tmp_path: Path, adapter_file: Path) -> None:
    more = ["--adapter", adapter_file, "--rounds", 99_999_999_999]
    fails(3, "rounds must be at most 100000, got 99999999999", *init(tmp_path, *more))
    assert not (tmp_path / "fed.db").exists()


def test_paths_of_the_wrong_kind_are_named(tmp_path: Path, adapter_file: Path) -> None:
    fails(3, "cannot write certificates to .*: ", "certificates", "--out", adapter_file, "--site", "ge")
    store = make_store(tmp_path)
    fails(3, "cannot append events to .*: Is a directory", "serve", "--store", store, "--plain", "--log", tmp_path)
    fails(3, "File name too long", "status", "--store", "x" * 5000)
    fails(3, "cannot write to ", "export", "--store", store, "--out", adapter_file)


def test_a_host_name_that_no_certificate_can_hold_is_refused(tmp_path: Path) -> None:
    fails(
        3,
        "host 'fédé.example' is no address and no name in ASCII",
        "certificates",
        "--out",
        tmp_path,
        "--host",
        "fédé.example",
    )


@pytest.mark.parametrize("command", [["status"], ["export", "--out", "peft"], ["verify"], ["serve", "--plain"]])
@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM adapters",
        "DROP TABLE updates",
        "UPDATE rounds SET invited = 'x'",
        "UPDATE federations SET policy = '{}x'",
        "UPDATE alembic_version SET version_num = '0000'",
        "DELETE FROM alembic_version",
    ],
)
def test_a_damaged_store_is_one_line(
    closed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], damage: str
) -> None:
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "fed.db"
    copy.write_bytes(closed.read_bytes())
    with sqlite3.connect(copy) as raw:
        raw.execute(damage)
    fails(3, "damaged|is not a store|which no release wrote", *command, "--store", copy)


def test_an_internal_error_is_one_line_without_paths_or_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken() -> None:
        raise RuntimeError("secret /srv/patients")

    monkeypatch.setattr("aggregator.cli.build", lambda: lambda args: broken())
    log = tmp_path / "a.jsonl"
    logs.configure(log)
    fails(70, r"internal error \(RuntimeError at .*:\d+\), a defect .* MED_DUALLORA_TRACEBACK=1", "status")
    assert json.loads(log.read_text())["error"] == "RuntimeError"
    assert "secret" not in log.read_text()
    monkeypatch.setenv("MED_DUALLORA_TRACEBACK", "1")
    assert "secret /srv/patients" in run("status").stderr
