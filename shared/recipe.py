"""Recipes: installed training and aggregation methods whose numbers are parameters. No code crosses the wire.

A recipe fixes, as pure functions of what both sides know, what travels in a round. Defaults that the paper's abstract
(arXiv 2603.10967) does not fix are this project's choice and say so.
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
CODECS = tuple(codecs.CODECS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Med-DualLoRA (arXiv 2603.10967): y = W0 x + b + (alpha_g/r_g) B_g A_g x + (alpha_l/r_l) B_l A_l x.

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
    """Augmented views kept per training case, besides the plain one; 0 trains on the plain image only."""
    weighting: Weighting = "patients"
    server_lr: float = 1.0
    """eta in global_r = global_(r-1) + eta * sum_k w_k delta_k."""
    codec: str = "f32"
    """How an update's numbers are written (shared/codecs.py). What a lossy one loses, a site adds to its next update."""

    def __post_init__(self) -> None:
        for name in ("mode", "weighting"):
            allowed = get_args({"mode": Mode, "weighting": Weighting}[name])
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"recipe parameter {name} must be one of {', '.join(allowed)}, got '{getattr(self, name)}'"
                )
        if self.codec not in CODECS:
            raise InputError(f"recipe parameter codec must be one of {', '.join(CODECS)}, got '{self.codec}'")
        for name in ("rank_local", "local_epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"recipe parameter {name} must be at least 1, got {getattr(self, name)}")
        for name in ("alpha_local", "clip_norm", "server_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"recipe parameter {name} must be positive, got {getattr(self, name)}")
        for name in ("lr_global", "lr_local", "lr_head", "weight_decay", "views"):
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

    def parameters(self) -> bytes:
        """Return everything but the name as canonical JSON."""
        values = asdict(self)
        del values["name"]
        return canonical_json(values)

    def upload_layout(self, manifest: AdapterManifest, round_number: int, sites: int) -> Layout:
        """Return what an update of this round holds: here every global tensor as the codec writes it, whatever the round."""
        del round_number, sites
        return manifest.layout.written_as(codecs.CODECS[self.codec])

    def broadcast_layout(self, manifest: AdapterManifest, version: int) -> Layout:
        """Return what a download of this version holds: here every global tensor."""
        del version
        return manifest.layout


INSTALLED = ("med-duallora",)


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
