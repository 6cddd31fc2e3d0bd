"""The table at the end of a demo, at most 100 columns wide."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.demo_progress import score
from experiments.demo_summary import ARMS

Facts = Mapping[str, Any]

MEANING = {
    "probe": "frozen backbone, head fitted at the site",
    "alone": "the site's own dual LoRA, never federated, same number of steps",
    "global": "the federated model without the site's local part",
    "dual": "the federated model with it",
}


def show(summary: Facts, console: Console) -> None:
    """Print results, communication and time."""
    console.print()
    console.print(results(summary))
    for arm, meaning in MEANING.items():
        console.print(f"  [bold]{arm:<7}[/bold]{meaning}", highlight=False)
    console.print(
        "  BA: balanced accuracy. The site's threshold comes from its own validation cases, shrunk towards 0.5 where they\n"
        "  are few. worst: the lowest of each figure over the sites. SYNTHETIC: no statement about patients.",
        highlight=False,
    )
    if reference := summary.get("reference"):
        mean = reference["centralised"]["mean"]
        console.print(
            f"  for comparison, one model on all cases pooled: AUC {score(mean['auc'])}, BA {score(_ba(mean, 'at_half'))} at 0.5, "
            f"{score(_ba(mean, 'at_validation'))} at its validation threshold",
            highlight=False,
        )
    console.print()
    for line in [*communication(summary), *time_lines(summary)]:
        console.print(line, highlight=False, soft_wrap=True)


def results(summary: Facts) -> Table:
    """Every site and arm, then mean and worst."""
    table = Table(
        title=f"[bold reverse] SYNTHETIC [/] held-out cases, {summary['rounds']} rounds, seed {summary['seed']}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    table.add_column("site")
    table.add_column("arm")
    for name in ("cases", "AUC", "BA at 0.5", "sens.", "spec.", "BA at site's", "sens.", "spec.", "threshold"):
        table.add_column(name, justify="right")
    groups = {name: site["test"] for name, site in summary["sites"].items()}
    groups |= {"mean": summary["mean"], "worst": summary["worst_site"]}
    for name, arms in groups.items():
        for arm in ARMS:
            figures = arms[arm]
            own = figures["at_validation"]
            table.add_row(
                f"[bold]{name}[/bold]" if arm == ARMS[0] else "",
                arm,
                str(figures.get("n", "")),
                score(figures["auc"]),
                *_rates(figures["at_half"]),
                *_rates(own),
                score(own["threshold"]) if "threshold" in own else "",
                style="bold" if arm == "dual" else "",
                end_section=arm == ARMS[-1],
            )
    return table


def _rates(point: Facts) -> list[str]:
    return [score(point[name]) for name in ("balanced_accuracy", "sensitivity", "specificity")]


def _ba(figures: Facts, point: str) -> float | None:
    value: float | None = figures[point]["balanced_accuracy"]
    return value


def communication(summary: Facts) -> list[str]:
    """What a round costs a site in bytes, against sending the full model."""
    cost, adapter = summary["communication"], summary["adapter"]
    each, total = cost["per_site_and_round"], cost["total"]
    return [
        f"communication  {size(each['bytes_up'])} up and {size(each['bytes_down'])} down per site and round, "
        f"{size(total['bytes'])} in all (messages of every kind)",
        f"               the full model is {size(cost['full_model_bytes'])}: sending it both ways each round would be "
        f"{cost['reduction']:.0f} times as much",
        f"               {cost['calls_agreed']} of {cost['calls_compared']} calls have the same bytes in the logs of both sides",
        f"adapter        {adapter['parameters']:,} numbers, {size(adapter['bytes'])}, version {adapter['version']}, "
        f"digest {adapter['digest'][:16]}; {summary['verified_rounds']} rounds recomputed to the same bytes",
    ]


def time_lines(summary: Facts) -> list[str]:
    """Seconds by phase, and what the agents did with theirs."""
    seconds = summary["seconds"]
    phases = [f"{name} {phase['wall']:.1f}" for name, phase in seconds["phases"].items()]
    lines = [f"time           {seconds['total']:.1f} s, {seconds['cpu']:.1f} CPU s;  seconds by phase (some overlap):"]
    lines.append("               " + ", ".join(phases))
    for name, own in seconds["sites"].items():
        parts = [f"{phase} {value:.1f}" for phase, value in own.items() if phase not in ("cpu", "fetching", "uploading")]
        lines.append(f"  {name:<13}" + ", ".join(parts) + f"  ({own['cpu']:.1f} CPU s)")
    return lines


def size(count: float) -> str:
    """Bytes for people, decimal units."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.{1 if count < 100 * factor else 0}f} {unit}"
    return f"{count:.0f} B"
