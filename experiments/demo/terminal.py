"""The table at the end of a demo, at most 100 columns wide."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from experiments.demo.progress import score
from experiments.demo.summaries import ARMS, RATES

Facts = Mapping[str, Any]

MEANING = {
    "probe": "frozen backbone, head fitted at the site",
    "alone": "the site's own dual LoRA, never federated, same number of steps",
    "global": "the federated model without the site's local part",
    "dual": "the federated model with it",
}

AGENT_PHASES = ("activations", "training", "evaluating", "waiting", "comparing", "other")


def show(summary: Facts, console: Console) -> None:
    """Print results, communication and time."""
    for line in lines(summary):
        console.print(line, highlight=False, soft_wrap=True)


def lines(summary: Facts) -> list[str]:
    """Everything, with rich markup."""
    result = [
        "",
        f"[bold reverse] SYNTHETIC [/] held-out cases after {summary['rounds']} rounds, seed {summary['seed']}",
        "",
    ]
    result += results(summary)
    result += [f"  {arm:<7} {meaning}" for arm, meaning in MEANING.items()]
    result += [
        "  BA is balanced accuracy, worst the lowest of each figure over the sites. Each site chose its",
        "  threshold on its own validation cases, shrunk towards 0.5 where they are few.",
    ]
    if reference := summary.get("reference"):
        mean = reference["centralised"]["mean"]
        result.append(
            f"  one model on all cases pooled: AUC {score(mean['auc'])}, BA {score(_ba(mean, 'at_half'))} "
            f"at 0.5, {score(_ba(mean, 'at_validation'))} at its own threshold"
        )
    return [*result, "", *communication(summary), "", *time_lines(summary)]


def results(summary: Facts) -> list[str]:
    """Every site and arm, then mean and worst."""
    rates = f"{'BA':>7}{'sens.':>7}{'spec.':>7}"
    head = f"{'site':<10}{'arm':<8}{'cases':>6}{'AUC':>8}  {rates}  {rates}{'at':>7}"
    groups = {name: site["test"] for name, site in summary["sites"].items()}
    groups |= {"mean": summary["mean"], "worst": summary["worst_site"]}
    result = [f"{'threshold 0.5':>52}{'threshold of the site':>30}", f"[bold]{head}[/bold]", "─" * len(head)]
    for name, arms in groups.items():
        for arm in ARMS:
            figures = arms[arm]
            own = figures["at_validation"]
            at = score(own["threshold"]) if "threshold" in own else ""
            row = (
                f"{name if arm == ARMS[0] else '':<10}{arm:<8}{figures.get('n', ''):>6}{score(figures['auc']):>8}  "
                f"{_rates(figures['at_half'])}  {_rates(own)}{at:>7}"
            )
            result.append(f"[bold]{row}[/bold]" if arm == "dual" else row)
        result.append("")
    return result


def _rates(point: Facts) -> str:
    return "".join(f"{score(point[name]):>7}" for name in RATES)


def _ba(figures: Facts, point: str) -> float | None:
    value: float | None = figures[point]["balanced_accuracy"]
    return value


def communication(summary: Facts) -> list[str]:
    """What a round costs a site in bytes, against sending the full model."""
    cost, adapter = summary["communication"], summary["adapter"]
    each, total = cost["per_site_and_round"], cost["total"]
    return [
        f"[bold]communication[/bold]  {size(each['bytes_up'])} up, {size(each['bytes_down'])} down per site and round; "
        f"{size(total['bytes'])} in all, messages of every kind",
        f"               the full model is {size(cost['full_model_bytes'])}: both ways in each round that is "
        f"{cost['reduction']:.0f} times as much",
        f"               {cost['calls_agreed']} of {cost['calls_compared']} calls have the same bytes in both sides' logs",
        f"[bold]adapter[/bold]        {adapter['parameters']:,} numbers, {size(adapter['update_bytes'])} an update, "
        f"version {adapter['version']}, digest {adapter['digest'][:16]}",
        f"               {summary['verified_rounds']} of {summary['rounds']} rounds recompute to the same bytes",
    ]


def time_lines(summary: Facts) -> list[str]:
    """Seconds by phase, and what the agents did with theirs."""
    seconds = summary["seconds"]
    result = [
        f"[bold]time[/bold]           {seconds['total']:.1f} s, of CPU {seconds['cpu']:.1f} s",
        f"  {'phase':<13}{'s':>6}{'CPU s':>8}",
    ]
    result += [f"  {name:<13}{phase['wall']:>6.1f}{phase['cpu']:>8.1f}" for name, phase in seconds["phases"].items()]
    result += ["", f"  {'agent':<13}{'CPU s':>6}" + "".join(f"{name:>13}" for name in AGENT_PHASES)]
    for name, own in seconds["sites"].items():
        spent = agent_seconds(own).values()
        result.append(f"  {name:<13}{own['cpu']:>6.1f}" + "".join(f"{value:>13.1f}" for value in spent))
    result.append("  other: loading Python and its libraries, sending, ending")
    return result


def agent_seconds(own: Facts) -> dict[str, float]:
    """An agent's seconds by kind; `other` is what its process took beyond those it reports."""
    spent = {phase: own.get(phase, 0.0) for phase in AGENT_PHASES[:-1]}
    spent["other"] = max(0.0, own["wall"] - sum(spent.values()))
    return spent


def size(count: float) -> str:
    """Bytes for people, decimal units."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.{1 if count < 100 * factor else 0}f} {unit}"
    return f"{count:.0f} B"
