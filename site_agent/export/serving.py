"""What the inference.json of an exported bundle is made of; MONAI names these by their dotted paths. Importing it loads MONAI."""

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.inferers.inferer import Inferer
from monai.transforms.transform import MapTransform
from safetensors.torch import load_file, save_file

from shared.canonical import write_atomically
from site_agent.data import pairs, windows
from site_agent.data.layouts import FrameFile
from site_agent.data.pairs import Geometry
from site_agent.models import weights
from site_agent.models.classifier import CineClassifier
from site_agent.models.config import Frames
from site_agent.state import PRIVATE

HEADS, CLASSIFIER = "heads.safetensors", "classifier.json"


def save_network(
    folder: Path,
    classifier: CineClassifier,
    backbone: Mapping[str, torch.Tensor],
    heads: Mapping[str, torch.Tensor],
    header: Mapping[str, str],
) -> None:
    """Write what `load_network` reads: the backbone's folder, the heads, and how they see frames; `header` in both files."""
    weights.save_backbone(folder, classifier.backbone.config, backbone, header)
    save_file(dict(heads), folder / HEADS, dict(header))
    facts = {"frames": classifier.frames, "classes": classifier.n_classes}
    (folder / CLASSIFIER).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def load_network(folder: str) -> CineClassifier:
    """(B, 2, X, Y, Z), ED then ES in [0, 1], → logits (B, classes). In evaluation mode."""
    where = Path(folder)
    facts = json.loads((where / CLASSIFIER).read_text(encoding="utf-8"))
    frames: Frames = facts["frames"]
    loaded = weights.load_backbone(where, None, frames, stem_frozen=False)
    classifier = CineClassifier(loaded.model, frames, facts["classes"])
    classifier.load_heads(load_file(where / HEADS))
    return classifier.eval().requires_grad_(False)


class LoadPaird(MapTransform):
    """[path of ED, path of ES] → float32 (2, x, y, z) in [0, 1]; raw images are prepared as `site-agent prepare` does.

    Without `spacing_mm` and `size` only prepared ones are taken.
    """

    def __init__(
        self, keys: KeysCollection, spacing_mm: Sequence[float] | None = None, size: Sequence[int] | None = None
    ) -> None:
        super().__init__(keys)
        self.geometry = None
        if spacing_mm and size:
            x, y, z = spacing_mm
            width, height = size
            self.geometry = Geometry((x, y, z), (width, height))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        for key in self.key_iterator(found):
            ed, es = (FrameFile(Path(path)) for path in found[key])
            found[key] = pairs.read(ed, es, self.geometry).pair
        return found


class WindowInferer(Inferer):
    """Windows of the network's size over a larger image, and their one answer, as CineMA evaluates (`site_agent.data.windows`)."""

    def __init__(self, window: Sequence[int]) -> None:
        super().__init__()
        x, y, z = window
        self.window = (x, y, z)

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """(B, 2, X, Y, Z), no axis shorter than the window → logits (B, classes)."""
        with torch.no_grad():
            return torch.stack([self._of_one(image, network) for image in inputs])

    def _of_one(self, image: torch.Tensor, network: Callable[..., Any]) -> torch.Tensor:
        crops = windows.split(np.asarray(image.cpu()), self.window)
        found = [network(torch.from_numpy(crop[None]).to(image.device)).float().cpu() for crop in crops]
        return torch.from_numpy(windows.combine_logits(torch.cat(found).numpy()))


def write_result(
    path: str, logits: torch.Tensor, probabilities: torch.Tensor, class_names: Sequence[str], threshold: float | None
) -> dict[str, Any]:
    """Write and return logits, probability by class, and what is called; the file is of a patient, and its owner's alone."""
    found = [float(v) for v in probabilities]
    called = int(np.argmax(found)) if threshold is None else int(found[1] >= threshold)
    facts = {
        "logits": [float(v) for v in logits],
        "probability": dict(zip(class_names, found, strict=True)),
        "threshold": threshold,
        "call": class_names[called],
        "calibrated": False,
    }
    write_atomically(Path(path), (json.dumps(facts, indent=1) + "\n").encode(), PRIVATE)
    print(f"wrote {path}: PRIVATE, of a patient")
    return facts
