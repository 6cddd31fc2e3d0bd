"""The linear probe tells features that know the label from features that do not."""

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import backbone_check, pretraining
from experiments.backbone_check import Cohort
from site_agent.data.phantom import PhantomConfig
from site_agent.models.convvit import ConvViT
from site_agent.models.weights import save_backbone


def cohort_and_features(signal: float, seed: int) -> tuple[np.ndarray, Cohort]:
    rng = np.random.default_rng(seed)
    labels = np.arange(200) % 2
    found = rng.normal(size=(200, 6)).astype(np.float32)
    found[:, 0] += signal * labels
    vendors = np.arange(200) // 50
    return found, Cohort(np.zeros((200, 1), dtype=np.uint8), labels, vendors)


def test_probe_scores_a_known_separation() -> None:
    """Two unit normals 2 apart have AUC Phi(2 / sqrt 2) = 0.921 and balanced accuracy Phi(1) = 0.841."""
    score = backbone_check.probe("x", 0, cohort_and_features(2.0, 0), cohort_and_features(2.0, 1))
    assert score.auc == pytest.approx(0.921, abs=0.04)
    assert score.balanced_accuracy == pytest.approx(0.841, abs=0.05)


def test_probe_of_noise_is_a_coin() -> None:
    score = backbone_check.probe("x", 0, cohort_and_features(0.0, 0), cohort_and_features(0.0, 1))
    assert abs(score.auc - 0.5) < 0.12


def test_same_kernel_backbones_do_not_see_motion_and_the_others_do(tmp_path: Path) -> None:
    model = ConvViT(pretraining.DEMO_CONFIG, heads=False, generator=torch.Generator().manual_seed(1))
    save_backbone(tmp_path, pretraining.DEMO_CONFIG, model.state_dict())
    cohort = backbone_check.draw(PhantomConfig(seed=1000, test_cases=2), "test")
    swapped = cohort.images[:, ::-1]
    changed = {
        name: np.abs(backbone_check.features(net, cohort.images) - backbone_check.features(net, swapped)).max()
        for name, net in backbone_check.backbones(tmp_path, 1000).items()
    }
    assert changed["pretrained"] > 1e-2
    assert changed["random"] > 1e-2
    assert changed["pretrained_same_kernel"] < 1e-4
    assert changed["random_same_kernel"] < 1e-4


def test_table_has_a_line_for_each_backbone() -> None:
    scores = [
        backbone_check.Score(name, seed, 0.1, 0.8 + 0.02 * seed, 0.7, 0.8, 0.03)
        for name in backbone_check.BACKBONES
        for seed in (0, 1)
    ]
    lines = backbone_check.table(scores).splitlines()
    assert len(lines) == 2 + len(backbone_check.BACKBONES)
    assert "0.810 ± 0.014" in lines[2]
