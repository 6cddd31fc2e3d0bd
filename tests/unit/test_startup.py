"""What starting a command loads: help comes without the heavy libraries, and the aggregator never needs them.

Start-up times are printed by `python -m experiments.startup`; a library loaded by accident is what makes them grow, so that is
what is tested.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "monai", "scipy", "sklearn", "statsmodels", "matplotlib", "nibabel", "peft")

HELP_OF_EVERY_COMMAND = """
import json, sys
import typer.main
from typer.testing import CliRunner
{get_app}
group = typer.main.get_command(app)
texts = {{}}
for words in [[], *([name] for name in group.commands)]:
    result = CliRunner().invoke(app, [*words, "--help"], prog_name="program")
    texts[" ".join(words)] = [result.exit_code, result.output]
print(json.dumps([texts, sorted(sys.modules)]))
"""
GET_APP = {
    "site-agent": "from site_agent.cli import app",
    "aggregator": "from aggregator.cli import build; app = build()",
}


def run(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize("program", list(GET_APP))
def test_help_of_every_command_loads_nothing_heavy_and_has_an_example(program):
    texts, modules = json.loads(run(HELP_OF_EVERY_COMMAND.format(get_app=GET_APP[program])))
    assert len(texts) > 5
    assert [name for name in HEAVY if name in modules] == []
    for words, (code, text) in texts.items():
        assert code == 0, words
        # the agent is what `site-agent` does without a command, so its help has an example too
        if words or program == "site-agent":
            assert re.search(rf"Examples?:\s+{program}", text), words


@pytest.mark.parametrize("program", ["site_agent", "aggregator"])
def test_help_by_the_entry_point_loads_nothing_heavy(program):
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print([m for m in {HEAVY!r} if m in sys.modules]))\n"
        f"sys.argv = ['{program}', '--help']\n"
        f"from {program}.cli import main\n"
        "main()\n"
    )
    lines = run(code).splitlines()
    assert lines[-1] == "[]"
    assert any("Exit codes: 0 done" in line for line in lines)


HELP_OF_MODULES = """
import contextlib, importlib, io, json, runpy, sys
import typer, typer.main
found = {}
for module in sys.argv[1:]:
    app = getattr(importlib.import_module(module), "app", None)
    group = typer.main.get_command(app) if app else None
    for words in [[], *([name] for name in getattr(group, "commands", ()))]:
        sys.argv = [module, *words, "--help"]
        with contextlib.redirect_stdout(io.StringIO()) as said:
            try:
                runpy.run_module(module, run_name="__main__")
            except SystemExit as end:
                code = end.code or 0
        found[" ".join([module, *words])] = [code, said.getvalue(), sorted(sys.modules)]
print(json.dumps(found))
"""


def commands_of(folder: str) -> list[str]:
    """Return the modules below a folder that are commands for people, as `python -m` takes them; child programs know no typer."""
    lines = {path: set(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / folder).rglob("*.py")}
    paths = [path for path, has in lines.items() if {"import typer", 'if __name__ == "__main__":'} <= has]
    return sorted(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__") for path in paths)


@pytest.mark.parametrize("folder", ["experiments", "tests"])
def test_help_of_every_module_that_is_a_command_loads_nothing_heavy_and_has_an_example(folder):
    modules = commands_of(folder)
    assert {"experiments": "experiments.training", "tests": "tests.chaos"}[folder] in modules
    command = [sys.executable, "-W", "ignore::RuntimeWarning:runpy", "-c", HELP_OF_MODULES, *modules]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert finished.returncode == 0, finished.stderr
    for words, (code, text, loaded) in json.loads(finished.stdout).items():
        assert code == 0, words
        assert [name for name in HEAVY if name in loaded] == [], words
        assert re.search(r"Examples?:\s+", text), words
