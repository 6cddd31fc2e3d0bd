"""What a person sees while the demo runs: a live picture on a terminal, a line per event when piped."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from experiments.demo.progress import FederationProgress, SiteProgress, score

SILENCE_S = 4.0
"""When piped, something is said at least this often."""
REFRESH_S = 0.25


@dataclass
class Step:
    """One phase of the demo as it is shown. `total` 0: how far it is, is not known."""

    name: str
    text: str
    began: float
    done: int = 0
    total: int = 0
    seconds: float | None = None
    cpu_s: float = 0.0


class View(Protocol):
    """Everything the demo has to say to a person while it runs."""

    def begin(self, name: str, text: str) -> None: ...
    def advance(self, name: str, done: int, total: int) -> None: ...
    def end(self, name: str, seconds: float, cpu_s: float) -> None: ...
    def federation(self, progress: FederationProgress) -> None: ...
    def say(self, line: str) -> None: ...
    def poll(self) -> None: ...
    def close(self) -> None: ...


class Lines:
    """For pipes and files: a line per event, and one every few seconds when there is none."""

    def __init__(self, began: float, write: Callable[[str], None]) -> None:
        self._began, self._write = began, write
        self._steps: dict[str, Step] = {}
        self._progress: FederationProgress | None = None
        self._last = time.monotonic()

    def begin(self, name: str, text: str) -> None:
        self._steps[name] = Step(name, text, time.monotonic())
        self.say(f"{name}: {text}")

    def advance(self, name: str, done: int, total: int) -> None:
        self._steps[name].done, self._steps[name].total = done, total

    def end(self, name: str, seconds: float, cpu_s: float) -> None:
        del self._steps[name]
        self.say(f"{name}: done in {seconds:.1f} s ({cpu_s:.1f} CPU s)")

    def federation(self, progress: FederationProgress) -> None:
        self._progress = progress

    def say(self, line: str) -> None:
        self._last = time.monotonic()
        self._write(f"[{self._last - self._began:6.1f} s] {line}")

    def poll(self) -> None:
        if time.monotonic() - self._last >= SILENCE_S:
            self.say("; ".join(map(self._where, self._steps.values())) or "working")

    def _where(self, step: Step) -> str:
        if step.name == "federation" and self._progress:
            return self._progress.brief()
        return f"{step.name}: {step.done} of {step.total}" if step.total else f"{step.name}: still at it"

    def close(self) -> None: ...


class Picture:
    """For a terminal: phases above, sites below, drawn again a few times a second."""

    def __init__(self, console: Console, title: str) -> None:
        self._title = title
        self._steps: dict[str, Step] = {}
        self._progress: FederationProgress | None = None
        self._drawn = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=False, redirect_stderr=False)
        self._live.start()
        self._draw()

    def begin(self, name: str, text: str) -> None:
        self._steps[name] = Step(name, text, time.monotonic())
        self._draw()

    def advance(self, name: str, done: int, total: int) -> None:
        self._steps[name].done, self._steps[name].total = done, total

    def end(self, name: str, seconds: float, cpu_s: float) -> None:
        self._steps[name].seconds, self._steps[name].cpu_s = seconds, cpu_s
        self._draw()

    def federation(self, progress: FederationProgress) -> None:
        self._progress = progress

    def say(self, line: str) -> None: ...

    def poll(self) -> None:
        if time.monotonic() - self._drawn >= REFRESH_S:
            self._draw()

    def close(self) -> None:
        self._draw()
        self._live.stop()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        self._live.update(self._picture(), refresh=True)

    def _picture(self) -> RenderableType:
        parts: list[RenderableType] = [Text.from_markup(self._title), self._phases()]
        if self._progress:
            parts.append(self._sites(self._progress))
        return Group(*parts)

    def _phases(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for step in self._steps.values():
            running = step.seconds is None
            seconds = time.monotonic() - step.began if step.seconds is None else step.seconds
            amount = f"{step.done} of {step.total}" if running and step.total else ""
            table.add_row(
                Text("…" if running else "✓", style="yellow" if running else "green"),
                Text(step.name, style="bold" if running else ""),
                Text(f"{seconds:6.1f} s"),
                Text(" ".join(filter(None, (step.text, amount))), style="" if running else "dim"),
            )
        return table

    def _sites(self, progress: FederationProgress) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_row("", Text("site", "dim"), Text("rounds", "dim"), "", Text("validation AUC", "dim"), "")
        for site in progress.sites.values():
            table.add_row(
                "",
                Text(site.name, style="bold"),
                ProgressBar(total=site.rounds, completed=site.sent, width=16),
                Text(f"{site.sent}/{site.rounds}"),
                Text(_newest(site)),
                Text(site.stage, style="green" if site.stage == "finished" else ""),
            )
        return table


def _newest(site: SiteProgress) -> str:
    if not site.auc:
        return "-"
    version = max(site.auc)
    return f"{score(site.auc[version])} (version {version})"
