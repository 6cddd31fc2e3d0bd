"""The units in `deploy/systemd`: systemd takes them, they hold what they promise, and the real programs live with their limits."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aggregator.cli import EXIT_UNREACHABLE
from shared.tls import TlsFiles
from site_agent import config
from site_agent.cli.agent import LEAVES_WITHIN_S, STOPPED
from tests.deploy import commands, units
from tests.integration import federation

AGGREGATOR, SITE = "med-duallora-aggregator.service", "med-duallora-site.service"
DROP_INS = {"postgresql.conf": AGGREGATOR, "port-443.conf": AGGREGATOR, "cuda.conf": SITE, "one-address.conf": SITE}
MOST_EXPOSED = {AGGREGATOR: 13, SITE: 16}
"""Ten times the figure of `systemd-analyze security`; what docs/deployment.md quotes and not much more."""
ROOT = units.SYSTEMD.parents[1]
INSTALLED = "/opt/med-duallora/bin"
CHECKPOINT_AND_GONE_S = 30.0


def of(name: str, *drop_ins: str) -> dict[str, list[str]]:
    examples = (units.SYSTEMD / "examples" / one for one in drop_ins)
    return dict(units.settings(units.SYSTEMD / name, *examples))


def laid_out(folder: Path, drop_ins: bool) -> list[Path]:
    """Copy the units as a machine would have them, with the programs where they are here."""
    programs = str(Path(sys.executable).parent)
    for name in (AGGREGATOR, SITE):
        (folder / name).write_text((units.SYSTEMD / name).read_text().replace(INSTALLED, programs))
    for example, name in DROP_INS.items() if drop_ins else ():
        (folder / f"{name}.d").mkdir(exist_ok=True)
        shutil.copy(units.SYSTEMD / "examples" / example, folder / f"{name}.d")
    return [folder / AGGREGATOR, folder / SITE]


def systemd_analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("drop_ins", [False, True], ids=["alone", "with every drop-in"])
def test_systemd_takes_the_units_without_a_word(tmp_path: Path, drop_ins: bool) -> None:
    found = systemd_analyze("verify", *laid_out(tmp_path, drop_ins))
    assert (found.returncode, found.stdout + found.stderr) == (0, "")


def test_a_setting_that_systemd_does_not_know_would_be_found(tmp_path: Path) -> None:
    unit, _ = laid_out(tmp_path, drop_ins=False)
    unit.write_text(unit.read_text().replace("NoNewPrivileges", "NoNewPrivilegs"))
    assert "NoNewPrivilegs" in systemd_analyze("verify", unit).stderr


def test_every_drop_in_is_tested_here() -> None:
    assert {path.name for path in (units.SYSTEMD / "examples").iterdir()} == set(DROP_INS)


@pytest.mark.parametrize("name", [AGGREGATOR, SITE])
def test_little_is_exposed(tmp_path: Path, name: str) -> None:
    laid_out(tmp_path, drop_ins=False)
    found = systemd_analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED[name]}", tmp_path / name)
    assert found.returncode == 0, found.stdout.splitlines()[-1]
    (figure,) = re.findall(rf"exposure level for {name}: ([\d.]+)", found.stdout)
    said = (ROOT / "docs" / "deployment.md").read_text()
    assert f"`{name}` | {figure}" in said, f"docs/deployment.md does not say {figure}"


@pytest.mark.parametrize("name", [AGGREGATOR, SITE])
def test_what_will_fail_again_is_not_started_again_and_nothing_for_ever(name: str) -> None:
    unit = of(name)
    assert unit["Restart"] == ["on-failure"]
    assert unit["RestartPreventExitStatus"] == ["2 3"]
    (burst,), (within,), (pause,) = unit["StartLimitBurst"], unit["StartLimitIntervalSec"], unit["RestartSec"]
    assert within == "1h"
    assert int(burst) * int(pause.removesuffix("s")) < 3600, "the limit would never be reached"


def test_a_replica_waits_for_its_database_but_not_for_ever() -> None:
    unit = of(AGGREGATOR, "postgresql.conf")
    assert str(EXIT_UNREACHABLE) not in unit["RestartPreventExitStatus"][-1].split()
    pauses = unit["RestartSec"]
    assert int(unit["StartLimitBurst"][0]) * int(pauses[-1].removesuffix("s")) < 3600


def test_an_agent_has_time_for_its_checkpoint_and_a_stop_is_no_failure() -> None:
    unit = of(SITE)
    assert LEAVES_WITHIN_S < CHECKPOINT_AND_GONE_S < int(unit["TimeoutStopSec"][0].removesuffix("s"))
    assert unit["SuccessExitStatus"] == [str(STOPPED)]


@pytest.mark.parametrize("name", [AGGREGATOR, SITE])
def test_the_program_takes_the_units_command_line(name: str) -> None:
    words = units.command(of(name), S="/var/lib", d="/run/credentials/x")
    assert str(Path(words[0]).parent) == INSTALLED
    commands.parsed(words)


def test_the_site_toml_beside_the_units_loads_and_keeps_everything_in_the_state_directory() -> None:
    loaded = config.load(units.SYSTEMD / "site.toml", {})
    (folder,) = of(SITE)["StateDirectory"]
    home = Path("/var/lib") / folder
    assert loaded.tls is not None
    for path in (loaded.cohort, loaded.weights, loaded.state, loaded.cache_folder, loaded.tls.key):
        assert path.is_relative_to(home)


def test_the_users_are_made_by_systemd(tmp_path: Path) -> None:
    file = units.SYSTEMD / "med-duallora.sysusers.conf"
    done = subprocess.run(
        ["systemd-sysusers", "--dry-run", f"--root={tmp_path}", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    made = set(re.findall(r"Creating user '([a-z-]+)'", done.stdout + done.stderr))
    assert made == {value for name in (AGGREGATOR, SITE) for value in of(name)["User"]}


# --- the real programs under the units' limits -------------------------------------------------------------------------


def confined(name: str, *command: object) -> list[str]:
    unit = units.SYSTEMD / name
    return [sys.executable, "-m", "tests.deploy.confined", *map(str, (unit, *command))]


def run_confined(name: str, *command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        confined(name, *command),
        capture_output=True,
        text=True,
        timeout=federation.TIMEOUT_S,
        cwd=ROOT,
        env=federation.PROCESS_ENVIRONMENT,
        check=False,
    )


TRIES = """
import mmap, os, socket, sys
def tried(what):
    try:
        what()
    except OSError as error:
        return error.errno
    return 0
print(tried(lambda: os.sched_setaffinity(0, os.sched_getaffinity(0))), tried(lambda: socket.socket(socket.AF_NETLINK)),
      tried(lambda: mmap.mmap(-1, 4096, prot=7)), tried(lambda: socket.socket(socket.AF_INET).close()))
"""


@pytest.mark.parametrize(("name", "memory"), [(AGGREGATOR, 1), (SITE, 0)])
def test_the_limits_are_in_force_where_the_programs_are_tried(name: str, memory: int) -> None:
    """EPERM is 1 and EAFNOSUPPORT 97: affinity, netlink, memory to write and execute, and a socket that is allowed."""
    done = run_confined(name, sys.executable, "-c", TRIES)
    assert done.stdout.split() == ["1", "97", str(memory), "0"], done.stderr


@contextmanager
def serving(store: str, tls: TlsFiles, folder: Path) -> Iterator[str]:
    """Run the aggregator's unit, all but its user and mounts; yield the address. Ends with SIGTERM and demands exit code 0."""
    credentials = folder / "credentials"
    credentials.mkdir()
    for name, path in (("ca.pem", tls.ca), ("aggregator.pem", tls.certificate), ("aggregator.key", tls.key)):
        shutil.copy(path, credentials / name)
    unit = of(AGGREGATOR)
    unit["Environment"].append(f"STORE={store} LISTEN=127.0.0.1:0 HTTP=127.0.0.1:0")
    _, *words = units.command(unit, S=str(folder), d=str(credentials))
    command = confined(AGGREGATOR, federation.program("aggregator"), *words)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=federation.PROCESS_ENVIRONMENT
    ) as process:
        try:
            assert process.stdout is not None
            yield next(line.split()[3] for line in process.stdout if line.startswith("aggregator listening on "))
        finally:
            process.terminate()
            code = process.wait(30)
    assert code == 0


@pytest.mark.integration
def test_a_federation_trains_and_finishes_under_the_units_limits(tmp_path: Path) -> None:
    backbone = federation.save_random_backbone(tmp_path / "backbone", seed=1)
    adapter = federation.save_adapter(backbone, tmp_path / "v0.safetensors")
    cohorts = federation.prepare_phantoms(tmp_path, federation.PHANTOMS, size=32)
    materials = federation.Materials(backbone, adapter, cohorts)
    store = federation.create_store(tmp_path / "aggregator", adapter, sites=["ge"], rounds=1)
    certs = federation.make_certificates(tmp_path / "certs", ["ge"])
    with serving(store, certs["aggregator"], tmp_path) as address:
        site = federation.site_config(materials, tmp_path, address, "ge", tls=certs["ge"])
        done = run_confined(SITE, federation.program("site-agent"), *federation.agent_arguments(site))
        assert done.returncode == 0, done.stderr[-2000:]
    federation.assert_finished(store, rounds=1)
