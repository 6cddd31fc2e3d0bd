"""What a person at a terminal sees of an agent; without a terminal the JSON log lines say the same."""

import sys
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from shared.contract import Contract
from shared.recipe import factor_of
from site_agent.client import Joined, Task
from site_agent.config import SiteConfig
from site_agent.egress import Update


class View(Protocol):
    """Everything the loop has to say to a person."""

    def joined(self, joined: Joined, config: SiteConfig) -> None: ...
    def task(self, task: Task) -> None: ...
    def cached(self, done: int, of: int) -> None: ...
    def step(self, step: int, steps: int) -> None: ...
    def held(self, update: Update, state: Path) -> None: ...
    def uploaded(self, round_number: int, size: int) -> None: ...
    def evaluated(self, version: int, figures: dict[str, Any]) -> None: ...
    def comparing(self) -> None: ...
    def finished(self, report: dict[str, Any]) -> None: ...
    def warned(self, text: str) -> None: ...
    def close(self) -> None: ...


class Silent:
    """For pipes and services: the log has it all."""

    def joined(self, joined: Joined, config: SiteConfig) -> None: ...
    def task(self, task: Task) -> None: ...
    def cached(self, done: int, of: int) -> None: ...
    def step(self, step: int, steps: int) -> None: ...
    def held(self, update: Update, state: Path) -> None: ...
    def uploaded(self, round_number: int, size: int) -> None: ...
    def evaluated(self, version: int, figures: dict[str, Any]) -> None: ...
    def comparing(self) -> None: ...
    def finished(self, report: dict[str, Any]) -> None: ...
    def warned(self, text: str) -> None: ...
    def close(self) -> None: ...


WORDS = {
    "TRAIN": "training",
    "WAIT": "waiting for the other sites",
    "PAUSED": "paused by the coordinator",
    "ABANDON": "round is over, asking again",
    "FINISHED": "federation finished",
}


class Terminal:
    """A first screen - who I am, whom I talk to, what never leaves - and one bar for the work at hand."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._waiting = "joined"
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._bar.start()
        self._task: TaskID = self._bar.add_task("starting", total=None)

    def joined(self, joined: Joined, config: SiteConfig) -> None:
        contract, policy = joined.contract, joined.contract.policy
        self._console.print(
            f"[bold]{joined.site}[/bold] in federation [bold]{contract.federation}[/bold] at {config.aggregator}"
            f" ({'TLS, both ends certified' if config.tls else 'PLAIN TEXT, loopback only'})\n"
            f"  leaves     {leaves(contract)} a round; figures on validation cases\n"
            f"  never      {', '.join(stays(contract))}\n"
            f"  until      {policy.rounds} rounds are closed; {joined.training_patients} patients train here\n"
            f"  contract   {contract.sha256[:16]}   recipe {contract.recipe.name}"
        )

    def cached(self, done: int, of: int) -> None:
        if done < of:
            words = f"{self._waiting}; frozen activations {done} of {of}"
            self._bar.update(self._task, description=words, total=of, completed=done)
        else:
            self._bar.update(self._task, description=self._waiting, total=None, completed=0)

    def task(self, task: Task) -> None:
        words = WORDS.get(task.instruction, task.instruction.lower())
        self._waiting = f"round {task.round}: {words}"
        self._bar.update(self._task, description=self._waiting, total=None, completed=0)

    def step(self, step: int, steps: int) -> None:
        self._bar.update(self._task, total=steps, completed=step)

    def held(self, update: Update, state: Path) -> None:
        facts = update.facts
        self._console.print(
            f"round {facts.round}: an update of {len(update.payload) / 1000:.1f} kB waits for you, digest {update.digest[:12]}\n"
            f"  look       site-agent release --state {state} --show\n"
            f"  let it go  site-agent release --state {state}        (or keep it: --withhold)",
            markup=False,
        )
        self._bar.update(self._task, description=f"round {facts.round}: waiting for release", total=None)

    def uploaded(self, round_number: int, size: int) -> None:
        self._console.print(f"round {round_number}: {size / 1000:.1f} kB sent and accepted")

    def evaluated(self, version: int, figures: dict[str, Any]) -> None:
        accuracy = figures["at_validation"]["balanced_accuracy"]
        self._console.print(
            f"version {version}: AUC {figures['auc']:.3f}, balanced accuracy {accuracy:.3f} "
            f"on {figures['n']} validation cases"
        )

    def comparing(self) -> None:
        self._bar.update(self._task, description="what did federation bring? training alone", total=None)

    def finished(self, report: dict[str, Any]) -> None:
        self._bar.stop()
        for arm in ("probe", "alone", "global", "dual"):
            figures = report["arms"][arm]
            test = figures.get("test") or figures.get("validation")
            if test and test["auc"] is not None:
                self._console.print(
                    f"  {arm:<7} AUC {test['auc']:.3f}   balanced accuracy "
                    f"{test['at_half']['balanced_accuracy']:.3f} at 0.5, "
                    f"{test['at_validation']['balanced_accuracy']:.3f} at the site's threshold   ({test['n']} cases)"
                )

    def warned(self, text: str) -> None:
        self._console.print(text, style="yellow", markup=False)

    def close(self) -> None:
        self._bar.stop()


def leaves(contract: Contract) -> str:
    """Say what an update changes, and how large it is; both, where rounds take turns."""
    recipe, metadata = contract.recipe, contract.manifest.metadata
    head = {"global": ["head"], "global+local-bias": ["head weight"], "local": [], "global+local": ["head"]}
    more = [*head[metadata.head_policy], *["weights of the base model"] * bool(metadata.dense)]
    turns = []
    for number in (1, 2):
        layout = recipe.upload_layout(contract.manifest, number, contract.policy.invited)
        factors = sorted({factor for spec in layout.tensors if (factor := factor_of(spec.name))})
        parts = ", ".join([*factors, *more])
        size = f"{'' if layout.fixed else 'at most '}{layout.size / 1000:.1f} kB"
        turns.append(f"change of {layout.parameters:,} numbers of the global part ({parts}), {size}")
    return " or ".join(dict.fromkeys(turns))


def stays(contract: Contract) -> list[str]:
    """Name what never leaves a site."""
    recipe, policy = contract.recipe, contract.manifest.metadata.head_policy
    named = ["images", "labels", "frozen activations"] + ["local adapter"] * (recipe.rank_local > 0)
    named += [f"the global part's {factor}" for factor in sorted(recipe.trained(1) - recipe.shared(1))]
    named += ["weights of the parts"] * (recipe.gate or recipe.method.fused)
    heads = {"global": [], "global+local-bias": ["head bias"], "local": ["head"], "global+local": ["a head of its own"]}
    return named + heads[policy]


def for_stream() -> View:
    """Return the view that fits standard error."""
    return Terminal(Console(stderr=True)) if sys.stderr.isatty() else Silent()
