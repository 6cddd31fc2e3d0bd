"""Pre-training is reproducible and apart from every demo cohort; what ships is what its card says."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from experiments import demo_backbone, pretraining_pairs
from shared.errors import InputError
from site_agent.data.phantom import PhantomConfig, profile, sample_pair
from site_agent.models.classifier import CineClassifier
from site_agent.models.weights import load_backbone

SHIPPED = Path(demo_backbone.__file__).resolve().parents[1] / "site_agent" / "models" / "demo"


def run(out: Path, *options: str) -> Result:
    import typer

    app = typer.Typer()
    app.command()(demo_backbone.main)
    return CliRunner().invoke(
        app, ["--out", str(out), "--epochs", "1", "--pairs", "6", "--validation-pairs", "2", *options]
    )


def demo_pair(seed: int) -> torch.Tensor:
    """One case of a fresh cohort as a batch (1, 2, x, y, slices) in [0, 1]."""
    pair = sample_pair(PhantomConfig(seed=seed), "ge", "DCM", profile.generator(seed, "test", "ge", 1))
    return torch.from_numpy(pair.astype(np.float32)[None] / 255)


def test_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("first", 5), ("again", 5), ("other", 6)):
        result = run(tmp_path / name, "--seed", str(seed))
        assert result.exit_code == 0, result.output
    first, again, other = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("first", "again", "other"))
    assert first == again
    assert first != other
    about = json.loads((tmp_path / "first" / "config.json").read_text())["about"]
    assert about["synthetic"] is True
    assert about["seed"] == 5
    assert len(about["history"]) == 1
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["config.json", "model.safetensors"]


def test_pairs_do_not_depend_on_the_number_of_processes() -> None:
    alone = pretraining_pairs.draw_pairs(3, "train", 3, jobs=1)
    shared_out = pretraining_pairs.draw_pairs(3, "train", 3, jobs=2)
    np.testing.assert_array_equal(alone, shared_out)


def test_no_pair_is_a_case_of_a_demo_cohort() -> None:
    pretraining_pairs.check_disjoint(
        [pretraining_pairs.pair_seed(demo_backbone.SEED, "train", index) for index in range(6000)]
        + [pretraining_pairs.pair_seed(demo_backbone.SEED, "validation", index) for index in range(128)]
    )
    # even a pair key with a demo's own seed number has other words than any case of that demo
    pretraining_pairs.check_disjoint([pretraining_pairs.pair_seed(0, "train", index) for index in range(300)])


@pytest.mark.parametrize("words", [(3, 1, 2, 17), (0, 1), (9, 0, 3, 0)])
def test_a_key_of_a_demo_case_is_refused(words: tuple[int, ...]) -> None:
    """(0, 1) is the same stream as (0, 1, 0, 0), which numpy pads it to: the plan of a demo's test part."""
    with pytest.raises(InputError, match="choose another --seed"):
        pretraining_pairs.check_disjoint([np.random.SeedSequence(words)])


def test_a_view_moves_both_frames_alike_and_keeps_the_range() -> None:
    frame = np.random.default_rng(0).integers(0, 256, size=(12, 12, 2), dtype=np.uint8)
    seen = pretraining_pairs.view(np.stack([frame, frame]), np.random.default_rng(1))
    np.testing.assert_array_equal(seen[0], seen[1])
    assert seen.dtype == np.float32
    assert seen.min() >= 0
    assert seen.max() <= 1


def test_shipped_backbone_loads_without_a_warning_and_sees_motion() -> None:
    with capture_logs() as events:
        loaded = load_backbone(SHIPPED, frames="stacked")
    assert not [event for event in events if event["log_level"] == "warning"]
    assert not loaded.report.frames_see_same_kernel
    classifier = CineClassifier.from_loaded(loaded, n_classes=2, generator=torch.Generator().manual_seed(0)).eval()
    image = demo_pair(1000)
    with torch.inference_mode():
        difference = (classifier(image) - classifier(image.flip(1))).abs().max().item()
    assert difference > 1e-2


def test_shipped_card_names_the_shipped_file() -> None:
    digest = hashlib.sha256((SHIPPED / "model.safetensors").read_bytes()).hexdigest()
    card = (SHIPPED / "CARD.md").read_text(encoding="utf-8")
    assert digest in card
    assert "SYNTHETIC" in card
    assert "not for clinical use" in card.lower()
    about = json.loads((SHIPPED / "config.json").read_text())["about"]
    assert str(about["seed"]) in card
