"""The local federation of `deploy/compose.yaml`. Without a Docker engine: the file by its schema, its commands by running them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import commands, dockerfile
from tests.integration import federation

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
AGENTS = [
    name for name, service in SERVICES.items() if any("--aggregator=" in word for word in service.get("command", []))
]
ONCE = ["folders", "phantom", "certificates", "federation"]
INSTALLED = "/opt/med-duallora/lib/python3.11/site-packages"


def script(service: str) -> str:
    """Return what a service gives its shell; $$ is a $ in a compose file."""
    assert SERVICES[service]["entrypoint"] == ["/bin/sh", "-euc"]
    (text,) = SERVICES[service]["command"]
    return str(text).replace("$$", "$")


def programs() -> list[list[str]]:
    """Return each command line of `aggregator` or `site-agent`."""
    found = [words for name in ONCE for words in commands.in_shell(script(name))]
    found.append(["aggregator", *SERVICES["aggregator"]["command"]])
    return [*found, *(["site-agent", *SERVICES[name]["command"]] for name in AGENTS)]


def test_the_schema_of_compose_takes_it() -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    command = [checker, "--builtin-schema", "vendor.compose-spec", FILE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_three_sites_and_every_command_line_is_one_the_program_takes() -> None:
    assert len(AGENTS) == 3
    assert set(SERVICES) == {*ONCE, "aggregator", *AGENTS}
    assert len(programs()) == 5 + 1 + 3
    for words in programs():
        commands.parsed(words)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined_and_bounded(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["cpus"]
    assert service["pids_limit"]
    assert service.get("cap_add", []) == (["CHOWN"] if name == "folders" else [])
    assert ("user" in service) == (name == "folders"), "all others keep their image's user"


def test_folders_are_given_to_the_images_user() -> None:
    (uid,) = (
        one.text for one in dockerfile.instructions(dockerfile.FOLDER / "aggregator.Dockerfile") if one.name == "USER"
    )
    given, *folders = script("folders").removeprefix("chown ").split()
    assert given == uid
    assert {volume.partition(":")[2] for volume in SERVICES["folders"]["volumes"]} == set(folders)


def test_a_site_sees_its_own_volume_and_nothing_else_and_only_the_page_has_a_port_of_the_host() -> None:
    for name in AGENTS:
        assert SERVICES[name]["volumes"] == [f"{name}:/site"]
        assert SERVICES[name]["networks"] == ["federation"]
    assert COMPOSE["networks"]["federation"] == {"internal": True}
    assert [service["ports"] for service in SERVICES.values() if "ports" in service] == [["127.0.0.1:8080:8080"]]


def test_the_images_are_built_by_the_tested_files_and_every_volume_is_declared() -> None:
    built = {service["image"]: service["build"] for service in SERVICES.values() if "build" in service}
    assert {service["image"] for service in SERVICES.values()} == set(built)
    for build in built.values():
        assert (FILE.parent / build["context"] / build["dockerfile"]).is_file()
    used = {volume.partition(":")[0] for service in SERVICES.values() for volume in service["volumes"]}
    assert used == set(COMPOSE["volumes"])


# --- run, on a read-only root and in a network of its own ------------------------------------------------------------

CONFINED = """
mount --bind "$1" "$1"
mount -o remount,bind,ro /
ip link set lo up
shift
exec "$@"
"""
UP_AND_HEALTHY = """
aggregator $1 > "$2" & served=$!
until grep -q "^aggregator listening" "$2"; do kill -0 $served; sleep 0.1; done
python "$3" 8080 && echo healthy
python -c "$4" "$5"
kill $served && wait $served && echo "ended with status 0"
python "$3" 8080 || echo "gone: unhealthy"
"""
LOOK = """
import json, ssl, sys, urllib.error, urllib.request
context = ssl.create_default_context(cafile=sys.argv[1] + "/ca.pem")
try:
    urllib.request.urlopen("https://localhost:8080/status.json", context=context)
except urllib.error.HTTPError as error:
    print(error.code)
context.load_cert_chain(sys.argv[1] + "/anna.pem", sys.argv[1] + "/anna.key")
print(json.load(urllib.request.urlopen("https://localhost:8080/status.json", context=context))["federation"])
"""


def here(text: str, root: Path) -> str:
    """Return a command with the folders that the containers mount as folders under `root`, and a cohort of fewest cases."""
    text = text.replace("--scale 0.25 --test-cases 20", "--scale 0.02 --test-cases 4")
    text = re.sub(rf"(^|[\s=])/({'|'.join([*COMPOSE['volumes'], 'tmp'])}|\$site)\b", rf"\1{root}/\2", text)
    return text.replace(INSTALLED, str(ROOT))


def run(root: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a command where nothing but `root` can be written and nobody can be reached."""
    shell = ["unshare", "--mount", "--net", "--map-root-user", "sh", "-euc", CONFINED, "sh", root]
    environment = {
        **federation.PROCESS_ENVIRONMENT,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TMPDIR": str(root / "tmp"),
        "HOME": str(root / "tmp"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.run(
        [*map(str, shell), *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=root,
        check=False,
        timeout=300,
    )


@pytest.mark.integration
def test_the_services_that_run_once_leave_what_the_others_start_with_and_the_aggregator_is_healthy(
    tmp_path: Path,
) -> None:
    for volume in (*COMPOSE["volumes"], "tmp"):
        (tmp_path / volume).mkdir()
    assert run(tmp_path, "touch", FILE).returncode, "the root can be written"
    for service in ONCE[1:]:
        done = run(tmp_path, "sh", "-euc", here(script(service), tmp_path))
        assert done.returncode == 0, (service, done.stderr)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.key")}
    assert len(before) == 9  # the CA's, the aggregator's, the observer's, and three sites' twice
    for service in ONCE[2:]:  # as `docker compose up` does the next time
        done = run(tmp_path, "sh", "-euc", here(script(service), tmp_path))
        assert done.returncode == 0, (service, done.stderr)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.key")}
    assert (
        json.loads(run(tmp_path, "aggregator", "status", "--store", tmp_path / "store/fed.db", "--json").stdout)[
            "invited"
        ]
        == 3
    )

    for name in AGENTS:
        given = commands.parsed(["site-agent", *SERVICES[name]["command"]])
        for setting in ("cohort", "ca", "certificate", "key"):
            assert (tmp_path / name / given[setting].relative_to("/site")).exists(), (name, setting)
        assert (ROOT / given["weights"].relative_to(INSTALLED) / "config.json").is_file()

    (test, *probe) = SERVICES["aggregator"]["healthcheck"]["test"]
    assert (test, probe) == ("CMD", ["python", "/opt/med-duallora/healthy.py", "8080"])
    words = here(" ".join(SERVICES["aggregator"]["command"]), tmp_path)
    given = (words, tmp_path / "printed", dockerfile.FOLDER / "healthy.py", LOOK, tmp_path / "coordinator/certs")
    done = run(tmp_path, "sh", "-euc", UP_AND_HEALTHY, "sh", *given)
    found = ["healthy", "403", "trial", "ended with status 0", "gone: unhealthy"]
    assert done.stdout.splitlines() == found, done.stderr
