"""A case's probability under the base model, a global adapter, or a site's own dual model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from shared.adapter import Adapter
from shared.contract import Contract
from shared.errors import ContractMismatch, InputError
from site_agent import state
from site_agent.data import cohort, windows
from site_agent.models import adapter_tensors, weights
from site_agent.models.adapter_tensors import Ownership
from site_agent.models.classifier import CineClassifier
from site_agent.models.config import Frames
from site_agent.training.site import build, load_base


@dataclass(frozen=True)
class Prediction:
    """Logits (classes,) and their softmax."""

    logits: np.ndarray
    class_names: tuple[str, ...]

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax of the logits, float64."""
        shifted = np.exp(self.logits.astype(np.float64) - self.logits.max())
        return np.asarray(shifted / shifted.sum())

    def to_jsonable(self) -> dict[str, Any]:
        """Return logits and probability by class name."""
        return {
            "logits": [float(v) for v in self.logits],
            "probability": dict(zip(self.class_names, map(float, self.probabilities), strict=True)),
        }


@dataclass(frozen=True)
class Model:
    """A classifier that is ready to judge, with the size of image it takes."""

    classifier: CineClassifier
    image_size: tuple[int, int, int]
    class_names: tuple[str, ...]

    def predict(self, ed: Path, es: Path) -> Prediction:
        """Judge one patient from two NIfTI volumes, prepared as `site-agent prepare` writes them. Raises InputError."""
        pair = cohort.pad_to(cohort.load_pair_from_files(ed, es), self.image_size)
        crops = torch.from_numpy(windows.split(pair, self.image_size))
        with torch.no_grad():
            logits = np.concatenate([self.classifier(crop[None]).float().numpy() for crop in crops])
        return Prediction(windows.combine_logits(logits), self.class_names)


def base_model(source: Path, size: str, frames: Frames) -> Model:
    """A classifier file as it is (CineMA's own, or a golden one); its heads must be in the file."""
    loaded = load_base(source, size, frames)
    if not loaded.heads:
        raise InputError(f"{source} has no classifier heads; give a --state folder of an agent, or classifier weights")
    classifier = CineClassifier.from_loaded(loaded).eval()
    names = tuple(f"class {i}" for i in range(classifier.n_classes))
    return Model(classifier, loaded.model.config.image_size, names)


def site_model(source: Path, size: str, folder: Path) -> Model:
    """The dual model of a site's state folder: newest global adapter, and the local one that goes with that version."""
    contract: Contract = state.read_contract(folder)
    metadata = contract.manifest.metadata
    loaded = load_base(source, size, cast(Frames, metadata.frames))
    if weights.base_model_sha256(loaded.model) != metadata.base_model_sha256:
        raise ContractMismatch(
            f"{source} is not the base model of this federation; give the --weights it was trained on"
        )
    image_size = loaded.model.config.image_size
    owned = Ownership.of(metadata, contract.recipe)
    classifier = build(loaded, contract, 0)
    adapter_tensors.load_global(classifier, owned, Adapter.read(folder / state.GLOBAL).tensors)
    local = state.read_local_adapter(folder)
    if local is None and adapter_tensors.local_tensors(classifier, owned):
        raise InputError(
            f"{folder} holds no local adapter that goes with its newest global one: the agent has not finished a round before "
            "it; try again after the next round"
        )
    adapter_tensors.load_local(classifier, owned, local or {})
    return Model(classifier, image_size, metadata.class_names)
