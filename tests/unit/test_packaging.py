"""What a user relies on before any of the code runs: extras, pins, licence, commands, and imports that point one way."""

import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.support.requirements import PINS, PYPROJECT, ROOT, closure, pinned

BIN = Path(sys.executable).parent

IMPORT_ALL = """
import importlib, importlib.abc, pkgutil, sys

class OnlyBase(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is not part of the base install", name=name)

blocked = set(sys.argv[1].split())
sys.meta_path.insert(0, OnlyBase())
for package in ("med_duallora", "shared", "aggregator"):
    module = importlib.import_module(package)
    for found in pkgutil.walk_packages(module.__path__, package + "."):
        importlib.import_module(found.name)
print(sum(name.startswith(("med_duallora", "shared", "aggregator")) for name in sys.modules))
"""


def test_the_base_install_is_enough_for_the_aggregator() -> None:
    """Every module of the aggregator starts with nothing importable but what the base install brings."""
    base = closure("med-duallora", set())
    assert {"grpcio", "numpy", "sqlalchemy"} <= base
    assert not {"torch", "monai", "nibabel", "scikit-learn", "matplotlib"} & base
    owners = metadata.packages_distributions()
    blocked = {module for module, names in owners.items() if not {canonicalize_name(n) for n in names} & base}
    assert {"torch", "monai", "nibabel", "sklearn", "scipy", "matplotlib"} <= blocked
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, " ".join(sorted(blocked))],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 15


def test_everything_installed_here_is_pinned_and_is_the_pinned_version() -> None:
    pins = pinned()
    for name in sorted(closure("med-duallora", {"dev"}) - {"med-duallora"}):
        assert name in pins, f"{name} is not in constraints.txt: run `make pins`"
        assert pins[name].contains(metadata.version(name)), f"{name} {metadata.version(name)}: run `make setup`"


def test_pins_are_names_and_versions_and_nothing_else() -> None:
    for requirement in PINS:
        assert requirement.url is None
        assert [specifier.operator for specifier in requirement.specifier] == ["=="]
    assert not (ROOT / "uv.lock").exists(), "uv.lock holds registry addresses and is not kept"


def test_a_cpu_build_of_torch_meets_the_pin() -> None:
    """A machine that offers `torch+cpu` takes it; the pins of CUDA packages bind only where something requires them."""
    (torch,) = (r for r in PINS if r.name == "torch")
    (version,) = (specifier.version for specifier in torch.specifier)
    assert torch.specifier.contains(f"{version}+cpu")


def test_the_licence_is_in_the_checkout_and_in_the_package() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert metadata.metadata("med-duallora")["License-Expression"] == "Apache-2.0"


def test_the_wheel_holds_the_four_packages() -> None:
    packages = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert packages == ["aggregator", "site_agent", "shared", "proto/med_duallora"]
    assert not (ROOT / "proto" / "__init__.py").exists(), "it would shadow the proto-plus library"
    assert list((ROOT / "tests").rglob("__init__.py")) == [], "tests/unit/shared would be imported instead of ours"


@pytest.mark.parametrize("script", ["aggregator", "site-agent"])
def test_a_command_is_installed_and_explains_itself(script: str) -> None:
    result = subprocess.run([BIN / script, "--help"], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "Usage" in result.stdout


# --- imports -----------------------------------------------------------------------------------------------------------


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "lint-imports", "--no-cache", "--no-logo"], cwd=folder, capture_output=True, text=True, check=False
    )


def copy_of_the_packages(folder: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.proto")
    for package in ("aggregator", "site_agent", "shared", "experiments"):
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    shutil.copytree(ROOT / "proto" / "med_duallora", folder / "med_duallora", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_imports_point_one_way() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout
    assert "2 kept, 0 broken" in result.stdout


@pytest.mark.parametrize(
    ("module", "line", "chain"),
    [
        ("aggregator", "from site_agent import cli", "aggregator.offender -> site_agent"),
        ("site_agent", "from aggregator import cli", "site_agent.offender -> aggregator"),
        ("shared", "import aggregator", "shared.offender -> aggregator"),
        ("site_agent", "import experiments", "site_agent.offender -> experiments"),
        ("shared", "def late():\n    import torch", "shared.offender -> torch"),
    ],
    ids=[
        "aggregator imports a site",
        "site imports the aggregator",
        "shared imports a side",
        "site imports an experiment",
        "torch, late",
    ],
)
def test_an_import_the_wrong_way_is_caught(tmp_path: Path, module: str, line: str, chain: str) -> None:
    copy = copy_of_the_packages(tmp_path)
    (copy / module / "offender.py").write_text(line + "\n")
    result = lint_imports(copy)
    assert result.returncode == 1
    assert chain in result.stdout


# --- make --------------------------------------------------------------------------------------------------------------


def make(*arguments: str) -> str:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_make_alone_lists_every_target() -> None:
    targets = set(re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"setup", "demo", "test", "test-unit", "check", "proto", "clean", "help"} <= targets
    assert set(re.findall(r"^  make (\S+) +\S", make(), re.MULTILINE)) == targets


def test_make_test_runs_every_folder_of_tests_and_the_fast_ones_first() -> None:
    folders = [
        path.name for path in sorted((ROOT / "tests").iterdir()) if path.is_dir() and not path.name.startswith("_")
    ]
    commands = [line for line in make("-n", "test").splitlines() if "-m pytest" in line]
    named = [name for line in commands for name in re.findall(r" tests/([a-z_]+)/?(?=\s|$)", line)]
    assert named[:2] == ["unit", "property"]
    assert sorted(named) == folders
    ignored, files = ({*re.findall(rf"{mark}(tests/\S+\.py)", " ".join(commands))} for mark in ("--ignore=", " "))
    assert ignored <= files, "what is left out there is run by itself"


def test_make_demo_takes_a_seed() -> None:
    command = next(
        line for line in make("-n", "demo", "SEED=3", "OUT=elsewhere").splitlines() if "experiments.demo" in line
    )
    assert command.endswith("-m experiments.demo --seed 3 --out elsewhere")


def test_ci_runs_what_the_readme_says() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert script.rstrip().splitlines()[-1] == "make test"
    assert "set -euo pipefail" in script
    assert "make test" in (ROOT / "README.md").read_text()
