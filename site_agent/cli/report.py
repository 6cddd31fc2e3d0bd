"""`site-agent report`: did it help this hospital?"""

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

Folder = Annotated[Path, typer.Option(help="The agent's state folder.")]
Facts = Mapping[str, Any]
WIDTH = 100


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report")(report)


def report(
    state: Folder,
    html: Annotated[Path | None, typer.Option(help="Write everything as a page, readable by its owner only.")] = None,
    cases: Annotated[
        Path | None, typer.Option(help="Write a table (CSV) of every case: label, probability and call of each arm.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Did it help my hospital? Its own cases under four models, with intervals. PRIVATE: it names cases and stays at the site.

    probe is a head on the frozen model, alone what this site trained without the others, global the federated model, dual the
    federated model with this site's local part. While the federation runs it says what is missing until the end.

    Example: site-agent report --state state/ --html report.html

    Example: site-agent report --state state/ --cases cases.csv --json
    """
    from shared.canonical import write_atomically
    from shared.errors import InputError
    from site_agent.report import facts, page
    from site_agent.state import PRIVATE

    found = facts.gather(state)
    scores = facts.cases(state) if cases is not None else None
    try:
        if html is not None:
            write_atomically(html, page.page(found).encode(), PRIVATE)
        if cases is not None and scores is not None:
            facts.write_cases(scores, cases)
    except OSError as error:
        raise InputError(f"cannot write {html or cases}: {error.strerror}; name another file") from error
    if as_json:
        print(json.dumps(found, allow_nan=False))
        return
    _print(found)
    for path in filter(None, (html, cases)):
        print(f"wrote {path}. Private: do not send it anywhere")


def _print(facts: Facts) -> None:
    site = f"{facts['site']} in " if "site" in facts else ""
    print(f"PRIVATE: {facts['private']}")
    print(f"{site}{facts['federation']}: {facts['headline']}")
    for line in (*facts["missing"], facts["answer"]):
        if line:
            print(f"\n{_wrapped(line)}")
    if not facts["compared"]:
        _print_so_far(facts)
        return
    print()
    _print_arms(facts["compared"])
    if cautions := facts["cautions"][:-1]:
        print("\n" + "\n".join(map(_wrapped, cautions)))


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH)


def _print_so_far(facts: Facts) -> None:
    from site_agent.report.words import score

    updates = facts["rounds_here"]
    sent = sum(one["update"] == "accepted" for one in updates)
    print(f"\n{len(updates)} of {facts['rounds']} rounds trained here, {sent} updates accepted")
    if facts["history"]:
        last = facts["history"][-1]
        figures = last["validation"]
        print(
            f"version {last['version']} on {figures['n']} validation cases: AUC {score(figures['auc'])}, balanced accuracy "
            f"{score(figures['at_validation']['balanced_accuracy'])}"
        )


def _print_arms(compared: Facts) -> None:
    from site_agent.report.words import between, score, signed

    own = compared["at"] == "threshold"
    point = "at_threshold" if own else "at_half"
    print(
        f"{'arm':<8}{'AUC':>6} {'95 % interval':<15}{'BA':>6} {'95 % interval':<15}{'sens.':>7}{'spec.':>9}{'threshold':>11}"
    )
    for arm, found in compared["arms"].items():
        cells = f"{arm:<8}"
        for one in (found["auc"], found[point]["balanced_accuracy"]):
            cells += f"{score(one['value']) if one else '-':>6} {between(one):<15}"
        for name, width in (("sensitivity", 7), ("specificity", 9)):
            one = found[point][name]
            cells += f"{'{right}/{of}'.format(**one) if one else '-':>{width}}"
        print(f"{cells}{found[point].get('threshold', 0.5):>11.3f}")
    for one in compared["differences"]:
        told = [
            f"{title} {signed(of['value'])} ({signed(of['low'])} to {signed(of['high'])})"
            for title, of in (("AUC", one["figures"]["auc"]), ("BA", one["figures"]["balanced_accuracy"]))
            if of
        ]
        print(f"{one['first']} - {one['second']:<6} {', '.join(told) or 'nothing to compare'}")
    changes = compared["changes"]
    print(
        f"calls against alone: {changes['now_right']} turned right, {changes['now_wrong']} turned wrong, "
        f"{changes['both_right']} right and {changes['both_wrong']} wrong under both"
    )
