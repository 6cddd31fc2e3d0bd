"""Where the commands of the pages are run, and what of them is smaller there.

A command runs in a copy of what the federation of the guides left: an `aggregator` command in the coordinator's folder, one of
`site-agent` in a hospital's. Nothing needs to be said of those. Here is what is different; the first rule that fits counts.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from tests.docs.pages import Command

Where = Literal[
    "coordinator",
    "open",
    "serving",
    "hospital",
    "held",
    "offered",
    "project",
    "long",
    "elsewhere",
    "machine",
    "nowhere",
]
"""Folders, of which every command gets a copy. coordinator, hospital: theirs at the end. open: the coordinator's after round 1.
serving: the same, while an aggregator serves it. held, offered: the hospital's, where an update waits for a person, and a changed
contract does. project: the checkout.

Not run here. long: over a minute; `python -m tests.docs.long` runs it as it stands. elsewhere: another test runs it, smaller.
machine: it changes a machine, as root, by an engine of containers or in a cluster; another test checks its files. nowhere: nothing
is said of it, which fails."""


@dataclass(frozen=True)
class Rule:
    """What is to be done with commands that a pattern is found in. `test`: which other tests have to do with them."""

    pattern: str
    where: Where
    instead: Mapping[str, str] = field(default_factory=dict)
    """Patterns in the command, and what stands for them."""
    more: str = ""
    """Options added at the end."""
    test: str = ""
    until: str = ""
    """It runs until it is asked to leave; this is what it says before."""


EVERYWHERE: Mapping[str, str] = {
    r"^(sudo (-u \S+ )?)?(\.venv/bin/|/opt/med-duallora/bin/)(aggregator|site-agent)": r"\4",
    r"/(var/lib/med-duallora-\w+|etc/med-duallora)/": "",
    r"--weights (weights/)?cinema\.safetensors --size base": "--weights weights",
    r"--frames siamese ?": "",
    r"(fed|aggregator)\.example\.org:(443|50051)|\bhost:50051": "fed.example.org:443",
    r"--rounds \d+": "--rounds 2",
}
"""The pages speak of CineMA's file, of folders of services, of several hosts, and of more rounds than two."""

SITES = "--site siemens=40 --site philips=40 --site ge=40"
PREPARED = "--spacing 2 2 10 --size 64 64"
RAW = {r"/data/(ACDC/database|MnM/OpenDataset|MnM2)": "raw", r"/data/prepared": "prepared"}
SMALL_PHANTOM = "--scale 0.02 --test-cases 4"
LOOK = "--scale 0.02 --rounds 1 --test-cases 2"

RULES = (
    # the coordinator
    Rule(r"^aggregator .*postgresql://", "elsewhere", test="tests/integration/test_replicas.py"),
    Rule(r"^aggregator init \.\.\.", "coordinator",
         {r"init \.\.\.": f"init --store new.db --federation heart --adapter v0.safetensors {SITES}"}),
    Rule(r"^aggregator init (?!.*--store)", "coordinator", {r"init": "init --store new.db --federation heart", r"\.\.\.": SITES}),
    Rule(r"^aggregator init .*--host", "coordinator", {r"--store \S+": "--store new.db", r"--host": "--certs new-certs --host"}),
    Rule(r"^aggregator init", "coordinator", {r"--store \S+": "--store new.db"}),
    Rule(r"^aggregator certificates .*--renew", "coordinator"),
    Rule(r"^aggregator certificates", "coordinator", {r"--out \S+": "--out new-certs"}),
    Rule(r"^aggregator serve .*runs/demo", "coordinator", {r"(--listen|--http) \S+": r"\1 127.0.0.1:0"}, until="listening"),
    Rule(r"^aggregator serve", "open", {r"(--listen|--http) \S+": r"\1 127.0.0.1:0"}, until="listening"),
    Rule(r"^aggregator (pause|resume|evict|rollback|observe)", "serving", {r"rollback \d+": "rollback 0"}),
    Rule(r"^curl .*https://", "elsewhere", test="tests/integration/test_status_page.py"),
    Rule(r"^curl .*//(127\.0\.0\.1|localhost):8080", "serving"),
    Rule(r"^aggregator (approve|revoke)|^sqlite3", "open"),
    Rule(r"^aggregator export", "coordinator", {r"--version \d+": "--version 1"}),
    Rule(r"^aggregator verify .*fed-backup", "coordinator", {r"fed-backup\.db": "fed.db"}),
    # the hospital
    Rule(r"^site-agent --", "hospital", until='"AwaitRound"'),
    Rule(r"^site-agent release", "held"),
    Rule(r"^site-agent accept", "offered"),
    Rule(r"^site-agent init-adapter .*models/demo", "hospital", {r"site_agent/models/demo": "weights"}),
    Rule(r"^site-agent privacy", "elsewhere", test="tests/integration/test_privacy_budget.py"),
    Rule(r"^site-agent prepare /data/dicom", "elsewhere", test="tests/unit/site_agent/test_dicom.py"),
    Rule(r"^site-agent phantom (?!.*(--scale|--figure))", "hospital", {r"--out raw": "--out new-raw"}, SMALL_PHANTOM),
    Rule(r"^site-agent prepare .*--spacing", "hospital"),
    Rule(r"^site-agent prepare", "hospital", {**RAW, r"/data/our-scans": "our-scans"}, PREPARED),
    Rule(r"^site-agent verify-backbone", "elsewhere", test="tests/unit/site_agent/test_golden.py"),
    Rule(r"monai\.bundle", "elsewhere", test="tests/integration/test_use_of_the_result.py"),
    # the project
    Rule(r"--help$", "project"),
    Rule(r"^make demo|experiments\.demo\b", "elsewhere", test="tests/integration/test_demo.py"),
    Rule(r"experiments\.table", "elsewhere", test="tests/unit/experiments/test_table.py"),
    Rule(r"experiments\.comparison run --data", "hospital", {r"/data/prepared": "cohort", r"--jobs 1": "--list"}),
    Rule(r"experiments\.comparison run .*(--list|--cell)", "project", {r"--scale \S+ --rounds \S+ --test-cases \S+": LOOK}),
    Rule(r"^make (test|test-unit|check|setup|comparison|bench-comm|bench-training|pins|proto|format|reference)$", "long"),
    Rule(r"python -m pytest ", "elsewhere", test="tests/unit"),
    Rule(r"python -m experiments\.", "long"),
    Rule(r"^(python3 -m venv venv|source venv/bin/activate|pip install)", "long"),
    # machines
    Rule(r"wheelhouse", "machine", test="tests/deploy/test_offline.py"),
    Rule(r"^sudo |^journalctl", "machine", test="tests/deploy/test_systemd.py"),
    Rule(r"^docker compose", "machine", test="tests/deploy/test_compose.py"),
    Rule(r"^docker ", "machine", test="tests/deploy/test_images.py"),
    Rule(r"haproxy|^createuser", "machine", test="tests/integration/test_replicas.py"),
    Rule(r"^kubectl |deploy/kubernetes", "machine", test="tests/deploy/test_kubernetes.py"),
)  # fmt: skip


def rule_of(command: Command) -> Rule:
    """Return the rule for a command. Raises LookupError if nothing is said of such a command."""
    text = plain(command).text
    for rule in RULES:
        if re.search(rule.pattern, text):
            return rule
    if (program := plain(command).program) in DEFAULT:
        return Rule("", DEFAULT[program])
    raise LookupError(f"{command.where}: nothing runs '{command.text}'; say in tests/docs/rules.py what does")


DEFAULT: Mapping[str, Where] = {"aggregator": "coordinator", "site-agent": "hospital"}


def where(command: Command) -> Where:
    """Return where a command is run; nowhere if nothing is said of it."""
    try:
        return rule_of(command).where
    except LookupError:
        return "nowhere"


def plain(command: Command) -> Command:
    """Return a command with the names that all of the test has in place of the pages'."""
    text = command.text
    for pattern, here in EVERYWHERE.items():
        text = re.sub(pattern, here, text)
    return replace(command, text=" ".join(text.split()))


def reduced(command: Command) -> Command:
    """Return a command as it runs in the test."""
    found, rule = plain(command), rule_of(command)
    text = found.text
    for pattern, here in rule.instead.items():
        text = re.sub(pattern, here, text)
    return replace(found, text=" ".join(f"{text} {rule.more}".split()))
