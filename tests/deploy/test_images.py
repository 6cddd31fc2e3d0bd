"""The images' files. There is no Docker engine here: they are checked and their steps replayed, not built."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.deploy import dockerfile
from tests.deploy.dockerfile import FOLDER, ROOT

AGGREGATOR, SITE = FOLDER / "aggregator.Dockerfile", FOLDER / "site-agent.Dockerfile"
FILES = pytest.mark.parametrize("file", [AGGREGATOR, SITE], ids=lambda path: path.stem)
BIN = Path(sys.executable).parent
WRITABLE = {AGGREGATOR: "/store", SITE: "/site"}


def test_every_dockerfile_is_tested_here() -> None:
    assert set(FOLDER.glob("*Dockerfile")) == {AGGREGATOR, SITE}


@FILES
def test_hadolint_has_nothing_to_say(file: Path) -> None:
    done = subprocess.run([BIN / "hadolint", file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@FILES
def test_an_image_runs_as_nobody_in_particular_and_gets_its_signals_itself(file: Path) -> None:
    *before, image = dockerfile.stages(file)
    assert before, "what builds the environment is no part of the image"
    said = {one.name: one for one in image}
    uid, gid = map(int, said["USER"].text.split(":"))
    assert min(uid, gid) >= 10_000
    assert image.index(said["USER"]) > max(k for k, one in enumerate(image) if one.name in ("RUN", "COPY"))
    assert said["VOLUME"].text == WRITABLE[file]
    assert said["ENTRYPOINT"].words == [file.name.removesuffix(".Dockerfile")]
    assert said["CMD"].words


@FILES
def test_what_is_copied_is_there_and_nothing_else_gets_into_the_build(file: Path) -> None:
    sources = dockerfile.copied(file)
    assert all((ROOT / source).exists() for source in sources)
    assert dockerfile.let_through(file) == sources
    assert not [one for one in dockerfile.instructions(file) if one.name == "ADD"]
    for one in dockerfile.instructions(file):
        assert not re.search(r"(?i)secret|token|password", one.text)


@FILES
def test_uv_is_the_one_that_the_makefile_pins_and_python_is_a_tagged_image(file: Path) -> None:
    arguments = dict(one.text.split("=", 1) for one in dockerfile.instructions(file) if one.name == "ARG")
    (pinned,) = re.findall(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert arguments["UV_VERSION"] == pinned
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", arguments["PYTHON"])
    for stage in dockerfile.stages(file):
        assert re.match(r"\$\{PYTHON\}|build(-\$\{VARIANT\})?( |$)", stage[0].text), stage[0]


def test_an_agent_can_be_had_for_cpus_and_for_gpus() -> None:
    named = {stage[0].text.partition(" AS ")[2] for stage in dockerfile.stages(SITE)}
    assert {"build-cpu", "build-cuda"} <= named
    (default,) = (one.text for one in dockerfile.instructions(SITE) if one.text.startswith("VARIANT="))
    assert f"build-{default.partition('=')[2]}" in named


@FILES
def test_uv_takes_every_install_step_and_finds_its_extras_and_pins_met_here(file: Path) -> None:
    steps = [shlex.split(one.text) for one in dockerfile.instructions(file) if one.text.startswith("uv pip install")]
    dependencies = [step for step in steps if "pyproject.toml" in step]
    assert len(dependencies) == (1 if file == AGGREGATOR else 2)
    for step in dependencies:
        assert "constraints.txt" in step
        command = [BIN / "uv", *step[1:], "--offline", "--dry-run", "--python", sys.executable]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "Would make no changes"), done.stderr


@FILES
def test_the_project_builds_from_what_is_copied_and_brings_what_the_image_starts(file: Path, tmp_path: Path) -> None:
    for source in dockerfile.copied(file):
        place = tmp_path / "src" / source
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, place)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, "."]
    done = subprocess.run(command, cwd=tmp_path / "src", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (started,) = (name for name in names if name.endswith("entry_points.txt"))
        assert f"{file.name.removesuffix('.Dockerfile')} = " in archive.read(started).decode()
    assert {"site_agent/models/demo/model.safetensors", "med_duallora/v1/federation_pb2.py"} <= names
