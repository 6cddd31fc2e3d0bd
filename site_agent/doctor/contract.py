"""What the federation asks for, against what this site pins and has agreed to: the checks that the agent makes when it joins."""

from collections.abc import Iterable
from pathlib import Path

from shared.contract import Contract
from shared.errors import InputError
from shared.names import plain
from site_agent import consent
from site_agent.consent import ConsentWithheld
from site_agent.doctor import rights
from site_agent.doctor.finding import Examined, Finding, failed, passed, skipped
from site_agent.wire import contract_of

CONTRACT = "contract.json"
MOST_NAMED = 3
ASK = "if this hospital agrees, change [agreed] in site.toml; else tell the coordinator"


def hashes(examined: Examined) -> Finding:
    """Compare the contract that the aggregator offers with the one that was kept and with [agreed]; without an answer, the one that
    was kept with [agreed]."""
    config, kept_in = examined.config, examined.contract_file or examined.config.state / CONTRACT
    try:
        kept = _kept(kept_in, demanded=examined.contract_file is not None)
    except InputError as error:
        return failed(
            str(error),
            rights.remedy(error)
            or f"put {kept_in} back from a backup, or ask for it: aggregator contract --store STORE --out contract.json",
        )
    offered: Contract | None = None
    if examined.told is not None and (joined := examined.told.joined) is not None:
        try:
            offered = contract_of(joined)
        except InputError as error:
            return failed(f"the aggregator's contract cannot be agreed to: {error}", "upgrade the older side")
        if offered.sha256 != joined.contract_sha256:
            return failed(
                f"the aggregator names contract {plain(joined.contract_sha256, 12)}, and what it sent has hash "
                f"{offered.sha256[:12]}",
                "the two sides are of different releases: upgrade the older one",
            )
    contract = offered or kept
    if contract is None:
        return skipped(f"not tried: no aggregator answered, there is no {kept_in}, and no --contract is given")
    examined.contract = contract
    facts = _facts(contract)
    if config.federation not in ("", contract.federation):
        return failed(
            f"site.toml names federation '{config.federation}', the aggregator serves '{contract.federation}'",
            "correct `federation` in site.toml, or dial the aggregator of that federation",
            **facts,
        )
    try:
        config.agreed.check(contract)
    except ConsentWithheld as error:
        return failed(str(error), ASK, **facts)
    if offered is not None and kept is not None and offered != kept:
        differing = _shortened(consent.differences(kept, offered))
        if examined.contract_file is not None:
            remedy = "ask the coordinator why the two differ; agree to neither before that"
        else:
            remedy = f"start the agent, then, if this hospital agrees: site-agent accept --state {config.state}"
        return failed(f"the contract has changed: {differing}", remedy, **facts)
    return passed(f"{contract.sha256[:12]}, {_standing(examined, offered, kept)}", **facts)


def _standing(examined: Examined, offered: Contract | None, kept: Contract | None) -> str:
    pinned = "inside [agreed]" if examined.config.agreed != consent.NO_PINS else "nothing is pinned in [agreed]"
    whence = "the contract that was handed over" if examined.contract_file else "what this site agreed to"
    if offered is None:
        return f"{whence}; {pinned}; the aggregator was not heard"
    if kept is None:
        return f"{pinned}; the first join agrees to it"
    return f"{whence}; {pinned}"


def _kept(path: Path, *, demanded: bool) -> Contract | None:
    try:
        return Contract.from_bytes(path.read_bytes())
    except FileNotFoundError as error:
        if demanded:
            raise InputError(f"{path} is not there") from error
        return None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except InputError as error:
        raise InputError(f"{path} is damaged: {error}") from error


def _facts(contract: Contract) -> dict[str, object]:
    metadata = contract.manifest.metadata
    return {
        "contract": contract.sha256,
        "federation": contract.federation,
        "base_model": metadata.base_model_sha256,
        "adapter": contract.adapter_digest,
        "manifest": contract.manifest.digest,
        "recipe": contract.recipe.name,
    }


def _shortened(lines: Iterable[str]) -> str:
    all_lines = list(lines)
    more = f"; and {len(all_lines) - MOST_NAMED} more" if len(all_lines) > MOST_NAMED else ""
    return "; ".join(all_lines[:MOST_NAMED]) + more
