"""One site's model and data together: what the agent's loop calls, without a word about networks or files of state."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from safetensors.numpy import save

from shared import memory
from shared.adapter import Adapter
from shared.canonical import canonical_json, sha256_hex
from shared.contract import Contract
from shared.errors import ContractMismatch, InputError
from shared.methods import GLOBAL
from site_agent.cache.activations import Cache
from site_agent.cache.folder import CacheFolder
from site_agent.config import SiteConfig
from site_agent.data.cases import Case
from site_agent.data.cohort import CLASS_NAMES, Cohort, labels
from site_agent.models import adapter_tensors, lora, weights
from site_agent.models.adapter_tensors import Ownership
from site_agent.models.classifier import CineClassifier
from site_agent.models.config import FRAMES, ConvViTConfig, Frames
from site_agent.models.head import HeadPolicy
from site_agent.models.lora import DualLoRAConfig
from site_agent.privacy.stream import Stream
from site_agent.training import arms, augment, evaluate, filled, local, schedule, views
from site_agent.training.activations import Activations
from site_agent.training.arms import Arm, Compared
from site_agent.training.checkpoint import Binding, Checkpoints
from site_agent.training.compute import Compute, pick
from site_agent.training.evaluate import Judged, Scored
from site_agent.training.micro_batch import MicroBatch
from site_agent.training.parallel import ALONE, Group
from site_agent.training.resident import Resident
from site_agent.training.schedule import Position
from site_agent.training.views import View

Tensors = dict[str, np.ndarray]


def load_base(source: Path, size: str, frames: Frames, *, warn: bool = True) -> weights.LoadedBackbone:
    """Load the frozen base model as a federation's `frames` wants it. Raises InputError for frames there are not.

    `warn`: say so if these frames and a frozen stem cannot see motion.
    """
    if frames not in FRAMES:
        raise InputError(f"frames must be one of {', '.join(FRAMES)}, got '{frames}'")
    config = ConvViTConfig.of_size(size) if size else None
    return weights.load_backbone(source, config, frames, stem_frozen=warn)


@dataclass(frozen=True)
class Trained:
    """What a round of local training left.

    global_tensors: exactly the tensors that travel in this round, to be sealed; none of them is private.
    local_tensors: everything private, also what the recipe trains of the global part and does not share.
    metrics: aggregate figures that may be told; none under differential privacy.
    """

    global_tensors: Tensors
    local_tensors: Tensors
    metrics: dict[str, float]


class SiteTrainer:
    """Backbone, dual adapter, cohort and activations of one site under one contract.

    With a group each of the site's processes has one, and calls in the same order what computes (`train`, `validate`,
    `compare_arms`, `fill_cache`). Raises ContractMismatch if the site's base model is not the federation's, InputError if its
    cohort cannot be trained on.
    """

    def __init__(
        self,
        config: SiteConfig,
        site: str,
        contract: Contract,
        loaded: weights.LoadedBackbone,
        cohort: Cohort,
        group: Group = ALONE,
    ) -> None:
        self._group = group
        self.contract, self.recipe = contract, contract.recipe
        if self.recipe.dp_noise and group.size > 1:
            raise InputError(
                f"differential privacy trains a site in one process, and this one has {group.size}; start the agent "
                "without torchrun"
            )
        self.metadata = contract.manifest.metadata
        self.owned = Ownership.of(self.metadata, self.recipe)
        self.network = loaded.model.config
        self._check_base(loaded)
        if len(self.metadata.class_names) != len(CLASS_NAMES):
            raise ContractMismatch(
                f"the federation's adapter tells {len(self.metadata.class_names)} classes apart, cohorts have "
                f"{len(CLASS_NAMES)} ({', '.join(CLASS_NAMES)}); the coordinator must make another adapter"
            )
        self.seed = _site_seed(config.seed, site, contract.federation)
        self.cohort = cohort
        self.train_cases = self.cohort.train(without_fold=config.validation_fold)
        self.validation_cases = self.cohort.validation(config.validation_fold)
        compute = pick(config.device, config.precision, loaded.model.embed_dim, group.gpu)
        self.model = build(loaded, contract, self.seed).to(compute.device)
        self._initial_local = adapter_tensors.local_tensors(self.model, self.owned)
        self.activations = Activations(
            self.model,
            self.network.image_size,
            config.seed,
            compute,
            self._cache(config, compute),
            getattr(torch, config.cache_dtype),
            augment.RANGES.get(self.recipe.augmentation, augment.RANGES["cinema"]),
            Resident.on(compute),
        )
        self._micro_batch = MicroBatch(config.micro_batch, make_room=self.activations.make_room)

    @classmethod
    def load(cls, config: SiteConfig, site: str, contract: Contract, cohort: Cohort, group: Group = ALONE) -> Self:
        """Return a trainer on the base model that the settings name; errors as above."""
        frames: Any = contract.manifest.metadata.frames
        return cls(config, site, contract, load_base(config.weights, config.weights_size, frames), cohort, group)

    @property
    def fingerprint(self) -> str:
        """What must be the same in all processes of a site for them to train one model."""
        cases = (*self.train_cases, *self.validation_cases, *self.cohort.test())
        return f"{self.seed}, {self.activations.seed}, {_digest(cases)}"

    def made_from(self) -> str:
        """SHA-256 of all that a round's update is a function of besides contract, round, version and key, hex: training cases with
        their images and labels, and how numbers are computed here."""
        compute = self.activations.compute
        cases = [[case.key, case.label, self.activations.image_digest(case)] for case in self.train_cases]
        how = [self.seed, self.activations.seed, str(self.activations.stored), torch.__version__, repr(compute)]
        return sha256_hex(canonical_json([cases, how, torch.get_num_threads()]))

    @property
    def training_patients(self) -> int:
        """Patients trained on: what the site's weight is computed from."""
        return len(self.train_cases)

    def fill_cache(
        self,
        round_number: int,
        should_stop: Callable[[], bool] = lambda: False,
        on_progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> int:
        """Compute the frozen activations that are missing of what is asked for next, or until asked to stop.

        First come the views of round `round_number` in the order of its steps, then the validation cases, the test cases, and the
        views of later rounds. Returns how many were computed.
        """
        rounds = range(round_number, self.contract.policy.rounds + 1)
        views = [view for number in rounds[:1] for view in self._views(number)]
        views += [
            view for case in (*self.validation_cases, *self.cohort.test()) for view in self.activations.windows(case)
        ]
        views += [view for number in rounds[1:] for view in self._views(number)]
        return filled.fill(self.activations, list(dict.fromkeys(views)), self._group, should_stop, on_progress)

    def _views(self, round_number: int) -> list[View]:
        """What a round may ask for; under differential privacy any patient's views, whoever will be drawn."""
        recipe, epochs = self.recipe, self.recipe.local_epochs
        batches = schedule.batches(self.train_cases, recipe, self._position(round_number))
        found = [view for batch in batches for view in batch.views]
        if recipe.dp_noise:
            first = (round_number - 1) * epochs
            found += [
                view
                for epoch in range(first, first + epochs)
                for case in self.train_cases
                for view in views.at_a_time(case, recipe, self.seed, epoch)
            ]
        return found

    def _position(self, round_number: int) -> Position:
        return Position(round_number, self.contract.policy.rounds, self.seed)

    def _cache(self, config: SiteConfig, compute: Compute) -> Cache | None:
        """What the base model's activations are kept in; None if nothing is to be kept."""
        if not config.cache_mb:
            return None
        facts = {
            "base_model": self.metadata.base_model_sha256,
            "frames": self.metadata.frames,
            "image_size": self.network.image_size,
            "first_block": self.model.first_block,
            "preprocessing": self.cohort.preparation.preprocessing_hash,
            "stored": config.cache_dtype,
            "computed": f"{compute.device.type}, torch {torch.__version__}",
        }
        return Cache.of(CacheFolder(config.cache_folder, config.cache_mb * 1_000_000), facts)

    def facts(self) -> dict[str, Any]:
        """Counts of the cohort: how many cases there are, how many are normal, how they are split, how they were prepared."""
        cases, preparation = self.cohort.train(), self.cohort.preparation
        return {
            "cases": len(cases),
            "healthy_share": sum(c.label == 0 for c in cases) / len(cases),
            "training_patients": self.training_patients,
            "validation_patients": len(self.validation_cases),
            "test_patients": len(self.cohort.test()),
            "preparation": {"spacing_mm": list(preparation.spacing_mm), "size": list(preparation.size)},
        }

    def initial_local(self) -> Tensors:
        """Private tensors before the first round: the local A from the site's seed, every B zero, private biases zero."""
        return dict(self._initial_local)

    def train(
        self,
        round_number: int,
        received: Adapter,
        local_before: Mapping[str, np.ndarray],
        hooks: local.Hooks,
        checkpoints: Checkpoints | None = None,
        stream: Stream | None = None,
    ) -> Trained:
        """Train one round from the received global and the site's own local part, or go on where a checkpoint of exactly
        this stands. `stream`: what the noise of differential privacy is drawn from. Raises local.Stopped."""
        self._load(received, local_before)
        binding = self._binding(round_number, received, local_before, stream.id if stream else "")
        keeper = checkpoints.keeper(binding) if checkpoints else None
        self.activations.begin_round()
        memory.give_back()  # of the frozen blocks, whose passing values are larger than those of training
        loss = local.train_round(
            self.model,
            self.activations,
            self.train_cases,
            self.recipe,
            self.owned,
            self._position(round_number),
            hooks=hooks,
            micro_batch=self._micro_batch,
            keeper=keeper,
            group=self._group,
            stream=stream,
        )
        shared = adapter_tensors.global_tensors(self.model, self.owned)
        return Trained(
            {name: value for name, value in shared.items() if self.recipe.travels(name, round_number)},
            adapter_tensors.local_tensors(self.model, self.owned),
            {} if self.recipe.dp_noise else {"train_loss": loss},
        )

    def _binding(
        self, round_number: int, received: Adapter, local_before: Mapping[str, np.ndarray], key: str
    ) -> Binding:
        return Binding(
            contract=self.contract.sha256,
            round=round_number,
            base_version=received.version,
            received=received.digest,
            local=sha256_hex(save(dict(local_before))),
            cases=_digest(self.train_cases),
            seed=self.seed,
            key=key,
        )

    def validate(self, adapter: Adapter, local_now: Mapping[str, np.ndarray]) -> Judged:
        """Judge the model on the validation cases.

        In mode non-interference the global part alone is what is spoken of outside; under differential privacy nothing is.
        """
        if not self.validation_cases:
            return Judged({}, {})
        self._load(adapter, local_now)
        serves = self.recipe.method.serves
        speaks = GLOBAL if self.recipe.mode == "non-interference" else serves
        states = [lambda parts=parts: lora.use(self.model, parts) for parts in (speaks, serves)]
        known = labels(self.validation_cases)
        spoken, own = (
            Scored(found, known)
            for found in evaluate.scores(self.model, self.activations, self.validation_cases, states, self._group)
        )
        told = {} if self.recipe.dp_noise else evaluate.reportable(evaluate.figures(spoken, spoken))
        return Judged(evaluate.figures(own, own), told)

    def score(self, adapter: Adapter, local_now: Mapping[str, np.ndarray], cases: Sequence[Case]) -> Scored:
        """Scores of cases under the dual model, beside their labels."""
        self._load(adapter, local_now)
        return Scored.of(self.model, self.activations, cases, self._group)

    def compare_arms(
        self, initial: Adapter, final: Adapter, local_now: Mapping[str, np.ndarray], hooks: local.Hooks
    ) -> Compared:
        """Judge all four arms on validation and test cases."""
        model, rounds = self.model, self.contract.policy.rounds
        self._load(final, local_now)
        dual = Arm.of(model)
        # a version has values of its own for what the site trains of the global part and keeps
        adapter_tensors.load_global(model, self.owned, final.tensors)
        arms.switch_local_off(model)
        global_only = Arm.of(model)
        self._load(initial, self.initial_local())
        self._group.gathered(
            lambda: arms.fit_probe(model, self.activations, self.train_cases, self.recipe, rounds, self.seed)
        )
        probe = Arm.of(model)
        self._load(initial, self.initial_local())
        arms.fit_alone(
            model,
            self.activations,
            self.train_cases,
            self.recipe,
            self.owned,
            rounds,
            self.seed,
            hooks,
            self._micro_batch,
            self._group,
        )
        compared = {"probe": probe, "alone": Arm.of(model), "global": global_only, "dual": dual}
        return arms.compare(model, self.activations, compared, self.validation_cases, self.cohort.test(), self._group)

    def _load(self, adapter: Adapter, local_tensors: Mapping[str, np.ndarray]) -> None:
        lora.use(self.model, self.recipe.method.serves)
        adapter_tensors.load_global(self.model, self.owned, adapter.tensors)
        adapter_tensors.load_local(self.model, self.owned, local_tensors)

    def _check_base(self, loaded: weights.LoadedBackbone) -> None:
        found, wanted = weights.base_model_sha256(loaded.model), self.metadata.base_model_sha256
        if found != wanted:
            raise ContractMismatch(
                f"this site's base model has hash {found[:12]}, the federation's is {wanted[:12]}; "
                "set `weights` to the file that the coordinator named"
            )


def build(loaded: weights.LoadedBackbone, contract: Contract, seed: int) -> CineClassifier:
    """Return base model + dual adapters, made from `loaded` in place.

    The local part is drawn from `seed`; the global part is whatever the next adapter file says.
    """
    metadata, recipe = contract.manifest.metadata, contract.recipe
    model = CineClassifier.from_loaded(loaded, len(metadata.class_names), torch.Generator().manual_seed(seed))
    config = DualLoRAConfig(
        blocks=metadata.blocks,
        targets=metadata.target_modules,
        rank_global=metadata.rank,
        rank_local=recipe.rank_local,
        alpha_global=metadata.alpha,
        alpha_local=recipe.alpha_local,
        head=cast(HeadPolicy, metadata.head_policy),
        rank_residual=metadata.residual_rank or 0,
        gated=recipe.gate or recipe.method.fused,
        dense=metadata.dense or (),
    )
    lora.attach(model, config, torch.Generator().manual_seed(seed))
    if any(phase.anchored for phase in recipe.method.passes):
        adapter_tensors.counterparts(model)  # or there is none, and what to change is said now
    lora.use(model, recipe.method.serves)
    return model.eval()


def _digest(cases: Sequence[Case]) -> str:
    return sha256_hex(canonical_json([[case.key, case.label] for case in cases]))


def _site_seed(seed: int, site: str, federation: str) -> int:
    """Every site draws its own local adapter and order of cases, whatever seed its file names."""
    return int(sha256_hex(canonical_json([seed, site, federation]))[:8], 16)
