"""The reference pages are what the code and the .proto files say, and leave nothing unexplained."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("generate_reference", DOCS / "generate_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages: dict[str, str] = module.pages()
    return pages


def test_the_committed_pages_are_what_the_generator_makes(made: dict[str, str]) -> None:
    assert sorted(made) == sorted(path.name for path in (DOCS / "reference").glob("*.md"))
    for name, text in made.items():
        assert (DOCS / "reference" / name).read_text(encoding="utf-8") == text, f"{name} is stale: run `make reference`"


def test_every_setting_option_and_field_is_explained(made: dict[str, str]) -> None:
    for name, text in made.items():
        rows = [line for line in text.splitlines() if line.startswith("| ")]
        assert len(rows) > 20, name
        assert [row for row in rows if re.search(r"\|\s+\|$", row)] == [], name


def test_every_command_has_its_example(made: dict[str, str]) -> None:
    for section in re.split(r"^### ", made["commands.md"], flags=re.MULTILINE)[1:]:
        program = section.split()[0]
        assert re.search(rf"^    {program} ", section, flags=re.MULTILINE), section.splitlines()[0]


def test_commands_of_commands_are_there_too(made: dict[str, str]) -> None:
    sections = set(re.findall(r"^### (.+)$", made["commands.md"], flags=re.MULTILINE))
    assert sections >= {
        f"site-agent {words}" for words in ("ledger show", "ledger verify", "cache purge", "privacy show")
    }
