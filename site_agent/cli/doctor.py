"""`site-agent doctor`: can this site take part, and if not, why, and what to do about it."""

import contextlib
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from site_agent.cli import settings

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status as Shown

    from site_agent.config import SiteConfig
    from site_agent.doctor.checks import Result
    from site_agent.doctor.finding import Examined, Status

NOWHERE = {"aggregator": "127.0.0.1:1", "plain_site": "this-site"}
STYLES: "dict[Status, str]" = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red", "SKIP": "dim"}
WORDS_AT = 30
NARROWEST = 40


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    aggregator: settings.Aggregator = None,
    config: settings.Config = None,
    cohort: settings.CohortFolder = None,
    weights: settings.Weights = None,
    weights_size: settings.Size = None,
    state: settings.State = None,
    ca: settings.CA = None,
    certificate: settings.Certificate = None,
    key: settings.Key = None,
    plain_site: settings.PlainSite = None,
    cache: settings.CacheFolder = None,
    cache_mb: settings.CacheMB = None,
    device: settings.Device = None,
    precision: settings.Precision = None,
    threads: settings.Threads = None,
    validation_fold: settings.Fold = None,
    contract: Annotated[
        Path | None, typer.Option(help="The coordinator's contract.json, where the state folder has none.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print facts as JSON; they name no patient.")] = False,
) -> None:
    """Check this site: network, TLS, contract, uplink, machine, data, one training step. Changes nothing, sends no data.

    Without an aggregator the site itself is checked. Exit code 1 if a check failed.

    Example: site-agent doctor --aggregator fed.example.org:443 --config site.toml
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # the checks say it better

    def read(**unless_set: Any) -> "SiteConfig":
        return settings.read(
            config,
            ca,
            certificate,
            key,
            unless_set,
            aggregator=aggregator,
            cohort=cohort,
            weights=weights,
            weights_size=weights_size,
            state=state,
            plain_site=plain_site,
            cache=cache,
            cache_mb=cache_mb,
            device=device,
            precision=precision,
            threads=threads,
            validation_fold=validation_fold,
        )

    found = read(**NOWHERE)
    asked = found.aggregator != NOWHERE["aggregator"]
    if asked:
        found = read()
    from dataclasses import replace

    from site_agent.doctor import enrolling
    from site_agent.doctor.finding import Examined

    with enrolling.files(found.tls) as held:
        looked_at = replace(found, tls=held.tls)
        examined = Examined(looked_at, asked, dict(os.environ), contract, not_enrolled=held.wrong, origin=held.origin)
        code = _examine(examined, as_json)
    if any(thread.name.startswith("doctor-") for thread in threading.enumerate()):
        sys.stdout.flush()
        os._exit(code)  # a check hangs in a call that nothing ends
    raise typer.Exit(code)


def _examine(examined: "Examined", as_json: bool) -> int:
    """Run the checks, show what they find, and return the exit code."""
    import io

    from rich.console import Console

    from shared import logs
    from site_agent.doctor import checks

    logs.configure(terminal=io.StringIO())  # what the parts say to a log is not for this screen
    console = Console(stderr=as_json, highlight=False)
    if not as_json:
        _print_head(console, examined)
    results: list[Result] = []
    with _under_way(console) as status:
        for result in checks.examine(examined, lambda check: status.update(f"{check.title} ...") if status else None):
            results.append(result)
            if not as_json:
                _print(console, result)
    counts = Counter(result.finding.status for result in results)
    code = 1 if counts["FAIL"] else 0
    if as_json:
        print(json.dumps(_jsonable(examined, results, counts, code)))
    else:
        _print_end(console, counts, code)
    return code


@contextlib.contextmanager
def _under_way(console: "Console") -> "Iterator[Shown | None]":
    """Show what is being looked at, on a screen that can."""
    if not console.is_terminal:
        yield None
        return
    with console.status("") as status:
        yield status


def _print_head(console: "Console", examined: "Examined") -> None:
    config = examined.config
    way = "TLS on both ends" if config.tls else "PLAIN TEXT, loopback only"
    whom = f"aggregator {config.aggregator} ({way})" if examined.asked else "this site alone: no --aggregator is given"
    console.print(
        f"site-agent doctor: {whom}\n"
        "  changes nothing; sends nothing of your data: empty calls, and random bytes to measure the line",
        markup=False,
    )


def _print(console: "Console", result: "Result") -> None:
    from rich.text import Text

    finding = result.finding
    line = Text("  ")
    line.append(finding.status, STYLES[finding.status])
    line.append(f"  {result.check.title}".ljust(WORDS_AT - len("  PASS")))
    line.append_text(_wrapped(console, finding.words))
    if finding.remedy:
        line.append("\n" + " " * WORDS_AT)
        line.append_text(_wrapped(console, f"-> {finding.remedy}"))
    if finding.private:
        line.append("\n" + " " * WORDS_AT)
        line.append_text(_wrapped(console, f"private, do not pass on: {finding.private}"))
    console.print(line, soft_wrap=True)


def _wrapped(console: "Console", words: str) -> Any:
    import textwrap

    from rich.text import Text

    width = max(NARROWEST, min(console.width, 132) - WORDS_AT)
    return Text(("\n" + " " * WORDS_AT).join(textwrap.wrap(words, width, break_on_hyphens=False)))


def _print_end(console: "Console", counts: "Counter[Status]", code: int) -> None:
    said = (
        f"{counts['PASS']} passed, {counts['WARN']} warning{'s' * (counts['WARN'] != 1)}, {counts['FAIL']} failed, "
        f"{counts['SKIP']} not tried; exit code {code}"
    )
    console.print(said, style=STYLES["FAIL" if code else "WARN" if counts["WARN"] else "PASS"], markup=False)


def _jsonable(examined: "Examined", results: "list[Result]", counts: "Counter[Status]", code: int) -> dict[str, Any]:
    return {
        "aggregator": examined.config.aggregator if examined.asked else "",
        "checks": [
            {
                "name": result.check.name,
                "title": result.check.title,
                "status": result.finding.status,
                "words": result.finding.words,
                "remedy": result.finding.remedy,
                "facts": dict(result.finding.facts),
                "duration_s": round(result.duration_s, 3),
            }
            for result in results
        ],
        "counts": {status: counts[status] for status in STYLES},
        "exit_code": code,
    }
