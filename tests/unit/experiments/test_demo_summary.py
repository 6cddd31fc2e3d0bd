"""The summary has what its schema promises, with means and minima that can be worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments.demo import summaries
from experiments.demo.summaries import ARMS, Disagreement
from shared.errors import InputError
from tests.support import demo_findings as made


def test_summary_has_every_part_in_a_stable_order() -> None:
    summary = summaries.build(made.findings(), made.seconds())
    assert list(summary) == [
        "synthetic",
        "seed",
        "rounds",
        "settings",
        "sites",
        "mean",
        "worst_site",
        "adapter",
        "contract",
        "communication",
        "verified_rounds",
        "seconds",
        "machine",
        "versions",
    ]
    assert summary["synthetic"] is True
    assert list(summary["sites"]) == list(made.SITES)
    for arms in (*(site["test"] for site in summary["sites"].values()), summary["mean"], summary["worst_site"]):
        assert list(arms) == list(ARMS) == ["probe", "alone", "global", "dual"]
    dual = summary["sites"]["ge"]["test"]["dual"]
    assert list(dual) == ["auc", "n", "at_half", "at_validation"]
    assert list(dual["at_half"]) == ["balanced_accuracy", "sensitivity", "specificity"]
    assert list(dual["at_validation"]) == ["balanced_accuracy", "sensitivity", "specificity", "threshold"]
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_mean_and_worst_site_are_over_sites() -> None:
    """AUCs fall by 0.02 from site to site: mean is 0.03 below the first, the last is the worst."""
    summary = summaries.build(made.findings(), made.seconds())
    assert summary["mean"]["dual"]["auc"] == pytest.approx(0.88 - 0.03)
    assert summary["worst_site"]["dual"]["auc"] == pytest.approx(0.88 - 0.06)
    assert summary["worst_site"]["dual"]["site"]["auc"] == "canon"
    assert summary["mean"]["probe"]["at_validation"]["balanced_accuracy"] == pytest.approx(0.75)


def test_a_missing_auc_makes_mean_and_worst_missing_too() -> None:
    reports = {site: made.site_report(index, 3) for index, site in enumerate(made.SITES)}
    reports["ge"]["arms"]["dual"]["test"]["auc"] = None
    summary = summaries.build(made.findings(reports=reports), made.seconds())
    assert summary["mean"]["dual"]["auc"] is None
    assert summary["worst_site"]["dual"]["auc"] is None
    assert summary["worst_site"]["dual"]["site"]["auc"] is None
    assert summary["mean"]["probe"]["auc"] == pytest.approx(0.77)


def test_communication_adds_up_and_compares_with_the_full_model_both_ways() -> None:
    found = summaries.communication(made.costs(3))
    assert found["bytes_up"]["ge"] == {"1": 45_000, "2": 45_000, "3": 45_000}
    assert found["total"] == {"bytes_up": 540_000, "bytes_down": 720_000, "bytes": 1_260_000}
    assert found["per_site_and_round"] == {"bytes_up": 45_000, "bytes_down": 60_000}
    assert found["by_purpose"]["heartbeat"] == {"bytes_up": 1200, "bytes_down": 1200}
    assert found["reduction"] == pytest.approx(2 * 3_000_000 / 105_000)


def test_sites_with_different_final_adapters_are_refused() -> None:
    reports = {site: made.site_report(index, 3) for index, site in enumerate(made.SITES)}
    reports["canon"]["adapter"]["digest"] = "ee" * 32
    with pytest.raises(Disagreement, match="canon eeeeeeeeeeee"):
        summaries.build(made.findings(reports=reports), made.seconds())


def test_centralised_reference_stands_beside_the_arms() -> None:
    reference = {site: made.figures(0.9 - 0.01 * index) for index, site in enumerate(made.SITES)}
    summary = summaries.build(made.findings(reference=reference), made.seconds())
    assert summary["reference"]["centralised"]["mean"]["auc"] == pytest.approx(0.885)
    assert summary["reference"]["centralised"]["worst_site"]["site"]["auc"] == "canon"


def test_full_model_counts_what_full_fine_tuning_would_send(tmp_path: Path) -> None:
    tensors = {
        "encoder.blocks.0.attn.q.weight": np.zeros((8, 4), np.float16),
        "encoder.blocks.0.attn.q.bias": np.zeros(8, np.float32),
        "enc_down_dict.sax.pos_embed": np.zeros((1, 128, 4), np.float32),
        "decoder.blocks.0.weight": np.zeros((100, 100), np.float32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert summaries.full_model_bytes(tmp_path) == 4 * (8 * 4 + 8)
    assert summaries.full_model_bytes(tmp_path / "model.safetensors") == 160


def test_a_missing_backbone_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no backbone at .*nowhere.*--weights"):
        summaries.full_model_bytes(tmp_path / "nowhere")
