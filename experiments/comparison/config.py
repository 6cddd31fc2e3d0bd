"""A comparison's config.json: the plan that its folder was begun with, and what differs from it later."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments.comparison.contenders import Contender
from experiments.comparison.extensions import everyone
from experiments.comparison.plan import REAL, Plan
from experiments.comparison.scenarios import FIRST_SEED, SCENARIOS, TUNING_SEED, first_seed
from experiments.comparison.shots import BASES, EPOCHS, SHOTS
from shared.canonical import canonical_json, sha256_hex, write_atomically
from shared.errors import InputError
from shared.recipe import Recipe

CONFIG = "config.json"
PACKAGES = ("med-duallora", "torch", "monai", "numpy", "scipy", "scikit-learn", "statsmodels")
CONTENT = ("weights", "data")
"""What of a plan is the digest of files."""
DIGEST_SHOWN = 12
OFF: Mapping[str, Any] = {
    "robust": "none",
    "attackers": 0,
    "cosine_least": 0.0,
    "norm_gate": 0.0,
    "dp_noise": 0.0,
    "dp_clip": 1.0,
    "dp_delta": 1e-5,
    "dp_epsilon": 0.0,
}
"""Recipe numbers that came after folders were begun, off in all of these: with this default they change no cell."""


def read(path: Path, advice: str = "restore it, or begin in another folder") -> dict[str, Any] | None:
    """Return what a JSON file of a comparison's folder holds; None if it is not there.

    Raises InputError, with this advice, if it is damaged.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); {advice}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is damaged (it holds a {type(values).__name__}); {advice}")
    return values


def is_begun(plan: Plan) -> bool:
    """Return whether the folder holds this comparison already. Raises InputError saying what differs if it holds another."""
    held = read(plan.out / CONFIG)
    if held is None:
        return False
    there, here = held.get("plan", {}), plan.settled()
    differing = [
        _difference(name, there.get(name), here.get(name))
        for name in {**here, **there}
        if there.get(name) != here.get(name)
    ]
    if held.get("contenders_sha256") != contenders_digest():
        differing.append("methods, switches or scenarios: of another version of the code")
    if differing:
        raise InputError(
            f"{plan.out} holds another comparison ({'; '.join(differing)}); give the options it was begun with, or choose "
            "another --out"
        )
    return True


def _difference(name: str, there: Any, here: Any) -> str:
    values = [value[:DIGEST_SHOWN] if name in CONTENT and value else value for value in (there, here)]
    return "{}: {} there, {} here".format(name, *("none" if value in (None, "") else value for value in values))


def freeze(plan: Plan) -> None:
    """Write the plan into its folder, if it is not there. Raises InputError if another one is."""
    if is_begun(plan):
        return
    whole = {
        "plan": plan.settled(),
        "contenders_sha256": contenders_digest(),
        "synthetic": plan.synthetic,
        "scenarios": {name: text for name, (text, _) in SCENARIOS.items()}
        if plan.synthetic
        else {REAL: "real patients"},
        "seeds": {"tuning": TUNING_SEED, **{name: first_seed(name) for name in SCENARIOS}}
        if plan.synthetic
        else {REAL: FIRST_SEED},
        "runs": {"core": plan.runs, "other": plan.other_runs},
        "versions": versions(),
    }
    write_atomically(plan.out / CONFIG, json.dumps(whole, indent=1).encode())


@cache
def versions() -> Mapping[str, str]:
    """Return the versions that a cell is computed by, by name."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def other_versions(out: Path) -> str:
    """Return in words which versions are not those that a folder was begun with; empty if all are."""
    began = (read(out / CONFIG) or {}).get("versions", {})
    here = versions()
    return "; ".join(
        _difference(name, began.get(name), here.get(name))
        for name in {**here, **began}
        if began.get(name) != here.get(name)
    )


def contenders_digest() -> str:
    """SHA-256 of everything that decides what a cell is besides the plan and the code: contenders and what is tried of each,
    switches, scenarios, the recipes' defaults, and how a left-out vendor is served."""
    defaults = {name: value for name, value in asdict(Recipe()).items() if name not in OFF or value != OFF[name]}
    return sha256_hex(
        canonical_json(
            {
                "contenders": [_jsonable(one) for one in everyone()],
                "scenarios": {name: [text, asdict(config)] for name, (text, config) in SCENARIOS.items()},
                "seeds": {"tuning": TUNING_SEED, **{name: first_seed(name) for name in SCENARIOS}},
                "defaults": defaults,
                "unseen": [list(BASES), list(SHOTS), EPOCHS],
            }
        )
    )


def _jsonable(one: Contender) -> dict[str, Any]:
    return {
        name: value
        for name, value in asdict(one).items()
        if name not in ("title", "paper", "is_written", "sent", "stays")
    }
