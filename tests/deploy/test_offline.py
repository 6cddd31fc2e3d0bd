"""The wheelhouse: made here from a folder of wheels as its only index, installed in a network without anything."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy import wheels
from tests.support.requirements import PYPROJECT, ROOT, closure, pinned

MAKE, INSTALL = ROOT / "deploy" / "make-wheelhouse.sh", ROOT / "deploy" / "install-offline.sh"
NO_NETWORK = ["unshare", "--net", "--map-root-user"]
BUILD_NEEDS = [Requirement(text).name for text in PYPROJECT["build-system"]["requires"]]


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*NO_NETWORK, *map(str, words)]
    given = {**os.environ, "PYTHON": sys.executable, "PIP_NO_COMPILE": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=given, check=False, timeout=300)


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheelhouse of the base install, made without any network."""
    folder = tmp_path_factory.mktemp("offline")
    index = folder / "index"
    index.mkdir()
    for name in set().union(*(closure(needed, set()) for needed in ("med-duallora", *BUILD_NEEDS))) - {"med-duallora"}:
        wheels.packed(name, index)
    made = run(MAKE, folder / "wheelhouse", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(index), PIP_CONFIG_FILE=os.devnull)
    assert made.returncode == 0, made.stderr
    return folder / "wheelhouse"


def test_a_wheelhouse_holds_all_of_the_base_install_at_the_pinned_versions_and_nothing_else(wheelhouse: Path) -> None:
    lines = [Requirement(line.split(" ")[0]) for line in (wheelhouse / "requirements.txt").read_text().splitlines()]
    listed = {canonicalize_name(one.name): one.specifier for one in lines}
    assert listed.pop(canonicalize_name("med-duallora"))
    assert listed.keys() == closure("med-duallora", set()) - {"med-duallora"}
    pins = pinned()
    assert {name: pins[name] for name in listed} == listed


def test_a_machine_without_a_network_installs_it_and_the_aggregator_works(wheelhouse: Path, tmp_path: Path) -> None:
    sums = subprocess.run(["sha256sum", wheelhouse / "SHA256SUMS"], capture_output=True, text=True, check=True)
    done = run("sh", wheelhouse / "install.sh", tmp_path / "venv", sums.stdout.split()[0], PIP_CONFIG_FILE=os.devnull)
    assert done.returncode == 0, done.stderr
    program = tmp_path / "venv" / "bin" / "aggregator"
    made = run(program, "certificates", "--out", tmp_path / "certs", "--host", "fed.example.org")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "certs" / "aggregator.key").is_file()


@pytest.mark.parametrize("name", ["typer-*.whl", "made-for"])
def test_a_wheelhouse_in_which_a_file_changed_is_refused_before_anything_is_installed(
    wheelhouse: Path, tmp_path: Path, name: str
) -> None:
    changed = shutil.copytree(wheelhouse, tmp_path / "wheelhouse", copy_function=os.link)
    (file,) = changed.glob(name)
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content + b"\n")
    done = run("sh", changed / "install.sh", tmp_path / "venv")
    assert done.returncode == 3
    assert f"{file.name}: FAILED" in done.stdout
    assert not (tmp_path / "venv").exists()


def test_a_wheelhouse_made_by_somebody_else_is_refused(wheelhouse: Path, tmp_path: Path) -> None:
    done = run("sh", wheelhouse / "install.sh", tmp_path / "venv", "0" * 64)
    assert done.returncode == 3
    assert "this is not the wheelhouse you were told of" in done.stderr


def test_neither_script_writes_over_what_is_there(tmp_path: Path) -> None:
    for script in (MAKE, INSTALL):
        done = run("sh", script, tmp_path)
        assert done.returncode == 3
        assert f"{tmp_path} exists already" in done.stderr
