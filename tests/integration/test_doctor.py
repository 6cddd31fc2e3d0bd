"""`site-agent doctor` as a process, against real aggregators, on machines that are wrong in one way."""

import asyncio
import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from typer.testing import CliRunner

from aggregator import certificates, steering
from aggregator.server import RunningServer
from aggregator.store import audit, engine, federations
from experiments.relay import FaultPlan, Relay
from shared import certificates as held
from shared.tls import TlsFiles
from site_agent.cli import app
from site_agent.doctor import answer, checks, contract, data, proxy, uplink
from site_agent.doctor.finding import Examined
from tests.integration import federation
from tests.integration.federation import NAME, Materials
from tests.support import tls_server
from tests.support.command import run as coordinate
from tests.support.serving import serve, tls_of
from tests.support.tls_server import listening

pytestmark = pytest.mark.integration

NAMED = "fed.example.test"
NOBODY = 65534
OVERRIDE = "-dac_override,-dac_read_search"
WITHOUT_OVERRIDE = ["setpriv", f"--bounding-set={OVERRIDE}", f"--inh-caps={OVERRIDE}"] if os.getuid() == 0 else []
"""How root runs a command that has to keep to the modes of files (capabilities(7)); another account needs no more than itself."""


class Place:
    """A site's folder and settings, and the store of the federation that it is a site of."""

    def __init__(self, folder: Path, materials: Materials) -> None:
        self.folder, self.materials = folder, materials
        certificates.make(folder / "certs", ["127.0.0.1", NAMED], ("siemens", "philips", "canon"))
        self.store = federation.create_store(folder / "store", materials.adapter)
        self.running: RunningServer | None = None

    @property
    def address(self) -> str:
        assert self.running is not None
        return self.running.address

    def tls(self, name: str) -> TlsFiles:
        return tls_of(self.folder / "certs", name)

    def settings(self, site: str = "siemens", **paths: Path) -> Path:
        """Write site.toml; `paths`: cohort and weights, if not as everywhere here."""
        paths = {"cohort": self.materials.cohorts / "siemens", "weights": self.materials.backbone, **paths}
        files = self.tls(site)
        path = self.folder / f"{site}.toml"
        path.write_text(
            f'cohort = "{paths["cohort"]}"\nweights = "{paths["weights"]}"\n'
            f'state = "{self.folder / "state"}"\n'
            f'[tls]\nca = "{files.ca}"\ncertificate = "{files.certificate}"\nkey = "{files.key}"\n'
        )
        return path

    def examined(self, site: str = "siemens", address: str = "", **more: Any) -> Examined:
        config = federation.site_config(self.materials, self.folder, address or self.address, site, tls=self.tls(site))
        return Examined(config, **more)

    def heard(self) -> tuple[Any, ...]:
        """What the aggregator has written down of its sites."""
        opened = engine.open_store(self.store)
        try:
            sites = opened.read(federations.state, NAME).sites
            known = sorted((one.name, one.phase, one.training_patients) for one in sites.values())
            return *known, opened.read(lambda connection: len(list(audit.lines(connection, NAME))))
        finally:
            opened.close()


@pytest_asyncio.fixture
async def place(tmp_path: Path, materials: Materials) -> AsyncIterator[Place]:
    """An aggregator over mTLS that a site has not joined yet."""
    made = await asyncio.to_thread(Place, tmp_path, materials)
    async with serve(made.store, made.tls("aggregator")) as running:
        made.running = running
        yield made


def contents(*folders: Path) -> dict[str, str]:
    """Every file below some folders, by the digest of what it holds."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def statuses(report: Any) -> dict[str, str]:
    return {one["name"]: one["status"] for one in report["checks"]}


async def test_a_healthy_site_passes_and_nothing_is_changed_anywhere(place: Place) -> None:
    toml, before = place.settings(), place.heard()
    there = contents(place.folder / "certs", place.materials.cohorts, place.materials.backbone)
    finished = await federation.run_beside(
        "site-agent", "doctor", "--aggregator", place.address, "--config", toml, "--json"
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    report = json.loads(finished.stdout)
    assert [one["name"] for one in report["checks"]] == [check.name for check in checks.CHECKS]
    shown = {"name", "title", "status", "words", "remedy", "facts", "duration_s"}
    assert all(set(one) == shown for one in report["checks"])  # what may name a case is not among them
    told = {one["name"]: one["words"] for one in report["checks"] if one["status"] not in ("PASS", "WARN")}
    assert told == {}
    assert not (place.folder / "state").exists()
    assert not (place.folder / "activations").exists()
    assert contents(place.folder / "certs", place.materials.cohorts, place.materials.backbone) == there
    assert place.heard() == before  # not joined, no patients fixed, no line in the journal


async def test_before_the_first_start_the_answer_is_examined_and_left_where_it_is(place: Place, tmp_path: Path) -> None:
    """As docs/hospital-it.md has it: the coordinator's answer lies in the folder as it came, and no agent has run yet."""
    files, authority = place.tls("siemens"), place.tls("aggregator").ca
    answer_file = files.certificate.with_name("siemens.approved.pem")
    toml = place.settings()
    answer_file.write_bytes(files.certificate.read_bytes() + authority.read_bytes())
    files.certificate.unlink()
    files.key.rename(files.key.with_name("siemens.next.key"))
    (elsewhere := tmp_path / "tmp").mkdir()
    there = contents(place.folder / "certs")
    command = [
        federation.program("site-agent"),
        "doctor",
        "--aggregator",
        place.address,
        "--config",
        str(toml),
        "--json",
    ]
    code, said = await _run("env", f"TMPDIR={elsewhere}", *command)
    report = json.loads(said)
    assert code == 0, said
    assert set(statuses(report).values()) <= {"PASS", "WARN"}
    assert contents(place.folder / "certs") == there
    assert list(elsewhere.glob("doctor-*")) == []


async def test_a_machine_short_of_everything_is_told_so_in_words(place: Place) -> None:
    """In a mount namespace of its own: one of the aggregator's two addresses is silent, disk, shared memory and memory are short,
    and there is a GPU's driver whose GPU torch does not see."""
    hosts, meminfo = place.folder / "hosts", place.folder / "meminfo"
    hosts.write_text(f"127.0.0.1 localhost {NAMED}\n127.0.0.2 {NAMED}\n")
    meminfo.write_text("MemTotal:       16318480 kB\nMemFree:          812344 kB\nMemAvailable:    1464843 kB\n")
    (place.folder / "state").mkdir()
    port = place.address.rpartition(":")[2]
    command = [federation.program("site-agent"), "doctor", "--aggregator", f"{NAMED}:{port}"]
    script = "; ".join(
        [
            "set -e",
            f"mount --bind {shlex.quote(str(hosts))} /etc/hosts",
            f"mount -t tmpfs -o size=512k tmpfs {shlex.quote(str(place.folder / 'state'))}",
            "mount -t tmpfs -o size=1m tmpfs /dev/shm",
            f"mount --bind {shlex.quote(str(meminfo))} /proc/meminfo",
            "mount -t tmpfs tmpfs /proc/driver",
            "mkdir /proc/driver/nvidia",
            "touch /proc/driver/nvidia/version",
            "export CUDA_VISIBLE_DEVICES=",
            f"exec {shlex.join([*command, '--config', str(place.settings())])}",
        ]
    )
    code, said = await _run("unshare", "-m" if os.getuid() == 0 else "-Urm", "sh", "-c", script)
    lines = {
        line[8:30].strip(): line[2:6] for line in said.splitlines() if line[2:6] in ("PASS", "WARN", "FAIL", "SKIP")
    }
    assert code == 1, said
    assert (lines["TCP"], lines["shared memory"], lines["disk"]) == ("WARN", "WARN", "FAIL"), said
    assert "127.0.0.2 refuses the connection" in said
    assert lines["GPU and memory"] == "WARN", said
    assert re.search(
        r"1\.5 of [0-9.]+ GB memory free; there is an NVIDIA driver, and torch sees no GPU: ", _unwrapped(said)
    ), said
    assert "less than the 2 GB that training may take" in _unwrapped(said)
    assert lines["aggregator answers"] == lines["training step"] == "PASS", said
    assert said.rstrip().splitlines()[-1].endswith("exit code 1")


async def test_run_by_another_account_than_the_agents_it_says_whose_the_files_are(
    tmp_path: Path, materials: Materials
) -> None:
    """Certificates, state, cohort and weights are closed to who runs it: to root, because they are another account's."""
    cohort, weights = tmp_path / "cohort", tmp_path / "backbone"
    shutil.copytree(materials.cohorts / "siemens", cohort)
    shutil.copytree(materials.backbone, weights)
    (tmp_path / "state").mkdir()
    toml = (await asyncio.to_thread(Place, tmp_path, materials)).settings(cohort=cohort, weights=weights)
    doctor = [federation.program("site-agent"), "doctor", "--config", str(toml), "--json"]
    closed = [tmp_path / name for name in ("certs", "state", "cohort", "backbone")]
    try:
        for folder in closed:
            folder.chmod(0o700 if os.getuid() == 0 else 0)
            if os.getuid() == 0:
                os.chown(folder, NOBODY, NOBODY)
        code, said = await _run(*WITHOUT_OVERRIDE, *doctor)
    finally:
        for folder in closed:
            folder.chmod(0o700)
    report = json.loads(said)
    found = {one["name"]: one for one in report["checks"]}
    shut = ("certificates", "contract", "disk", "weights", "data")
    assert (code, {found[name]["status"] for name in shut}) == (1, {"FAIL"}), said
    assert found["step"]["status"] == "SKIP"
    advice = f"sudo -u {closed[0].owner()} site-agent doctor" if os.getuid() == 0 else "chmod u+rw"
    assert [name for name in shut if advice not in found[name]["remedy"]] == []
    assert str(tmp_path / "state") in found["disk"]["words"]
    assert "cases.csv" not in said


async def test_without_a_network_it_says_so_soon_and_looks_at_the_rest(place: Place) -> None:
    command = [federation.program("site-agent"), "doctor", "--aggregator", f"{NAMED}:443", "--json"]
    script = shlex.join([*command, "--config", str(place.settings())])
    async with asyncio.timeout(60):
        code, said = await _run("unshare", "-n" if os.getuid() == 0 else "-Urn", "sh", "-c", script)
    found = statuses(report := json.loads(said))
    assert code == 1
    assert found["name"] == "FAIL"
    assert [found[one] for one in ("tcp", "tls", "answer", "uplink", "step")] == ["SKIP"] * 5
    assert found["certificates"] == found["data"] == "PASS"
    assert next(one for one in report["checks"] if one["name"] == "tcp")["words"] == "not tried: needs name resolution"


async def test_without_an_aggregator_the_site_alone_is_looked_at(place: Place) -> None:
    agreed = place.folder / "contract.json"
    opened = engine.open_store(place.store)
    agreed.write_bytes(opened.read(federations.contract, NAME).to_bytes())
    opened.close()
    arguments = ["doctor", "--config", str(place.settings()), "--contract", str(agreed), "--json"]
    finished = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    found = statuses(json.loads(finished.stdout))
    assert finished.exit_code == 0, finished.stdout
    assert {found[check.name] for check in checks.CHECKS if check.asks} == {"SKIP"}
    assert "SKIP" not in {found[check.name] for check in checks.CHECKS if not check.asks}


# --- what the aggregator knows of the site ------------------------------------------------------------------------------


async def test_a_site_that_is_not_enrolled_is_told_whom_to_ask(place: Place) -> None:
    found = await asyncio.to_thread(answer.knows_us, place.examined("canon"))
    assert found.status == "FAIL"
    assert "site 'canon' is not enrolled in federation 'hearts'" in found.words


async def test_an_evicted_site_is_told_why_and_no_contract(place: Place) -> None:
    assert place.running is not None
    await steering.evict(place.running.federation, "anna", "siemens", "scanner replaced", 2)
    found = await asyncio.to_thread(answer.knows_us, site := place.examined())
    assert (found.status, found.words) == ("FAIL", "site 'siemens' was evicted from 'hearts': scanner replaced")
    assert site.told is None


async def test_a_revoked_certificate_is_told_and_what_it_says_to_do_brings_the_site_back(place: Place) -> None:
    assert place.running is not None
    files, certs, store = place.tls("siemens"), place.folder / "certs", ("--store", place.store)
    serial = held.holder_in(files.certificate).serial
    await coordinating("revoke", *store, "--certificate", files.certificate, "--reason", "key lost")
    found = await asyncio.to_thread(answer.knows_us, site := place.examined())
    assert found.status == "FAIL"
    assert found.words.startswith(f"the certificate with serial number {serial} was revoked")
    assert site.told is None
    asks = f"site-agent join --site siemens --out {certs}"
    assert found.remedy.endswith(asks)

    answered = certs / "siemens.approved.pem"
    await at_the_site(*asks.split()[1:])
    await coordinating("approve", certs / "siemens.csr", *store, "--certs", certs, "--out", answered)
    await at_the_site("join", "--finish", str(answered), "--out", str(certs))
    assert (await asyncio.to_thread(answer.knows_us, place.examined())).status == "PASS"


async def test_another_number_of_patients_than_is_fixed_fails(place: Place) -> None:
    opened = engine.open_store(place.store)
    opened.change(NAME, False, federations.join, NAME, "siemens", 99, 0.0)
    opened.close()
    site = place.examined()
    await asyncio.to_thread(answer.knows_us, site)
    found = await asyncio.to_thread(data.cases, site)
    assert found.status == "FAIL"
    assert "21 training patients here, 99 are fixed for this site" in found.words


async def test_the_contract_that_is_offered_is_that_of_the_store(place: Place) -> None:
    site = place.examined()
    await asyncio.to_thread(answer.knows_us, site)
    assert contract.hashes(site).status == "PASS"
    opened = engine.open_store(place.store)
    assert site.contract == opened.read(federations.contract, NAME)
    opened.close()


async def test_a_slow_line_fails_and_its_rate_is_told(place: Place) -> None:
    async with Relay([place.address], FaultPlan(bytes_per_s=12_000)) as slow:
        found = await asyncio.to_thread(uplink.speed, place.examined(address=slow.address))
    assert found.status == "FAIL"
    assert found.facts["up_bytes_per_s"] == pytest.approx(12_000, rel=0.3)
    assert found.facts["probe_bytes"] == 16 << 10  # larger ones were not sent


# --- the proxy that gRPC itself goes through -----------------------------------------------------------------------------


@contextmanager
def who_is_dialled() -> Iterator[tuple[int, int, list[str], threading.Event]]:
    """Yield a port, a proxy's port, and who of the two hears of gRPC first."""
    heard, came = list[str](), threading.Event()

    def note(who: str) -> tls_server.Answer:
        def answer(line: socket.socket) -> None:
            heard.append(who)
            came.set()

        return answer

    with listening(note("directly")) as port, listening(note("proxy")) as proxy_port:
        yield port, proxy_port, heard, came


@pytest.mark.parametrize(
    ("host", "environ"),
    [
        ("127.0.0.1", {}),
        ("127.0.0.1", {"https_proxy": "http://P"}),
        ("127.0.0.1", {"http_proxy": "http://P"}),
        ("127.0.0.1", {"grpc_proxy": "http://P", "https_proxy": "http://127.0.0.1:1"}),
        ("127.0.0.1", {"https_proxy": "", "http_proxy": "http://P"}),
        ("127.0.0.1", {"HTTPS_PROXY": "http://P", "HTTP_PROXY": "http://P", "all_proxy": "http://P"}),
        ("127.0.0.1", {"https_proxy": "socks5://P"}),
        ("127.0.0.1", {"https_proxy": "https://P"}),
        ("127.0.0.1", {"https_proxy": "P"}),
        ("127.0.0.1", {"https_proxy": "http://P", "no_proxy": "10.0.0.0/8, 127.0.0.0/8"}),
        ("127.0.0.1", {"https_proxy": "http://P", "no_proxy": "127.0.0.1"}),
        ("127.0.0.1", {"https_proxy": "http://P", "no_proxy": "*"}),
        ("127.0.0.1", {"https_proxy": "http://P", "NO_PROXY": "127.0.0.1"}),
        ("localhost", {"https_proxy": "http://P", "no_proxy": "LOCALHOST"}),
        ("localhost", {"https_proxy": "http://P", "no_proxy": ".localhost"}),
        ("localhost", {"https_proxy": "http://P", "no_proxy": "host"}),
        ("localhost", {"https_proxy": "http://P", "no_proxy": "localhost", "no_grpc_proxy": "other"}),
    ],
)
async def test_the_rules_are_those_of_the_gRPC_that_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, materials: Materials, host: str, environ: dict[str, str]
) -> None:
    files = TlsFiles(tmp_path, tmp_path, tmp_path)
    with who_is_dialled() as (port, proxy_port, heard, came):
        for name in proxy.variables(os.environ):
            monkeypatch.delenv(name)
        given = {name: value.replace("P", f"127.0.0.1:{proxy_port}") for name, value in environ.items()}
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        async with grpc.aio.secure_channel(f"{host}:{port}", grpc.ssl_channel_credentials()) as channel:
            channel.get_state(try_to_connect=True)
            assert await asyncio.to_thread(came.wait, 20)
        config = federation.site_config(materials, tmp_path, f"{host}:{port}", "ge", tls=files)
        proxy.settings(site := Examined(config, environ=given))
    assert heard[0] == ("directly" if site.proxy is None else "proxy")


async def coordinating(*arguments: object) -> None:
    """Run `aggregator` with these arguments."""
    finished = await asyncio.to_thread(coordinate, *arguments)
    assert finished.returncode == 0, finished.stderr


async def at_the_site(*arguments: str) -> None:
    """Run `site-agent` with these arguments."""
    finished = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    assert finished.exit_code == 0, finished.output


async def _run(*command: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=federation.PROCESS_ENVIRONMENT,
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


def _unwrapped(screen: str) -> str:
    return " ".join(screen.split())
