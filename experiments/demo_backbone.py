"""`python -m experiments.demo_backbone`: pre-train the demo's backbone on synthetic pairs and write its folder."""

import hashlib
import json
import platform
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import structlog
import typer

from shared import logs
from shared.errors import InputError

if TYPE_CHECKING:
    from experiments.pretraining import Epoch
    from experiments.pretraining_pairs import Part
    from site_agent.models.mae import MaskedAutoencoder

log = structlog.get_logger()

SEED = 20_261_122
"""Far from every seed that a demo or an experiment counts up from 0."""
HELP = """Pre-train the demo's backbone by masked autoencoding of SYNTHETIC cine pairs (no patient data).

The folder is written after every epoch, so a run can be watched and its last state used. The weights that ship with the
project were made with the defaults.

Example:

  python -m experiments.demo_backbone --out runs/backbone --jobs 2
"""


def main(
    out: Annotated[Path, typer.Option(help="Folder for model.safetensors and config.json.")],
    epochs: Annotated[int, typer.Option(min=1, help="Times every pair is seen.")] = 30,
    pairs: Annotated[int, typer.Option(min=1, help="Synthetic pairs to train on.")] = 6000,
    validation_pairs: Annotated[int, typer.Option(min=1, help="Pairs held out for the validation error.")] = 128,
    seed: Annotated[
        int, typer.Option(min=0, help="Same seed, thread count and package versions: same weights.")
    ] = SEED,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that draw pairs; the result does not depend on it.")] = 1,
    one_frame: Annotated[
        bool, typer.Option("--one-frame", help="See every frame by itself, as CineMA does: for siamese frames.")
    ] = False,
) -> None:
    import torch

    from experiments import pretraining, pretraining_pairs
    from site_agent.models.mae import MaskedAutoencoder

    logs.configure()
    torch.set_num_threads(1)
    counts: dict[Part, int] = {"train": pairs, "validation": validation_pairs}
    pretraining_pairs.check_disjoint(
        [pretraining_pairs.pair_seed(seed, part, index) for part, count in counts.items() for index in range(count)]
    )
    log.info("pairs_drawing_started", seed=seed, pairs_count=pairs)
    drawn = {part: pretraining_pairs.draw_pairs(seed, part, count, jobs) for part, count in counts.items()}
    model = MaskedAutoencoder(
        pretraining.DEMO_CONFIG.for_frames("siamese" if one_frame else "stacked"),
        pretraining.DECODER_DIM,
        pretraining.DECODER_DEPTH,
        pretraining.DECODER_HEADS,
        generator=torch.Generator().manual_seed(seed),
    )
    about: dict[str, Any] = {
        "synthetic": True,
        "frames": 1 if one_frame else 2,
        "seed": seed,
        "epochs": epochs,
        "pairs": pairs,
        "versions": _versions(),
    }
    about["pairs_sha256"] = {part: hashlib.sha256(array.tobytes()).hexdigest() for part, array in drawn.items()}
    history: list[pretraining.Epoch] = []

    def after(epoch: pretraining.Epoch) -> None:
        history.append(epoch)
        log.info("epoch_finished", **asdict(epoch))
        write(out, model, {**about, "history": [_rounded(line) for line in history]})

    pretraining.train(model, drawn["train"], drawn["validation"], epochs, seed, after)


def write(out: Path, model: "MaskedAutoencoder", about: dict[str, Any]) -> None:
    """Replace the backbone in `out`, each file at once, so that a reader never sees half a file."""
    from site_agent.models import weights

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".writing-") as temporary:
        folder = Path(temporary)
        weights.save_backbone(folder, model.config, model.encoder_state())
        described = folder / "config.json"
        config = json.loads(described.read_text(encoding="utf-8"))
        described.write_text(json.dumps({**config, "about": about}, indent=1) + "\n", encoding="utf-8")
        for name in ("model.safetensors", "config.json"):
            (folder / name).chmod(0o644)
            (folder / name).replace(out / name)


def _rounded(epoch: "Epoch") -> dict[str, float]:
    return {name: round(value, 5) for name, value in asdict(epoch).items()}


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in ("torch", "numpy", "med-duallora")}


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command(help=HELP)(main)
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)
