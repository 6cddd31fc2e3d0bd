"""Links between pages, files and headings lead somewhere, and the page that says who we are is valid."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import live, pages
from tests.docs.pages import OURS, ROOT, Command

LINK = re.compile(r"\[[^\]]*\]\((?!https?://|mailto:)([^)\s]+)\)")
INLINE = re.compile(r"`((?:aggregator|site-agent|make) [^`]+)`")


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def anchors(page: Path) -> set[str]:
    """Return the names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages.pages(), ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in LINK.findall(prose(page)):
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        line = re.fullmatch(r"L\d+", anchor)
        if not target.exists() or (anchor and not line and target.suffix == ".md" and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


@pytest.mark.parametrize("page", pages.pages(), ids=str)
def test_commands_in_a_sentence_name_what_there_is(page: Path) -> None:
    wrong = []
    for text in {" ".join(found.split()) for found in INLINE.findall(prose(page))}:
        if "|" in text or "NAME" in text.split():
            continue  # several commands in one, or a form
        command = Command(str(page), 0, text)
        if command.program in (*OURS, "make") and (problem := live.problem(command, whole=False)):
            wrong.append(f"{text}: {problem}")
    assert wrong == []


def test_every_page_is_in_the_index() -> None:
    index = {
        str((ROOT / "docs" / link.partition("#")[0]).resolve()) for link in LINK.findall(prose(Path("docs/README.md")))
    }
    mine = [path for path in (ROOT / "docs").glob("*.md") if path.name != "README.md"]
    assert [path.name for path in mine if str(path) not in index] == []


def test_the_citation_is_one_that_programs_read() -> None:
    check = Path(sys.executable).parent / "check-jsonschema"
    schema = ["--builtin-schema", "vendor.citation-file-format"]
    done = subprocess.run([check, *schema, ROOT / "CITATION.cff"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    text = (ROOT / "CITATION.cff").read_text()
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"version: {version[1]}\n" in text
    assert "arXiv:2603.10967" in text
