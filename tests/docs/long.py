"""Every command of the pages that takes over a minute, as it stands: `make check-long`, or `python -m tests.docs.long [PATTERN]`.

They run one after the other in a copy of the checkout with an environment of its own, which `make setup` makes first.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from tests.docs import pages, rules
from tests.docs.pages import ROOT, Command

SOURCE = "source venv/bin/activate"
MISSES = {"python -m experiments.training equality": 1, "make bench-training": 2, "make bench-comm": 2}
"""Exit statuses of those of which the page itself shows a figure that misses its target."""


def commands(pattern: str = "") -> list[Command]:
    """Return the long commands that a pattern is found in, each once."""
    found = [one for one in pages.distinct() if rules.where(one) == "long" or _only_smaller(one)]
    return [one for one in found if re.search(pattern, one.text)]


def _only_smaller(command: Command) -> bool:
    """Whether another test runs it, but smaller: the project's own programs do not need more than the checkout."""
    programs = {words[0] for words in command.parts}
    return rules.where(command) == "elsewhere" and ("make" in programs or "experiments." in command.text)


def copy(to: Path) -> Path:
    """Copy what git keeps or would, and link the reference data beside it. No environment: installing would change ours."""
    wanted = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(wanted, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in names.split("\0")[:-1]:
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    (to.parent / "shared").symlink_to(ROOT.parent / "shared")
    return to


def main(
    pattern: Annotated[str, typer.Argument(help="Only commands in which this regular expression is found.")] = "",
) -> None:
    """Run every command of the pages that takes over a minute, in a copy of the checkout. It takes hours.

    Exit codes: 0 all did what their page says, 1 one failed.

    Example: python -m tests.docs.long robustness
    """
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        where = copy(Path(folder) / "checkout")
        environment = {**os.environ, "PATH": f"{where / '.venv' / 'bin'}:{os.environ.get('PATH', '')}"}
        subprocess.run(["make", "setup"], cwd=where, env=environment, check=True)
        activated = ""
        for command in commands(pattern):
            if command.program == "source":  # holds for the commands below it on its page
                activated = command.page
            first = f"{SOURCE} && " if activated == command.page else ""
            print(f"{command.where}: {command.text}", flush=True)
            began = time.monotonic()
            done = subprocess.run(["bash", "-c", first + command.text], cwd=where, env=environment, check=False)
            failed += done.returncode not in (0, MISSES.get(command.text, 0))
            print(f"{command.where}: {time.monotonic() - began:.0f} s, exit status {done.returncode}", flush=True)
    sys.exit(bool(failed))


if __name__ == "__main__":
    typer.run(main)
