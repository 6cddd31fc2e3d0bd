"""Which threshold a site's model has, and from what: its report, its history, or nobody."""

import json

import numpy as np
import pytest

from shared.adapter import Adapter
from site_agent import state, thresholds
from site_agent.report import REPORT
from site_agent.training import metrics
from tests.support import adapters

VERSION = Adapter(adapters.adapter(0).manifest, 3, "", adapters.adapter(0).tensors)


def judged(threshold: float, n: int = 6) -> dict[str, object]:
    return {"n": n, "at_validation": {"threshold": threshold}}


def write_report(folder, arms, digest=VERSION.digest):
    (folder / REPORT).write_text(json.dumps({"adapter": {"digest": digest}, "arms": arms}))


def write_history(folder, *entries):
    (folder / state.HISTORY).write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def test_a_finished_federations_report_has_the_threshold_of_each_arm(tmp_path):
    write_report(tmp_path, {"dual": {"validation": judged(0.4)}, "global": {"validation": judged(0.7, 5)}})
    dual, alone = (thresholds.of_site(tmp_path, arm, VERSION) for arm in ("dual", "global"))
    assert (dual.probability, dual.cases, dual.kind) == (0.4, 6, "validation")
    assert (alone.probability, alone.cases) == (0.7, 5)
    assert dual.source == "this site's own, from 6 validation cases"


def test_while_a_federation_runs_the_history_has_that_of_the_dual_model(tmp_path):
    write_report(tmp_path, {}, digest="another version's")
    write_history(tmp_path, {"version": 2, "validation": judged(0.9)}, {"version": 3, "validation": judged(0.3, 4)})
    found = thresholds.of_site(tmp_path, "dual", VERSION)
    assert (found.probability, found.cases) == (0.3, 4)
    alone = thresholds.of_site(tmp_path, "global", VERSION)
    assert (alone.probability, alone.is_own) == (0.5, False)
    assert "when the federation is finished" in alone.source


@pytest.mark.parametrize("damage", [b"", b"not json", b"[1]"])
def test_what_is_missing_or_damaged_gives_the_common_threshold_and_says_so(tmp_path, damage):
    (tmp_path / REPORT).write_bytes(damage)
    (tmp_path / state.HISTORY).write_bytes(damage[:3])
    found = thresholds.of_site(tmp_path, "dual", VERSION)
    assert (found.probability, found.kind) == (0.5, "common")
    assert found.source == "the common one: version 3 was not judged on validation cases here"


def test_a_site_without_validation_cases_has_the_common_threshold(tmp_path):
    write_report(tmp_path, {"dual": {}})
    assert thresholds.of_site(tmp_path, "dual", VERSION).source == "the common one: this site has no validation cases"


def test_disease_is_called_from_the_threshold_on():
    found = thresholds.Threshold(0.4, 6, "")
    assert [found.calls_disease(p) for p in (0.39, 0.4, 0.41)] == [False, True, True]


@pytest.mark.parametrize("probability", [0.001, 0.3, 0.5, 0.99])
def test_a_margin_is_the_inverse_of_its_probability(probability):
    assert float(metrics.probability(metrics.margin(probability))) == pytest.approx(probability, rel=1e-12)
    assert metrics.margin(0.0) == -np.inf
    assert metrics.margin(1.0) == np.inf
