"""What a person sees of an agent on its standard error: a screen with a bar; plain lines where that is no terminal; nothing where
the JSON lines of the log go there, which say the same."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from shared.contract import Contract
from shared.recipe import factor_of
from site_agent.client import Joined, Task
from site_agent.config import SiteConfig
from site_agent.egress import Update


class View:
    """Everything the loop has to say to a person; whoever does not say a thing leaves it out."""

    def joined(self, joined: Joined, config: SiteConfig) -> None: ...
    def task(self, task: Task) -> None: ...
    def cached(self, done: int, of: int) -> None: ...
    def step(self, step: int, steps: int) -> None: ...
    def held(self, update: Update, state: Path) -> None: ...
    def uploaded(self, round_number: int, size: int) -> None: ...
    def evaluated(self, version: int, figures: dict[str, Any]) -> None: ...
    def comparing(self) -> None: ...
    def finished(self, report: dict[str, Any], state: Path, *, stays: bool) -> None: ...
    def warned(self, text: str) -> None: ...
    def close(self) -> None: ...


class Silent(View):
    """Where standard error is the log: that has it all."""


WORDS = {
    "TRAIN": "training",
    "WAIT": "waiting for the other sites",
    "PAUSED": "paused by the coordinator",
    "ABANDON": "round is over, asking again",
    "FINISHED": "federation finished",
}


class Lines(View):
    """Plain lines, for a service whose log is a file: who it is, what it waits for, and what a person should look at."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._doing = ""

    def joined(self, joined: Joined, config: SiteConfig) -> None:
        self._say(first_screen(joined, config))

    def task(self, task: Task) -> None:
        words = (
            "asked to train" if task.instruction == "TRAIN" else WORDS.get(task.instruction, task.instruction.lower())
        )
        doing = f"round {task.round}: {words}"
        if doing != self._doing:
            self._doing = doing
            self._say(doing)

    def held(self, update: Update, state: Path) -> None:
        self._say(waits_for_a_person(update, state))

    def uploaded(self, round_number: int, size: int) -> None:
        self._say(sent(round_number, size))

    def evaluated(self, version: int, figures: dict[str, Any]) -> None:
        self._say(judged(version, figures))

    def comparing(self) -> None:
        self._say("all rounds are closed; comparing with training alone, which takes as long as this site's rounds did")

    def finished(self, report: dict[str, Any], state: Path, *, stays: bool) -> None:
        self._say("\n".join(last_screen(report, state, stays)))

    def warned(self, text: str) -> None:
        self._say(f"warning: {text}")

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # whoever read it is gone: nothing stops for that
            print(text, file=self._stream, flush=True)


class Terminal(View):
    """Lines above one bar for the work at hand."""

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
        first, *rest = first_screen(joined, config).split("\n")
        self._console.print(first, style="bold", markup=False)
        self._console.print("\n".join(rest), markup=False)

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
        self._console.print(waits_for_a_person(update, state), markup=False)
        self._bar.update(self._task, description=f"round {update.facts.round}: waiting for release", total=None)

    def uploaded(self, round_number: int, size: int) -> None:
        self._console.print(sent(round_number, size), markup=False)

    def evaluated(self, version: int, figures: dict[str, Any]) -> None:
        self._console.print(judged(version, figures), markup=False)

    def comparing(self) -> None:
        self._bar.update(self._task, description="what did federation bring? training alone", total=None)

    def finished(self, report: dict[str, Any], state: Path, *, stays: bool) -> None:
        self._bar.stop()
        for line in last_screen(report, state, stays):
            self._console.print(line, markup=False)

    def warned(self, text: str) -> None:
        self._console.print(text, style="yellow", markup=False)

    def close(self) -> None:
        self._bar.stop()


def first_screen(joined: Joined, config: SiteConfig) -> str:
    """Say who this is, whom it talks to, what leaves, what never does, and until when."""
    contract, policy = joined.contract, joined.contract.policy
    secured = "TLS, both ends certified" if config.tls else "PLAIN TEXT, loopback only"
    told = "figures on validation cases" + (
        "; at the end of four models on held-out ones" if config.agreed.arms else ""
    )
    return (
        f"{joined.site} in federation {contract.federation} at {config.aggregator} ({secured})\n"
        f"  leaves     {leaves(contract)} a round; {told}\n"
        f"  never      {', '.join(stays(contract))}\n"
        f"  until      {policy.rounds} rounds are closed; {joined.training_patients} patients train here\n"
        f"  contract   {contract.sha256[:16]}   recipe {contract.recipe.name}"
    )


def waits_for_a_person(update: Update, state: Path) -> str:
    """Say that an update waits, and by which commands somebody looks at it and decides."""
    facts = update.facts
    return (
        f"round {facts.round}: an update of {len(update.payload) / 1000:.1f} kB waits for you, digest {update.digest[:12]}\n"
        f"  look       site-agent release --state {state} --show\n"
        f"  let it go  site-agent release --state {state}        (or keep it: --withhold)"
    )


def sent(round_number: int, size: int) -> str:
    """Say that an update counts."""
    return f"round {round_number}: {size / 1000:.1f} kB sent and accepted"


def judged(version: int, figures: dict[str, Any]) -> str:
    """Say how a version does here."""
    accuracy = figures["at_validation"]["balanced_accuracy"]
    return f"version {version}: AUC {figures['auc']:.3f}, balanced accuracy {accuracy:.3f} on {figures['n']} validation cases"


def last_screen(report: dict[str, Any], state: Path, stays: bool) -> Iterator[str]:
    """Say what the federation brought here, and what comes now."""
    for arm in ("probe", "alone", "global", "dual"):
        figures = report["arms"][arm]
        test = figures.get("test") or figures.get("validation")
        if test and test["auc"] is not None:
            yield (
                f"  {arm:<7} AUC {test['auc']:.3f}   balanced accuracy "
                f"{test['at_half']['balanced_accuracy']:.3f} at 0.5, "
                f"{test['at_validation']['balanced_accuracy']:.3f} at the site's threshold   ({test['n']} cases)"
            )
    yield f"the federation is finished. Did it help this hospital? site-agent report --state {state}"
    if stays:
        yield "this agent stays, in case the coordinator rolls back; Ctrl-C (or SIGTERM) ends it, and nothing is lost"


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


def for_stream(log_is_a_file: bool) -> View:
    """Return the view that fits standard error; what is no terminal takes the log where that is not a file."""
    if sys.stderr.isatty():
        return Terminal(Console(stderr=True))
    return Lines(sys.stderr) if log_is_a_file else Silent()
