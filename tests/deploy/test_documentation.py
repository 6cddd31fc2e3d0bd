"""docs/deployment.md and what it names: its commands are commands, its links and files are there."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.deploy import commands

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / "deployment.md", ROOT / "deploy" / "README.md"]


def test_the_programs_take_every_command_line_on_the_page() -> None:
    found = list(commands.in_page(PAGES[0].read_text()))
    assert len(found) >= 10
    for words in found:
        commands.parsed(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text()
    headings = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in re.findall(r"^#+ (.+)$", text, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, heading = target.partition("#")
        assert (page.parent / path).exists(), target
        assert not heading or heading in headings, target


def test_every_file_that_commands_name_is_there() -> None:
    for name in set(re.findall(r"\bdeploy/[\w./-]+", PAGES[0].read_text())) - {"deploy/aggregator"}:
        place = ROOT / name.rstrip(".")
        assert place.exists() or place.parent.name == "secrets", name


def test_everything_in_the_folder_is_in_its_table() -> None:
    listed = set(re.findall(r"`([\w.-]+)/?`", PAGES[1].read_text()))
    tracked = {path.name for path in (ROOT / "deploy").iterdir()} - {"README.md"}
    assert tracked <= listed


@pytest.mark.parametrize("script", ["make-wheelhouse.sh", "install-offline.sh"])
def test_scripts_are_programs_that_a_plain_shell_reads(script: str) -> None:
    file = ROOT / "deploy" / script
    assert file.stat().st_mode & 0o111
    assert subprocess.run(["sh", "-n", file], check=False).returncode == 0
