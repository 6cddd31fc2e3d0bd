"""Commands are found where they stand, and what is wrong with one is found too."""

import pytest

from tests.docs import live, rules
from tests.docs.pages import Command, commands_of

PAGE = """
# A page

```sh
aggregator status --store fed.db   # at a glance
aggregator init --store fed.db \\
  --site 'a # b'
$ curl --fail http://127.0.0.1:8080/readyz
unheard-of --flag
```

    make demo SEED=3      # another seed
    plain prose that is indented

```toml
aggregator = "fed.example.org:443"
```

```
NAME=value haproxy -f haproxy.cfg
site A  ──┐ a picture
```
"""


def test_commands_are_found_in_fenced_and_in_indented_blocks() -> None:
    found = [(one.line, one.text) for one in commands_of("page.md", PAGE)]
    assert found == [
        (5, "aggregator status --store fed.db"),
        (6, "aggregator init --store fed.db --site 'a # b'"),
        (8, "curl --fail http://127.0.0.1:8080/readyz"),
        (9, "unheard-of --flag"),
        (12, "make demo SEED=3"),
        (20, "NAME=value haproxy -f haproxy.cfg"),
    ]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("sudo -u med aggregator status --store a > out", [["aggregator", "status", "--store", "a"]]),
        ("A=1 make demo && sudo make test", [["make", "demo"], ["make", "test"]]),
        (
            "for s in 0 1; do python -m experiments.demo --seed $s; done",
            [["python", "-m", "experiments.demo", "--seed", "0"]],
        ),
        ("createuser med; createdb hearts", [["createuser", "med"], ["createdb", "hearts"]]),
    ],
)
def test_every_program_of_a_line_is_seen(text: str, parts: list[list[str]]) -> None:
    assert Command("page.md", 1, text).parts == parts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("aggregator status --store fed.db --colour", "No such option"),
        ("aggregator stats --store fed.db", "No such command"),
        ("aggregator status", "Missing option"),
        ("site-agent prepare scans", "Missing option"),
        ("sudo -u med /opt/med-duallora/bin/site-agent joined", "No such command"),
        ("make everything", "has no target everything"),
        ("make demo SEEDS=3", "knows no SEEDS"),
        ("python -m experiments.nothing", "there is no module"),
        (".venv/bin/python -m experiments.demo --seeds 3", "No such option"),
        (".venv/bin/python -m pytest tests/nowhere.py", "there is no test"),
        ("torchrun --standalone -- site-agent --no-such", "No such option"),
    ],
)
def test_what_is_wrong_with_a_command_is_said(text: str, said: str) -> None:
    assert said in live.problem(Command("page.md", 1, text))


def test_what_is_left_out_is_not_missed_and_the_rest_is() -> None:
    assert live.problem(Command("page.md", 1, "aggregator init ... --rounds 3")) == ""
    assert "No such option" in live.problem(Command("page.md", 1, "aggregator init ... --round-count 3"))


def test_a_command_of_which_nothing_is_said_is_named_with_what_to_do() -> None:
    with pytest.raises(LookupError, match=r"page.md:1: nothing runs 'unheard-of --flag'; say in tests/docs/rules.py"):
        rules.rule_of(Command("page.md", 1, "unheard-of --flag"))
