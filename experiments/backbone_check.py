"""`python -m experiments.backbone_check`: is the pre-trained backbone better than a random one, as both are used: frozen?

A class-balanced logistic regression on pooled features, fitted on the pooled training cases of a cohort and scored on its held-out
cases, for four backbones. Cohorts have the demo's setting and seeds no demo uses; label-free pre-training never saw them.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from shared.errors import InputError

if TYPE_CHECKING:
    from site_agent.data.phantom.profile import PhantomConfig, Split
    from site_agent.models.convvit import ConvViT

HELP = """Compare the pre-trained backbone with random ones by a linear probe on SYNTHETIC cohorts (no patient data).

Example:

  python -m experiments.backbone_check --weights site_agent/models/demo --cohorts 3
"""
FIRST_SEED = 1000
"""Cohort seeds count up from here; those below 1000 belong to demos and experiments."""
STRENGTHS = tuple(10.0**power for power in (-4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5, 0))
"""Inverse ridge strengths to choose from."""
FOLDS = 5
BATCH = 50
KERNEL = "enc_down_dict.sax.conv_blocks.0.patch_embed.conv.weight"
"""(out, 2, h, w, d): one kernel for ED, one for ES."""
BACKBONES = {
    "pretrained": "pre-trained, as shipped",
    "random": "random, a kernel for each frame",
    "random_same_kernel": "random, ED's kernel repeated",
    "pretrained_same_kernel": "pre-trained, mean of both kernels repeated",
}

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Cohort:
    """Images (n, 2, x, y, slices) uint8; labels 1 = disease; vendors as indices."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    vendors: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Score:
    """Of one backbone on one cohort. Held-out figures are means over vendors, as the demo reports them."""

    backbone: str
    seed: int
    strength: float
    auc: float
    balanced_accuracy: float
    """At threshold 0.5."""
    fold_auc: float
    """Mean over five folds of the training cases, and the spread between folds."""
    fold_auc_sd: float


def main(
    weights: Annotated[Path, typer.Option(help="Folder of the pre-trained backbone.")] = Path("site_agent/models/demo"),
    cohorts: Annotated[int, typer.Option(min=1, help="Fresh cohorts; each also draws another random backbone.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print every score as JSON.")] = False,
) -> None:
    import torch

    torch.set_num_threads(1)
    scores = [score for seed in range(FIRST_SEED, FIRST_SEED + cohorts) for score in compare(weights, seed)]
    typer.echo(json.dumps([asdict(score) for score in scores], indent=1) if as_json else table(scores))


def compare(weights: Path, seed: int) -> list[Score]:
    """Score all four backbones on the cohort of `seed`."""
    from site_agent.data.phantom import PhantomConfig

    config = PhantomConfig(seed=seed)
    train, test = draw(config, "train"), draw(config, "test")
    return [
        probe(name, seed, (features(model, train.images), train), (features(model, test.images), test))
        for name, model in backbones(weights, seed).items()
    ]


def draw(config: "PhantomConfig", split: "Split") -> Cohort:
    """Draw the cases that `site-agent phantom` would write, without the way over files."""
    from site_agent.data.phantom import profile, sample_pair

    images, labels, vendors = [], [], []
    for number, vendor in enumerate(config.vendors):
        for case in profile.plan(config, split, vendor):
            rng = profile.generator(config.seed, split, vendor, case.index)
            images.append(sample_pair(config, vendor, case.condition, rng, severity=case.severity))
            labels.append(int(case.diagnosis != "NOR"))
            vendors.append(number)
    return Cohort(np.stack(images), np.array(labels), np.array(vendors))


def backbones(weights: Path, seed: int) -> dict[str, "ConvViT"]:
    """The shipped network and a random one of the same architecture, each with and without a kernel per frame."""
    import torch

    from site_agent.models.convvit import ConvViT
    from site_agent.models.weights import load_backbone

    shipped = load_backbone(weights).model
    if not isinstance(shipped, ConvViT):
        raise InputError(f"{weights} is a {shipped.config.network}; this check compares the kernels of a convvit")
    random = ConvViT(shipped.config, heads=False, generator=torch.Generator().manual_seed(seed))
    models: dict[str, ConvViT] = {"pretrained": shipped, "random": random}
    for name, kernel in (
        ("random", random.state_dict()[KERNEL][:, :1]),
        ("pretrained", shipped.state_dict()[KERNEL].mean(dim=1, keepdim=True)),
    ):
        blind = ConvViT(shipped.config, heads=False)
        blind.load_state_dict({**models[name].state_dict(), KERNEL: kernel.repeat(1, shipped.config.n_frames, 1, 1, 1)})
        models[f"{name}_same_kernel"] = blind
    return {name: models[name].eval() for name in BACKBONES}


def features(model: "ConvViT", images: npt.NDArray[np.uint8]) -> Floats:
    """Images → mean patch token and class token, side by side: (n, 2 * embed_dim)."""
    import torch

    pooled = []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            batch = torch.from_numpy(images[start : start + BATCH].astype(np.float32) / 255.0)
            found = model.features(batch)
            pooled.append(torch.cat([found.patch.mean(dim=1), found.cls[:, 0]], dim=1).numpy())
    return np.concatenate(pooled)


def probe(name: str, seed: int, train: tuple[Floats, Cohort], test: tuple[Floats, Cohort]) -> Score:
    """Fit on the training cases, the ridge strength chosen by cross-validation among them; score the held-out ones."""
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    inputs, cohort = train
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    by_strength = {
        strength: cross_val_score(_classifier(strength), inputs, cohort.labels, cv=folds, scoring="roc_auc")
        for strength in STRENGTHS
    }
    best = max(STRENGTHS, key=lambda strength: float(by_strength[strength].mean()))
    disease = _classifier(best).fit(inputs, cohort.labels).predict_proba(test[0])[:, 1]
    held = test[1]
    sites = [held.vendors == vendor for vendor in np.unique(held.vendors)]
    return Score(
        backbone=name,
        seed=seed,
        strength=best,
        auc=float(np.mean([roc_auc_score(held.labels[site], disease[site]) for site in sites])),
        balanced_accuracy=float(
            np.mean([balanced_accuracy_score(held.labels[site], disease[site] > 0.5) for site in sites])
        ),
        fold_auc=float(by_strength[best].mean()),
        fold_auc_sd=float(by_strength[best].std(ddof=1)),
    )


def _classifier(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, class_weight="balanced", max_iter=2000))


def table(scores: list[Score]) -> str:
    """Mean and standard deviation over cohorts, one line per backbone."""
    cohorts = len({score.seed for score in scores})
    lines = [
        f"linear probe on frozen features, SYNTHETIC cohorts, {cohorts} seeds; held-out figures are means over 4 vendors",
        f"{'backbone':44} {'AUC':>14} {'bal. accuracy':>15} {'5-fold AUC':>12} {'sd of folds':>12}",
    ]
    for name, meaning in BACKBONES.items():
        mine = [score for score in scores if score.backbone == name]
        if not mine:
            raise InputError(f"no score of the backbone {name}; it must be scored before the table is made")
        fold, spread = (np.mean([getattr(score, key) for score in mine]) for key in ("fold_auc", "fold_auc_sd"))
        lines.append(
            f"{meaning:44} {_mean_sd([s.auc for s in mine]):>14} {_mean_sd([s.balanced_accuracy for s in mine]):>15}"
            f" {fold:12.3f} {spread:12.3f}"
        )
    return "\n".join(lines)


def _mean_sd(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command(help=HELP)(main)
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)
