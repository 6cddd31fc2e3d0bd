"""What leaves this site: the ledger of what did, what waits for a person, and what would."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from shared.journal import Chain
    from site_agent.ledger import Totals

Folder = Annotated[Path, typer.Option("--state", help="The agent's state folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]
ledger_app = typer.Typer(
    help="What left this site: a hash-chained ledger, written before anything leaves.\n\n"
    "Example: site-agent ledger verify --state state/",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(ledger_app, name="ledger")
    app.command("release")(release)
    app.command("dry-run")(dry_run)
    app.command("accept")(accept)


@ledger_app.command()
def show(state: Folder, as_json: AsJson = False) -> None:
    """Every call that said something of this site's data: when, which round, how many bytes, what digest.

    Example: site-agent ledger show --state state/
    """
    from site_agent import ledger

    chain = ledger.read(state / ledger.LEDGER)
    if as_json:
        print(json.dumps([{"n": one.n, "at": one.at, "event": one.event, **one.facts} for one in chain.entries]))
        return
    for one in chain.entries:
        print(f"{one.n:>6}  {_moment(one.at)}  {_entry(one.event, one.facts)}")
    _print_totals(chain, ledger.totals(chain))


@ledger_app.command()
def verify(
    state: Folder,
    head: Annotated[str, typer.Option(help="A digest noted earlier: it must have been the last line's once.")] = "",
    log: Annotated[
        Path | None, typer.Option(help="The agent's log of the same time: its totals must be the same.")
    ] = None,
) -> None:
    """Check that no line was changed, left out or put in. Exit code 1 and the finding if one was.

    Lines cut off at the end, and a ledger written anew, are seen with --head: note the last digest elsewhere from time to time.

    Example: site-agent ledger verify --state state/ --head 3f0c9a8e41d2 --log agent.jsonl
    """
    from shared import journal
    from shared.errors import InputError
    from site_agent import ledger

    noted = journal.check_noted(head) if head else ""
    try:
        chain = ledger.read(state / ledger.LEDGER, noted)
    except InputError as error:
        print(f"DIFFERS: {error}")
        raise typer.Exit(1) from error
    totals = ledger.totals(chain)
    differing = [] if log is None else ledger.differences(totals, ledger.logged(log))
    for line in differing:
        print(f"DIFFERS: {line}")
    _print_totals(chain, totals)
    if differing:
        raise typer.Exit(1)


def _print_totals(chain: "Chain", totals: "Totals") -> None:
    print(f"{len(chain.entries)} lines hold together; head {chain.head.digest}")
    print(f"{'call':<18}{'calls':>9}{'bytes':>16}{'of tensors':>16}")
    for rpc, sums in totals.by_rpc.items():
        print(f"{rpc:<18}{sums.calls:>9,}{sums.bytes:>16,}{sums.payload_bytes:>16,}")
    if totals.unfinished:
        most = sum(totals.unfinished.values())
        print(
            f"and {len(totals.unfinished)} calls that ended with the agent: at most {most:,} bytes of tensors left with them"
        )


def _entry(event: str, facts: Any) -> str:
    if event == "leaving":
        of = f", {len(facts['tensors'])} tensors, digest {facts['digest'][:12]}" if facts["tensors"] else ""
        said = ", ".join(f"{name} {_short(value)}" for name, value in facts["says"].items())
        return f"{facts['rpc']:<17} round {facts['round']}: {facts['payload_bytes']:,} bytes of tensors{of}" + (
            f"; says {said}" if said else ""
        )
    if event == "left":
        return f"  line {facts['line']} ended: {facts['code']}, {facts['bytes']:,} bytes"
    if event == "control":
        calls = ", ".join(f"{sums['calls']} x {rpc} ({sums['bytes']:,} bytes)" for rpc, sums in facts["calls"].items())
        return f"  without data: {calls}"
    return f"{event}: " + ", ".join(f"{name} {_fact(name, value)}" for name, value in facts.items())


def _fact(name: str, value: Any) -> str:
    return _moment(value) if name.endswith("_at") and isinstance(value, int | float) else _short(value)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name} {_short(inner)}" for name, inner in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return value[:12] if isinstance(value, str) else str(value)


def _moment(seconds: float) -> str:
    import time

    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def release(
    state: Folder,
    show_only: Annotated[bool, typer.Option("--show", help="Show what waits, and decide nothing.")] = False,
    withhold: Annotated[bool, typer.Option("--withhold", help="Keep it: it never leaves.")] = False,
    digest_: Annotated[
        str, typer.Option("--digest", help="The update that was reviewed: 12 digits or more, as --show says; no other.")
    ] = "",
) -> None:
    """Let the update leave that waits for a person (egress = "manual"), or keep it. A decision stands.

    Example: site-agent release --state state/ --show
    Example: site-agent release --state state/ --digest 9b1de0c27a55
    """
    import shlex

    from shared.errors import InputError
    from site_agent import releases

    found = releases.waiting(state) if not digest_ else releases.reviewed(state, digest_)
    if not found:
        raise InputError(f"no update waits in {state}; the agent says when one does")
    for record, digest in found:
        facts = record.facts
        size = (state / "rounds" / f"{facts.round:04d}" / "delta.bin").stat().st_size
        print(f"round {facts.round}: {size:,} bytes, digest {digest}, codec {facts.codec}")
        print(f"  says: {facts.training_patients} training patients, {_short(facts.metrics) or 'no figures'}")
        for spec in record.layout.tensors:
            print(f"  {spec}")
        if show_only:
            command = (
                f"site-agent release --state {shlex.quote(str(state))} --digest {digest[: releases.FEWEST_DIGITS]}"
            )
            print(f"to let this one leave, and no other: {command}\nor to keep it: {command} --withhold")
        else:
            decision = releases.decide(state, digest, leaves=not withhold)
            print(f"{'withheld' if withhold else 'released'} by {decision.by}")


def accept(
    state: Folder,
    show_only: Annotated[bool, typer.Option("--show", help="Show what differs, and agree to nothing.")] = False,
) -> None:
    """Agree to the changed contract that the aggregator offers. What belongs to the one before is moved aside, not deleted.

    Example: site-agent accept --state state/ --show
    Example: site-agent accept --state state/
    """
    from site_agent import people
    from site_agent import state as states

    offered = state / states.OFFERED
    at = offered.stat().st_mtime if offered.exists() else 0.0  # the agent writes it whenever it is offered
    for line in states.accept(state, people.account(), decided=not show_only):
        print(line)
    said = f"the contract that the aggregator offered last on {_moment(at)}"
    if show_only:
        print(f"this is of {said}; nothing is accepted")
        return
    print(
        f"accepted: {said}, and no other. If the aggregator still offers it, the agent takes part within a minute, with a new "
        "local adapter; else it says what is offered now, and waits"
    )


def dry_run(
    config: Annotated[Path | None, typer.Option(help="site.toml: cohort, weights and the rest.")] = None,
    contract: Annotated[
        Path | None, typer.Option(help="What was agreed to: a state folder's contract.json, or the coordinator's file.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="Version 0, where the contract names no seed.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write everything to that would leave.")] = Path("dry-run"),
    cohort: Annotated[Path | None, typer.Option(help="Prepared cohort, if not in site.toml.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Backbone, if not in site.toml.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train one round here, send nothing, and show and write down exactly what would leave.

    Example: site-agent dry-run --config site.toml --contract contract.json --out dry-run/
    """
    from shared.contract import Contract
    from shared.errors import InputError
    from site_agent import config as site_config
    from site_agent import dry_run as dry

    overrides = {"cohort": cohort, "weights": weights}
    if config is None:
        overrides |= {"aggregator": "127.0.0.1:1", "plain_site": "this-site"}  # type: ignore[dict-item]
    settings = site_config.load(config, overrides)
    source = contract or settings.state / "contract.json"
    try:
        agreed = Contract.from_bytes(source.read_bytes())
    except OSError as error:
        raise InputError(
            f"cannot read the contract {source}: {error.strerror}; get it with `aggregator contract --out contract.json`"
        ) from error
    found = dry.run(settings, agreed, adapter)
    found.write(out)
    if as_json:
        print(json.dumps(found.fields))
        return
    for call, values in found.fields.items():
        print(call)
        for name, value in values.items():
            if name == "tensors":
                for tensor, facts in value.items():
                    print(f"  {tensor}  {facts['type']} {facts['shape']}")
            else:
                print(f"  {name:<18} {json.dumps(value)}")
    print(
        f"nothing was sent; all of it is in {out}: {dry.WORDS}, {dry.PAYLOAD} (the bytes), {dry.NUMBERS} (the numbers)"
    )
