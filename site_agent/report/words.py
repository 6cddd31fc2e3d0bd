"""What the figures say, in sentences that claim no more than the cases can show."""

from collections.abc import Mapping
from typing import Any

from shared.methods import LOCAL, METHODS

Facts = Mapping[str, Any]
Verdict = str
FEW = 10
"""Cases of a class below which intervals of proportions and AUCs are rough (our choice)."""
NAMES = {
    "auc": "AUC",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}
MEANING = {
    "probe": "frozen model, only a head trained here",
    "alone": "trained here with the same number of steps, never federated",
    "global": "the federated model without your local part",
    "dual": "the federated model with your local part: what you use",
}
SETS = {"test": "held-out cases", "validation": "validation cases"}


def verdict(compared: Facts | None) -> Verdict:
    """Return better, unseen, worse or unknown: what dual's AUC less alone's says, which needs no threshold."""
    found = compared and compared["differences"][0]["figures"]["auc"]
    if not found:
        return "unknown"
    return "better" if found["low"] > 0 else "worse" if found["high"] < 0 else "unseen"


def headline(found: Verdict, compared: Facts | None) -> str:
    """Return the answer to: did it help my hospital?"""
    count = compared["cases"] if compared else 0
    return {
        "better": f"Yes: on your {count} cases the federated model ranks better than training alone",
        "worse": f"No: on your {count} cases training alone ranks better than the federated model",
        "unseen": f"No difference from training alone can be seen in your {count} cases",
        "unknown": "Whether it helped your hospital cannot be said yet",
    }[found]


def answer(compared: Facts) -> str:
    """Return what dual and alone do on the site's cases, and their difference."""
    point = "at_threshold" if compared["at"] == "threshold" else "at_half"
    at = "at your threshold" if compared["at"] == "threshold" else "at probability 0.5"
    dual, alone = (compared["arms"][arm] for arm in ("dual", "alone"))
    found, before = _calls(dual[point]), _calls(alone[point])
    areas = [f" (AUC {score(arm['auc']['value'])})" if arm["auc"] else "" for arm in (dual, alone)]
    first = compared["differences"][0]["figures"]["auc"]
    difference = f" {interval_words('auc', first, compared)}" if first else ""
    return (
        f"On {compared['cases']} {SETS[compared['set']]} the federated model with your local part {found} {at}{areas[0]}; "
        f"trained alone, your model {before}{areas[1]}.{difference}"
    )


def _calls(point: Facts) -> str:
    sick, well = point["sensitivity"], point["specificity"]
    parts = [f"finds {sick['right']} of {sick['of']} with disease"] if sick else []
    parts += [f"calls {well['right']} of {well['of']} normal ones normal"] if well else []
    return " and ".join(parts)


def interval_words(figure: str, found: Facts, compared: Facts) -> str:
    """Return a difference, its interval, and what that means."""
    low, high = found["low"], found["high"]
    numbers = f"Difference in {NAMES[figure]} {signed(found['value'])}, 95 % interval {signed(low)} to {signed(high)}: "
    if low > 0:
        return f"{numbers}the interval is above 0."
    if high < 0:
        return f"{numbers}the interval is below 0."
    return f"{numbers}the interval includes 0: no difference can be seen in {compared['cases']} cases."


def cautions(facts: Facts) -> list[str]:
    """Return what a reader must know before believing the figures."""
    compared, told = facts["compared"], []
    if compared:
        told += _of_cases(compared)
    if METHODS[facts["recipe"]["name"]].serves == LOCAL:
        told.append(
            f"Under recipe {facts['recipe']['name']} dual is your own part alone, which was drawn to the federated one in training."
        )
    if facts["privacy"]:
        told.append(_of_privacy(facts["privacy"]))
    if compared:
        told.append(
            "Each arm was trained once, from one seed: the intervals are about which cases are in the test set, not about what "
            "another seed would change. Two differences of four figures are shown; of twenty such intervals one misses by chance."
        )
    return told


def _of_cases(compared: Facts) -> list[str]:
    told, diseased, normal = [], compared["diseased"], compared["normal"]
    if not diseased or not normal:
        label = "with disease" if diseased else "normal"
        told.append(
            f"All {compared['cases']} cases are {label}: there is no AUC, and nothing is known of the other class."
        )
    elif min(diseased, normal) < FEW:
        rarer = f"{normal} normal" if normal <= diseased else f"{diseased} diseased"
        told.append(f"Only {rarer} cases: the intervals are wide, and rough. Do not decide on them alone.")
    if compared["set"] == "validation":
        told.append(
            "There are no held-out cases: these are the validation cases, on which the thresholds were chosen, so that rates at "
            "them flatter every arm."
        )
    if not compared["validation_cases"]:
        told.append(
            "There are no validation cases: no threshold could be chosen here, and rates stand at probability 0.5."
        )
    elif compared["validation_cases"] < 2 * FEW:
        told.append(
            f"Your thresholds come from {compared['validation_cases']} validation cases and are drawn towards 0.5 for that; the "
            "AUC does not hang on them."
        )
    return told


def _of_privacy(privacy: Facts) -> str:
    spent = privacy["epsilon"]
    cost = (
        f"epsilon {spent:.3g} at delta {privacy['delta']:g} is spent" if spent is not None else "nothing is spent yet"
    )
    return (
        f"The federation runs under differential privacy (noise {privacy['noise']:g}, {cost}): the federated arms learned with "
        "noise, probe and alone without, for they never leave. What the noise costs is in the difference. No figure of yours was "
        "reported to the aggregator."
    )


def score(value: float | None) -> str:
    """Return a score with three digits, a dash for none."""
    return "-" if value is None else f"{value:.3f}"


def signed(value: float) -> str:
    """Return a difference with its sign; one that rounds to nothing has none."""
    text = f"{value:+.3f}"
    return "0.000" if text in ("+0.000", "-0.000") else text


def between(found: Facts | None) -> str:
    """Return the limits of an interval."""
    return f"{found['low']:.2f} to {found['high']:.2f}" if found else "-"
