"""`python -m experiments.privacy`: accuracy over epsilon on the SYNTHETIC phantom."""

import json
import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from experiments.training import quiet
from shared.errors import InputError

HELP = """Train the private recipe (ffa-lora, mode non-interference) under several budgets, and print accuracy over epsilon.

The noise multiplier is found by the accountant, so that over all rounds no site passes the budget. inf is the same recipe without
noise and without clipping of patients. Finished cells are not run again.

Example: python -m experiments.privacy --out runs/privacy --seeds 5
With what the comparison made already: --cohorts runs/comparison/cohorts --activations runs/comparison/activations

Exit codes: 0 done, 3 wrong input."""

EPSILONS = ["1", "3", "8", "inf"]


def main(
    out: Annotated[Path, typer.Option(help="Folder for cells, privacy.md and privacy.json.")] = Path("runs/privacy"),
    seeds: Annotated[int, typer.Option(min=1, help="Runs, a fresh cohort each.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of every federation.")] = 8,
    epsilon: Annotated[list[str] | None, typer.Option(help="A budget, or inf; repeat. Default: 1 3 8 inf.")] = None,
    cohorts: Annotated[Path | None, typer.Option(help="Where phantom cohorts lie, or are made.")] = None,
    activations: Annotated[Path | None, typer.Option(help="Where frozen activations are kept.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Backbone folder; default: the demo's.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Patients in a step on average.")] = 16,
    local_epochs: Annotated[int, typer.Option(min=1)] = 2,
    rank: Annotated[int, typer.Option(min=1, help="Of both parts.")] = 8,
    lr_global: Annotated[float, typer.Option()] = 5e-3,
    lr_head: Annotated[float, typer.Option()] = 1e-2,
    clip: Annotated[float, typer.Option(help="C, the largest norm of a patient's gradient.")] = 1.0,
    scale: Annotated[float, typer.Option(help="Share of the phantom's cases: below 1 for a trial.")] = 1.0,
    test_cases: Annotated[int, typer.Option(min=2, help="Held-out cases of each vendor.")] = 100,
) -> None:
    import torch

    from experiments.privacy import cells, table
    from experiments.training.phantom import WEIGHTS

    quiet.process()
    torch.set_num_threads(1)
    try:
        budgets = [_budget(text) for text in epsilon or EPSILONS]
        choices = cells.Choices(
            weights=weights or WEIGHTS,
            rounds=rounds,
            local_epochs=local_epochs,
            batch_size=batch_size,
            rank=rank,
            lr_global=lr_global,
            lr_head=lr_head,
            clip=clip,
            scale=scale,
            test_cases=test_cases,
        )
        place = cells.Place(cohorts=cohorts or out / "cohorts", activations=activations or out / "activations")
        done = []
        for number in range(seeds):
            for budget in budgets:
                cell = cells.read(out, choices, number, budget)
                if cell is None:
                    cell = cells.run(choices, place, number, budget)
                    cells.write(out, cell)
                done.append(cell)
                found = {arm: [table.site_mean(cell, arm, one) for one in table.FIGURES] for arm in cells.ARMS}
                figures = "; ".join(f"{arm} AUC {auc:.3f}, BA {ba:.3f}" for arm, (auc, ba) in found.items())
                word = "inf" if budget is None else f"{budget:g}"
                print(
                    f"run {number}, epsilon {word}: sigma {cell['sigma']:.3g}; {figures}; {cell['seconds']:.0f} s",
                    flush=True,
                )
    except InputError as error:
        print(f"privacy: {error}", file=sys.stderr)
        raise typer.Exit(3) from None
    rows = table.rows(done)
    text = table.markdown(rows, choices.settled())
    (out / "privacy.md").write_text(text, encoding="utf-8")
    facts = {"synthetic": True, "choices": choices.settled(), "rows": rows}
    (out / "privacy.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"\n{text}\nwritten: {out / 'privacy.md'}, {out / 'privacy.json'}")


def _budget(text: str) -> float | None:
    """Read a budget; None for inf. Raises InputError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise InputError(f"--epsilon takes a number above 0, or inf, got '{text[:40]}'")
    return None if math.isinf(value) else value


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=HELP)(main)
    app()
