"""What this site trains on: the base model's weights and the prepared cohort. Reads all of it; none of it is shown or sent."""

import time

from shared.errors import InputError
from site_agent.doctor import rights
from site_agent.doctor.finding import Examined, Finding, failed, passed, warned

READ_S = 15.0
"""How long cases are read; a larger cohort is looked at in part."""
MOST_NAMED = 5


def base_weights(examined: Examined) -> Finding:
    """Load the base model, and compare its hash with the contract's."""
    from site_agent.models import weights
    from site_agent.training.site import load_base

    config = examined.config
    try:
        loaded = load_base(config.weights, config.weights_size, "stacked", warn=False)
    except InputError as error:
        return failed(
            str(error),
            rights.remedy(error)
            or "set `weights` in site.toml to the file that the coordinator named, with weights_size for a bare one",
        )
    found = weights.base_model_sha256(loaded.model)
    if examined.contract is None:
        return passed(f"{found[:12]}; there is no contract to compare it with", base_model=found)
    wanted = examined.contract.manifest.metadata.base_model_sha256
    if found != wanted:
        return failed(
            f"this site's base model has hash {found[:12]}, the federation's is {wanted[:12]}",
            "set `weights` in site.toml to the file that the coordinator named",
            base_model=found,
            wanted=wanted,
        )
    return passed(f"{found[:12]}, as the contract says", base_model=found)


def cases(examined: Examined) -> Finding:
    """Read the cohort's table and the images of every case, and count."""
    from site_agent import starting
    from site_agent.data import cohort as cohorts

    config = examined.config
    try:
        cohort = cohorts.Cohort.load(config.cohort)
        training = starting.training_cases(config, cohort)
    except InputError as error:
        return failed(
            f"the cohort in {config.cohort} cannot be trained on",
            rights.remedy(error) or "do what the line below says; site-agent prepare makes it",
            str(error),
        )
    broken, denied, read, began = list[str](), "", 0, time.monotonic()
    for case in cohort.cases:
        if time.monotonic() - began > READ_S:
            break
        read += 1
        try:
            cohorts.load_frames(case)
        except InputError as error:
            broken.append(str(error))
            denied = denied or rights.remedy(error)
    took = time.monotonic() - began
    counts = {
        "cases": len(cohort.cases),
        "training": len(training),
        "validation": len(cohort.validation(config.validation_fold)),
        "test": len(cohort.test()),
        "read": read,
        "unreadable": len(broken),
    }
    if broken:
        return failed(
            f"{len(broken)} of {read} cases cannot be read",
            denied or "prepare the cohort again: site-agent prepare; or take their rows out of cases.csv",
            "; ".join(broken[:MOST_NAMED]) + ("; …" if len(broken) > MOST_NAMED else ""),
            **counts,
        )
    fixed = examined.told.joined.training_patients if examined.told and examined.told.joined else 0
    if fixed not in (0, len(training)):
        return failed(
            f"{len(training)} training patients here, {fixed} are fixed for this site at the aggregator: it will refuse us",
            "prepare the cohort that the federation was told of (and the same validation_fold), or ask the coordinator",
            fixed=fixed,
            **counts,
        )
    examined.cohort = cohort
    healthy = sum(case.label == 0 for case in training)
    words = (
        f"{len(cohort.cases)} cases: {len(training)} to train on ({healthy} {cohorts.CLASS_NAMES[0]}, "
        f"{len(training) - healthy} {cohorts.CLASS_NAMES[1]}), {counts['validation']} for validation, {counts['test']} held out"
    )
    if read < len(cohort.cases):
        return warned(
            f"{words}; {read} of them were read in {took:.1f} s, and are sound; all would take about "
            f"{took * len(cohort.cases) / read:,.0f} s",
            "the first round takes so much longer: put `cohort` on a local disk, if this one is slow",
            read_s=round(took, 3),
            **counts,
        )
    if not counts["validation"]:
        return warned(
            words, "with no validation case there is no threshold of one's own: set another validation_fold", **counts
        )
    return passed(f"{words}; all of them read", **counts)
