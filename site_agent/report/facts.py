"""Everything that `site-agent report` shows, read from a state folder without holding its lock: the agent may be at work."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shared.adapter import Adapter
from shared.canonical import sha256_hex, write_atomically
from shared.contract import ARMS, Contract
from shared.errors import InputError, InvalidAdapter
from site_agent import round_files, state
from site_agent.damage import Damaged
from site_agent.privacy import debits
from site_agent.report import CASES, REPORT, compared, words
from site_agent.training import case_scores, metrics
from site_agent.training.case_scores import CaseScores

PRIVATE = "holds keys of your cases and figures of few patients; it stays in this hospital"
Facts = dict[str, Any]


def gather(folder: Path) -> Facts:
    """Return report.json's fields and what is made of them: `finished`, `missing` in sentences, `compared` (see `compared.of`; None
    while there is nothing to compare), `verdict`, `headline`, `answer`, `cautions`, `rounds_here`, `privacy`.

    Raises InputError for a folder that is no agent's, and for a report that is damaged.
    """
    contract = state.read_contract(folder)
    written, missing = _written(folder, contract)
    scores = CaseScores()
    if written:
        scores, lost = _scores(folder, written)
        missing += lost
    found = compared.of(scores)
    verdict = words.verdict(found)
    facts: Facts = {
        "private": PRIVATE,
        "finished": bool(written),
        "missing": missing,
        **(written or _so_far(folder, contract)),
        "rounds_here": _rounds(folder),
        "recipe": contract.recipe.to_jsonable(),
        "privacy": _privacy(folder, contract),
        "compared": found,
        "verdict": verdict,
        "headline": words.headline(verdict, found),
        "answer": words.answer(found) if found else "",
    }
    return facts | {"cautions": words.cautions(facts)}


def cases(folder: Path) -> CaseScores:
    """Return the scores that the agent keeps. Raises InputError if there are none yet."""
    written, missing = _written(folder, state.read_contract(folder))
    scores, lost = _scores(folder, written) if written else (CaseScores(), [])
    if not len(scores):
        raise InputError(
            f"no scores of cases in {folder}: {' '.join(missing + lost) or 'the site has no cases to judge'}"
        )
    return scores


def write_cases(scores: CaseScores, path: Path) -> None:
    """Write a table for people, readable by its owner only: probabilities and calls of every case under every arm."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "set", "label", *(f"{what}_{arm}" for arm in ARMS for what in ("probability", "disease"))])
    writer.writerows(_table(scores))
    write_atomically(path, text.getvalue().encode(), state.PRIVATE)


def _table(scores: CaseScores) -> Iterator[list[object]]:
    validation = scores.of("validation")
    cuts = {arm: case_scores.threshold(validation, arm) or compared.HALF for arm in ARMS}
    for at, (key, name, label) in enumerate(zip(scores.keys, scores.sets, scores.labels, strict=True)):
        margins = {arm: float(scores.margins[arm][at]) for arm in ARMS}
        cells = [
            cell
            for arm in ARMS
            for cell in (f"{metrics.probability(margins[arm]):.6f}", int(margins[arm] >= cuts[arm]))
        ]
        yield [key, name, int(label), *cells]


def _written(folder: Path, contract: Contract) -> tuple[Facts | None, list[str]]:
    """Return report.json if it is this contract's and the newest version's, and what is missing else."""
    path = folder / REPORT
    later = f"the arms are compared when the federation is finished, after round {contract.policy.rounds}."
    try:
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict) or not {"arms", "adapter", "history"} <= value.keys():
            raise ValueError("it is no report")
    except FileNotFoundError:
        return None, [f"Not finished: {later}"]
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); start the agent again to have it written anew") from error
    if value.get("contract", contract.sha256) != contract.sha256:
        return None, [
            f"The report here is of an earlier contract of this site, and not shown. Under the present one {later}"
        ]
    if (now := _newest(folder)) and now.digest != value["adapter"]["digest"]:
        return value, [
            f"The figures are of version {value['adapter']['version']}; the site has version {now.version} since, and compares the "
            "arms anew when that federation is finished."
        ]
    return value, []


def _newest(folder: Path) -> Adapter | None:
    try:
        return Adapter.read(folder / state.GLOBAL)
    except (InputError, InvalidAdapter, OSError):
        return None


def _scores(folder: Path, written: Mapping[str, Any]) -> tuple[CaseScores, list[str]]:
    """Return the scores that report.json's figures are computed from, or why they cannot be shown."""
    again = "start the agent again, with --once: it compares the arms anew and keeps them."
    try:
        data = (folder / CASES).read_bytes()
    except FileNotFoundError:
        return CaseScores(), [
            f"The score of each case was not kept by the agent of then, so there are no intervals: {again}"
        ]
    if sha256_hex(data) != written.get("cases_sha256"):
        return CaseScores(), [f"{CASES} is not the table that the report was made from: {again}"]
    scores = CaseScores.from_csv(data)
    if not len(scores):
        return scores, ["The site has neither held-out nor validation cases: there is nothing to judge a model by."]
    return scores, []


def _so_far(folder: Path, contract: Contract) -> Facts:
    """What is known of a federation that is not finished, under the names of report.json."""
    return {
        "federation": contract.federation,
        "rounds": contract.policy.rounds,
        "contract": contract.sha256,
        "history": _history(folder),
    }


def _history(folder: Path) -> list[Facts]:
    """Return the site's figures of every version it judged; none if they cannot be read, which the agent says when it starts."""
    try:
        entries = [json.loads(line) for line in (folder / state.HISTORY).read_bytes().splitlines()]
    except (OSError, ValueError, RecursionError):
        return []
    return [one for one in entries if isinstance(one, dict) and {"version", "round", "validation"} <= one.keys()]


def _rounds(folder: Path) -> list[Facts]:
    """Return the rounds this site finished: what became of its update, and the loss it trained to."""
    found, rounds = [], folder / round_files.ROUNDS
    for number in round_files.numbers(rounds):
        try:
            record = round_files.read_record(round_files.folder_of(rounds, number))
        except Damaged:
            continue  # the agent sets it aside, and says so
        loss = record.facts.metrics.get("train_loss")
        found.append(
            {"round": number, "base_version": record.facts.base_version, "update": record.fate, "train_loss": loss}
        )
    return found


def _privacy(folder: Path, contract: Contract) -> Facts | None:
    """What differential privacy the contract has, and what this site has spent; None without. Raises as `debits.read`."""
    recipe = contract.recipe
    if not recipe.dp_noise:
        return None
    entries = debits.read(folder, missing_ok=True).entries
    spent = entries[-1].facts["epsilon"] if entries else None
    return {
        "noise": recipe.dp_noise,
        "clip": recipe.dp_clip,
        "delta": recipe.dp_delta,
        "budget": recipe.dp_epsilon,
        "epsilon": spent,
    }
