"""A case's probability under a site's dual model, the global adapter alone, or a classifier file as it is."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import torch

from shared.adapter import Adapter, AdapterMetadata
from shared.contract import Contract
from shared.errors import ContractMismatch, InputError
from shared.methods import GLOBAL, LOCAL, Part
from site_agent import state, thresholds
from site_agent.config import Device
from site_agent.data import cohort, pairs, windows
from site_agent.data.cohort import Pair
from site_agent.data.layouts import FrameFile
from site_agent.data.pairs import Geometry
from site_agent.models import adapter_tensors, lora, weights
from site_agent.models.adapter_tensors import Ownership
from site_agent.models.classifier import CineClassifier
from site_agent.models.config import Frames
from site_agent.thresholds import Threshold
from site_agent.training import compute
from site_agent.training.compute import Compute
from site_agent.training.site import build, load_base

ModelPart = Literal["dual", "global", "local", "base"]
"""dual: what the site uses, global part and its own. global: what a new site would be given. base: no adapter at all."""
WORDS: Mapping[ModelPart, str] = {
    "dual": "the federation's global part and this site's own",
    "global": "the federation's global part alone",
    "local": "this site's own part alone",
    "base": "the classifier file as it is",
}
DISEASE = 1
"""Index of the class that a threshold is about, of two."""


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

    @property
    def margin(self) -> float:
        """logit(disease) - logit(normal): the score of two classes."""
        return float(self.logits[1]) - float(self.logits[0])

    def called(self, threshold: Threshold | None) -> str:
        """Return the class that is called; without a threshold the most probable one, of two from 0.5 on disease."""
        if threshold is None:
            return self.class_names[len(self.logits) - 1 - int(self.logits[::-1].argmax())]
        return self.class_names[int(threshold.calls_disease(float(self.probabilities[DISEASE])))]


@dataclass(frozen=True)
class Model:
    """A classifier that is ready to judge, with the size of image it takes, and what a user must know of it.

    private: whether it holds tensors of this site alone. version: the global adapter in it. threshold: None unless there are two
    classes. geometry: what images are prepared to; None if nobody said.
    """

    classifier: CineClassifier
    image_size: tuple[int, int, int]
    class_names: tuple[str, ...]
    part: ModelPart
    private: bool
    compute: Compute
    threshold: Threshold | None
    version: Adapter | None = None
    geometry: Geometry | None = None

    def judge(self, pair: Pair) -> Prediction:
        """Judge one patient: float32 (2, x, y, z) in [0, 1], as prepared. A larger volume is seen in windows."""
        padded = cohort.pad_to(pair, self.image_size)
        crops = torch.from_numpy(windows.split(padded, self.image_size))
        with torch.no_grad():
            found = [self.classifier(crop[None].to(self.compute.device)).float().cpu().numpy() for crop in crops]
        return Prediction(windows.combine_logits(np.concatenate(found)), self.class_names)

    def read_and_judge(self, ed: FrameFile, es: FrameFile) -> tuple[Prediction, str]:
        """Judge two frames, prepared here unless they are; and say which. Raises InputError if they cannot be used."""
        read = pairs.read(ed, es, self.geometry)
        return self.judge(read.pair), pairs.words(read.crop, self.geometry)

    def to_be_given_away(self) -> Self:
        """The same model with the common threshold, unless it is private all the same: a site's own is a fact of its patients."""
        if self.private or self.threshold is None:
            return self
        return replace(self, threshold=thresholds.common("a site's own stays at the site"))

    def facts(self) -> dict[str, Any]:
        """What is known of the model, as JSON values. No method here fits a calibration, and that is said."""
        return {
            "part": self.part,
            "private": self.private,
            "version": self.version.version if self.version else None,
            "threshold": self.threshold.to_jsonable() if self.threshold else None,
            "calibrated": False,
        }


def load(
    source: Path,
    size: str,
    folder: Path | None,
    part: ModelPart,
    *,
    frames: Frames = "stacked",
    geometry: Geometry | None = None,
    device: Device = "cpu",
) -> Model:
    """Load what a command asks for: a part of the model of a site's state folder, or a classifier file. Raises InputError."""
    if part == "base":
        return base_model(source, size, frames, geometry, device)
    if folder is None:
        raise InputError(f"--part {part} is of a site's model; name the agent's folder with --state")
    return site_model(source, size, folder, part, geometry, device)


def base_model(
    source: Path, size: str, frames: Frames, geometry: Geometry | None = None, device: Device = "cpu"
) -> Model:
    """A classifier file as it is (CineMA's own, a golden or a merged one); its heads must be in the file."""
    loaded = load_base(source, size, frames)
    if not loaded.heads:
        raise InputError(f"{source} has no classifier heads; give a --state folder of an agent, or classifier weights")
    classifier = CineClassifier.from_loaded(loaded)
    many = classifier.n_classes != len(cohort.CLASS_NAMES)
    names = tuple(f"class {i}" for i in range(classifier.n_classes)) if many else cohort.CLASS_NAMES
    chosen = compute.pick(device, "float32", loaded.model.embed_dim)
    return Model(
        classifier.eval().to(chosen.device),
        loaded.model.config.image_size,
        names,
        "base",
        private=False,
        compute=chosen,
        threshold=None if many else thresholds.common("a file says nothing of a site's validation cases"),
        geometry=geometry,
    )


def site_model(
    source: Path,
    size: str,
    folder: Path,
    part: ModelPart = "dual",
    geometry: Geometry | None = None,
    device: Device = "cpu",
) -> Model:
    """A site's model by its state folder: the newest global adapter, with the local part that goes with that version or without.

    What is the site's own counts in `global` only where the model cannot do without: a head of which nothing is shared.
    """
    contract = state.read_contract(folder)
    metadata = contract.manifest.metadata
    loaded = load_base(source, size, cast(Frames, metadata.frames))
    if weights.base_model_sha256(loaded.model) != metadata.base_model_sha256:
        raise ContractMismatch(
            f"{source} is not the base model of this federation; give the --weights it was trained on"
        )
    version = _version(folder)
    classifier = build(loaded, contract, 0)
    owned = Ownership.of(metadata, contract.recipe)
    adapter_tensors.load_global(classifier, owned, version.tensors)
    own = bool(adapter_tensors.local_tensors(classifier, owned))
    private = own and (part != "global" or needs_private_head(metadata))
    if private:
        adapter_tensors.load_local(classifier, owned, _local(folder))
    if part == "global":
        adapter_tensors.load_global(
            classifier, owned, version.tensors
        )  # the site may have other factors, which came with its head
        lora.open_gates(classifier)
    lora.use(classifier, parts_of(part, contract))
    chosen = compute.pick(device, "float32", loaded.model.embed_dim)
    return Model(
        classifier.eval().to(chosen.device),
        loaded.model.config.image_size,
        metadata.class_names,
        part,
        private,
        chosen,
        _threshold(folder, part, version, metadata),
        version,
        geometry or state_geometry(folder),
    )


def parts_of(part: ModelPart, contract: Contract) -> frozenset[Part]:
    """Which parts count. The dual model is what the method lets a site use. Raises InputError where there is no such part."""
    if part == "global":
        return GLOBAL
    if part == "dual":
        return contract.recipe.method.serves
    if contract.recipe.rank_local == 0:
        raise InputError(
            "this federation's recipe has no local low-rank part (rank_local 0); use --part dual or global"
        )
    return LOCAL


def needs_private_head(metadata: AdapterMetadata) -> bool:
    """Whether no model of this federation judges without a head that is the site's own."""
    return metadata.head_policy == "local"


def state_geometry(folder: Path) -> Geometry | None:
    """What the site's cohort was prepared to, by its report; None while there is none."""
    found = thresholds.read_report(folder).get("preparation")
    return None if found is None else Geometry(tuple(found["spacing_mm"]), tuple(found["size"]))


def _version(folder: Path) -> Adapter:
    if not (folder / state.GLOBAL).exists():
        raise InputError(f"{folder} holds no global adapter yet: the agent has not been sent one; start it, or wait")
    return Adapter.read(folder / state.GLOBAL)


def _local(folder: Path) -> Mapping[str, np.ndarray]:
    local = state.read_local_adapter(folder)
    if local is None:
        raise InputError(
            f"{folder} holds no local adapter that goes with its newest global one: the agent has not finished a round before "
            "it; try again after the next round, or use --part global"
        )
    return local


def _threshold(folder: Path, part: ModelPart, version: Adapter, metadata: AdapterMetadata) -> Threshold | None:
    if len(metadata.class_names) != len(cohort.CLASS_NAMES):
        return None
    if part in ("dual", "global"):
        return thresholds.of_site(folder, part, version)
    return thresholds.common("the local part alone is not judged by the agent")
