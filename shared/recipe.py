"""Recipes: installed training and aggregation methods whose numbers are parameters. No code crosses the wire.

A recipe fixes, as pure functions of what both sides know, what travels in a round. Its name says which factors of the global
low-rank part are trained and which of them are shared; the shared head always travels.

name          trains at the site     shares                 source
med-duallora  A and B                A and B                arXiv 2603.10967; with rank_local=0 FedAvg-LoRA ("FedIT", 2305.05644)
ffa-lora      B; A stays as drawn    B                      Sun et al. 2024, arXiv:2403.12313
fedsa-lora    A and B                A; B stays at the site Guo et al. 2024, arXiv:2410.01463
rolora        B in odd rounds,       what it trained        Chen et al. 2025, arXiv:2502.01755
              A in even ones

Each also trains the local part, unless rank_local is 0. Defaults that the paper's abstract (arXiv 2603.10967) does not fix are
this project's choice and say so.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from shared import codecs
from shared.adapter import AdapterManifest
from shared.canonical import canonical_json
from shared.errors import InputError
from shared.layout import Layout

Mode = Literal["joint", "alternating"]
Weighting = Literal["patients", "uniform"]
Augmentation = Literal["cinema", "narrow", "none"]
Factor = Literal["A", "B"]
CODECS = codecs.CODECS
INSTALLED = ("med-duallora", "ffa-lora", "fedsa-lora", "rolora")
BOTH: frozenset[Factor] = frozenset({"A", "B"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The dual adapter of Med-DualLoRA (arXiv 2603.10967): y = W0 x + b + (alpha_g/r_g) B_g A_g x + (alpha_l/r_l) B_l A_l x.

    Both parts are trained at the site, only the global one is shared and averaged. The global rank, alpha, blocks, targets
    and head policy stand in the adapter file; everything else a site needs to train is here. All numbers are this
    project's choice, tried on synthetic data (docs/results.md).
    """

    name: str = "med-duallora"
    mode: Mode = "joint"
    """joint: both parts in every step. alternating: half a round's steps train global and shared head, the others local."""
    rank_local: int = 8
    alpha_local: float = 16.0
    lr_global: float = 2e-3
    lr_local: float = 2e-3
    lr_head: float = 1e-2
    lr_floor: float = 0.05
    """Learning rates fall over the rounds along half a cosine to this share."""
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    clip_norm: float = 1.0
    local_epochs: int = 2
    batch_size: int = 16
    class_balanced: bool = True
    """Cross entropy weighted by the inverse class frequency at the site."""
    views: int = 2
    """Random views of a training case at a time, besides the plain one, whose frozen activations a site can keep. 0: a fresh random
    view in every epoch instead, of which nothing is kept."""
    view_epochs: int = 0
    """Epochs after which a random view gives way to a fresh one; 0: never."""
    augmentation: Augmentation = "cinema"
    """How far a random view may differ from the image: as CineMA trains, less, or no random views at all."""
    weighting: Weighting = "patients"
    server_lr: float = 1.0
    """eta in global_r = global_(r-1) + eta * sum_k w_k delta_k."""
    codec: str = "f32"
    """How an update's numbers are written (shared/codecs.py). What a lossy one loses, a site adds to its next update."""
    broadcast_codec: str = "f32"
    """How a round's change of the global part is written. A lossy one is applied by the aggregator before the version is made,
    so that all have the same version; what it loses is added to the next round's change."""
    topk_share: float = 0.05
    """Share of a tensor's numbers that the codec topk sends."""

    def __post_init__(self) -> None:
        for name, choices in (("mode", Mode), ("weighting", Weighting), ("augmentation", Augmentation)):
            allowed = get_args(choices)
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"recipe parameter {name} must be one of {', '.join(allowed)}, got '{getattr(self, name)}'"
                )
        for name in ("codec", "broadcast_codec"):
            if getattr(self, name) not in CODECS:
                raise InputError(
                    f"recipe parameter {name} must be one of {', '.join(CODECS)}, got '{getattr(self, name)}'"
                )
        for name, least in (("rank_local", 0), ("local_epochs", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise InputError(f"recipe parameter {name} must be at least {least}, got {getattr(self, name)}")
        if self.mode == "alternating" and not self.rank_local:
            raise InputError(
                "recipe parameter mode is alternating and rank_local 0: half of the steps would train nothing"
            )
        if not 0 < self.topk_share <= 1:
            raise InputError(f"recipe parameter topk_share must be above 0 and at most 1, got {self.topk_share}")
        for name in ("alpha_local", "clip_norm", "server_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"recipe parameter {name} must be positive, got {getattr(self, name)}")
        for name in ("lr_global", "lr_local", "lr_head", "weight_decay", "views", "view_epochs"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"recipe parameter {name} must not be negative, got {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"recipe parameter {name} must be at least 0 and below 1, got {getattr(self, name)}")
        if not 0 <= self.lr_floor <= 1:
            raise InputError(f"recipe parameter lr_floor must be a share from 0 to 1, got {self.lr_floor}")
        for field in fields(self):  # 16 and 16.0 are the same number: one text, one contract hash on both sides
            if isinstance(field.default, float):
                object.__setattr__(self, field.name, float(getattr(self, field.name)))

    def to_jsonable(self) -> dict[str, Any]:
        """Return name and parameters. One that came after protocol 1.1 stands only where it differs from its default, so that
        contracts of then keep their hash and agents of then their understanding."""
        values = asdict(self)
        defaults = {field.name: field.default for field in fields(self)}
        return {key: value for key, value in values.items() if key not in _LATER or value != defaults[key]}

    def parameters(self) -> bytes:
        """Return everything but the name as canonical JSON."""
        values = self.to_jsonable()
        del values["name"]
        return canonical_json(values)

    def trained(self, round_number: int) -> frozenset[Factor]:
        """Return the factors of the global part that sites train in this round."""
        if self.name == "rolora":
            return frozenset({"B" if round_number % 2 else "A"})
        return frozenset({"B"}) if self.name == "ffa-lora" else BOTH

    def shared(self, round_number: int) -> frozenset[Factor]:
        """Return the factors of the global part that travel in this round; a trained one that does not stays at the site."""
        return frozenset({"A"}) if self.name == "fedsa-lora" else self.trained(round_number)

    def travels(self, tensor: str, round_number: int) -> bool:
        """Return whether a tensor of the adapter file is part of this round's updates."""
        factor = factor_of(tensor)
        return factor is None or factor in self.shared(round_number)

    def upload_layout(self, manifest: AdapterManifest, round_number: int, sites: int) -> Layout:
        """Return what an update of this round holds, as the codec writes it."""
        del sites
        return self._layout(manifest, round_number, self.codec)

    def change_layout(self, manifest: AdapterManifest, round_number: int) -> Layout:
        """Return what the change that this round makes holds, as the broadcast codec writes it."""
        return self._layout(manifest, round_number, self.broadcast_codec)

    def _layout(self, manifest: AdapterManifest, round_number: int, codec: str) -> Layout:
        travelling = manifest.layout.only(lambda name: self.travels(name, round_number))
        return travelling.written_as(codecs.dtype(codec, self.topk_share))


_LATER = ("broadcast_codec", "topk_share", "view_epochs", "augmentation")


def factor_of(tensor: str) -> Factor | None:
    """Return which low-rank factor a tensor of an adapter file is; None for a head's."""
    if ".lora_A." in tensor:
        return "A"
    return "B" if ".lora_B." in tensor else None


def make(name: str, parameters: Mapping[str, Any]) -> Recipe:
    """Return an installed recipe with these numbers.

    Raises InputError for a recipe that is not installed here, an unknown parameter, or a value of another type.
    """
    if name not in INSTALLED:
        raise InputError(
            f"recipe '{name}' is not installed here (installed: {', '.join(INSTALLED)}); upgrade med-duallora"
        )
    types = {f.name: type(getattr(Recipe(), f.name)) for f in fields(Recipe) if f.name != "name"}
    values: dict[str, Any] = {}
    for key, value in parameters.items():
        if key not in types:
            raise InputError(f"recipe '{name}' has no parameter '{key}' (it has: {', '.join(sorted(types))})")
        values[key] = _coerce(key, value, types[key])
    return Recipe(name=name, **values)


_KIND = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _coerce(key: str, value: Any, kind: type) -> Any:
    """Accept numbers as text (from a command line), integers where a float is meant, and nothing else."""
    try:
        if kind is bool:
            return {"true": True, "false": False, True: True, False: False}[value]
        if isinstance(value, bool) or (kind is int and isinstance(value, float)):
            raise ValueError
        return kind(value)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise InputError(f"recipe parameter {key} must be {_KIND[kind]}, got {str(value)[:80]!r}") from None
