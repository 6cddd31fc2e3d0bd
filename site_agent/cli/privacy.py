"""What this site has spent of its patients' privacy."""

import json
from pathlib import Path
from typing import Annotated

import typer

privacy_app = typer.Typer(
    help="Differential privacy: what was spent of the patients', in a hash-chained journal, written before any training.\n\n"
    "Example: site-agent privacy show --state state/",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(privacy_app, name="privacy")


@privacy_app.command()
def show(
    state: Annotated[Path, typer.Option("--state", help="The agent's state folder.")],
    head: Annotated[str, typer.Option(help="A digest noted earlier: it must have been the last line's once.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print facts as JSON.")] = False,
) -> None:
    """Every release that was paid for, and what all of them cost a patient together. Nothing of it is sent.

    Epsilon holds for a patient who was there in all of them (neighbours: one patient more or less), at the last contract's delta.

    Example: site-agent privacy show --state state/
    """
    from shared import journal
    from site_agent import ledger
    from site_agent.privacy import accountant, budget, debits

    chain = debits.read(state, journal.check_noted(head) if head else "")
    path = state / ledger.LEDGER
    without = budget.without_noise(chain, ledger.updates(ledger.read(path))) if path.exists() else None
    last = chain.entries[-1].facts
    spent = accountant.epsilon([debits.release_of(one.facts) for one in chain.entries], last["delta"])
    if as_json:
        lines = [{"n": one.n, "at": one.at, "event": one.event, **one.facts} for one in chain.entries]
        sums = {"epsilon": spent.pld, "epsilon_rdp": spent.rdp, "delta": last["delta"], "budget": last["budget"]}
        sums["updates_without_noise"] = without
        print(json.dumps({"releases": lines, "spent": sums, "head": chain.head.digest}))
        return
    print(f"{'line':>5}  {'federation':<16}{'round':>6}{'steps':>7}{'q':>9}{'noise':>8}{'epsilon then':>14}  key")
    for one in chain.entries:
        facts = one.facts
        print(
            f"{one.n:>5}  {facts['federation'][:15]:<16}{facts['round']:>6}{facts['steps']:>7}{facts['q']:>9.4f}"
            f"{facts['sigma']:>8.3g}{facts['epsilon']:>14.4f}  {facts['key'][:12]}"
        )
    print(f"{len(chain.entries)} lines hold together; head {chain.head.digest}")
    if without is None:
        print(f"there is no {path.name} beside it: what left without noise is not known")
    elif without:
        print(budget.in_no_budget(without))
    print(f"spent: epsilon {spent.pld:.4f} at delta {last['delta']:g} (by RDP {spent.rdp:.4f})")
    print(
        f"budget: epsilon {last['budget']:g} by the last contract; {max(0.0, last['budget'] - spent.pld):.4f} is left"
    )
