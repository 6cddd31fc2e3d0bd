"""`python -m experiments.reference`: one model trained on all sites' cases pooled, as no federation could. For comparison only."""

from pathlib import Path
from typing import Annotated

import typer

HELP = """Train the centralised reference on prepared cohorts and print its figures by site as JSON.

Example:

  python -m experiments.reference --cohort runs/demo/prepared --weights site_agent/models/demo --site siemens --site ge
"""


def main(
    cohort: Annotated[Path, typer.Option(help="Folder with one prepared cohort per site.")],
    weights: Annotated[Path, typer.Option(help="Backbone folder or file.")],
    site: Annotated[list[str], typer.Option(help="Site, repeat.")],
    rounds: Annotated[int, typer.Option(min=1, help="As many as the federation has.")] = 8,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Recipe parameter, key=value. Repeat.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the adapter and the order of cases.")] = 0,
) -> None:
    import sys

    import torch

    from aggregator import setup
    from experiments import simulation
    from shared import canonical, recipe

    torch.set_num_threads(1)
    parameters = setup.parse_parameters(set_ or [])
    setting = simulation.Setting(
        cohort=cohort, weights=weights, seed=seed, rounds=rounds, recipe=recipe.make("med-duallora", parameters)
    )
    sys.stdout.buffer.write(canonical.canonical_json(simulation.centralise(setting, site)))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=HELP)(main)
    app()
