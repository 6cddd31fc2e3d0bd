"""Recipes: installed training and aggregation methods whose numbers are parameters. No code crosses the wire.

A recipe fixes, as pure functions of what both sides know, what a site trains and what travels in a round. Its name is that
of a method in `shared.methods`, where source and formula stand. Defaults that the paper's abstract (arXiv:2603.10967) does not
fix are this project's choice and say so.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from shared import codecs, compatibility
from shared.adapter import AdapterManifest, AdapterMetadata
from shared.canonical import canonical_json
from shared.errors import InputError
from shared.layout import Layout
from shared.methods import (
    GLOBAL_ALONE,
    GLOBAL_BESIDE_LOCAL,
    LOCAL_BESIDE_GLOBAL,
    METHODS,
    Factor,
    Method,
    Phase,
    Rule,
)

HOPELESS_EPSILON = 50.0
"""An epsilon above which nothing is protected: no site agrees to a larger budget."""
Mode = Literal["joint", "alternating", "non-interference"]
Weighting = Literal["patients", "capped", "uniform"]
Augmentation = Literal["cinema", "narrow", "none"]
ServerOptimiser = Literal["sgd", "momentum", "adam", "yogi"]
Robust = Literal[
    "none", "trimmed-distance", "geometric-median", "krum", "multi-krum", "cosine-gate", "median", "trimmed-mean"
]
CODECS = codecs.CODECS
INSTALLED = tuple(name for name, method in METHODS.items() if method.federated)
"""What a federation can be run by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The dual adapter of Med-DualLoRA (arXiv 2603.10967): y = W0 x + b + (alpha_g/r_g) B_g A_g x + (alpha_l/r_l) B_l A_l x.

    Both parts are trained at the site, only the global one is shared and averaged. The global rank, alpha, blocks, targets
    and head policy stand in the adapter file; everything else a site needs to train is here. All numbers are this
    project's choice, tried on synthetic data (docs/results.md).
    """

    name: str = "med-duallora"
    mode: Mode = "joint"
    """joint: both parts in every step. alternating: half a round's steps train global and shared head, the others local.
    non-interference: all epochs train global and shared head with everything private off, then all epochs again the private parts
    beside them; what leaves, figures too, does not depend on anything private that was trained."""
    rank_local: int = 8
    """r_l, rank of the site's own part; 0: no local part."""
    alpha_local: float = 16.0
    """alpha_l; the local product is scaled by alpha_l / r_l."""
    lr_global: float = 2e-3
    """Learning rate of the global part in the first round."""
    lr_local: float = 2e-3
    """Of the local part."""
    lr_head: float = 1e-2
    """Of the head, shared and private."""
    lr_floor: float = 0.05
    """Learning rates fall over the rounds along half a cosine to this share."""
    weight_decay: float = 0.0
    """Of AdamW; gates have none."""
    beta1: float = 0.9
    """Of AdamW."""
    beta2: float = 0.95
    """Of AdamW."""
    clip_norm: float = 1.0
    """Largest norm of a step's gradient."""
    local_epochs: int = 2
    """Epochs over a site's training cases in a round."""
    batch_size: int = 16
    """Cases in a step."""
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
    """w_k of a site's n_k training patients: n_k / sum n; the same with no n_k above weight_cap times their median; or 1 / K."""
    weight_cap: float = 1.0
    """Of weighting capped: how many times the median n_k counts at most."""
    server_lr: float = 1.0
    """eta in global_r = global_(r-1) + eta * sum_k w_k delta_k."""
    codec: str = "f32"
    """How an update's numbers are written (shared/codecs.py). What a lossy one loses, a site adds to its next update."""
    broadcast_codec: str = "f32"
    """How a round's change of the global part is written. A lossy one is applied by the aggregator before the version is made,
    so that all have the same version; what it loses is added to the next round's change."""
    topk_share: float = 0.05
    """Share of a tensor's numbers that the codec topk sends."""
    logit_adjustment: bool = False
    """Add the logarithms of the site's class frequencies to the logits in training (Menon et al. 2021, arXiv:2007.07314), so
    that probability 0.5 is the balanced threshold of the logits without them."""
    proximal: float = 0.0
    """mu of FedProx (Li et al. 2020, arXiv:1812.06127): + mu/2 || w - w_received ||^2 over what is trained and shared."""
    ditto_lambda: float = 0.1
    """lambda of ditto-lora."""
    orthogonality: float = 0.0
    """+ this times the mean over layers of || dW_g^T dW_l ||^2 / (|| dW_g ||^2 || dW_l ||^2)."""
    local_decay: float = 0.0
    """+ this / 2 times the sum over layers of || dW_l ||^2."""
    shrinkage_patients: float = 0.0
    """The same with this / n_k in its place: a Gaussian prior on the local part, which counts as much as so many patients."""
    local_norm_cap: float = 0.0
    """Most of || dW_l || / || W0 || in each layer, kept to after every step; 0: no limit."""
    gate: bool = False
    """Train at the site a factor for each part of each layer, which starts at 1 and stays there."""
    server_optimiser: ServerOptimiser = "sgd"
    """How the weighted mean of the deltas is applied (Reddi et al. 2021, arXiv:2003.00295, algorithm 2; momentum: Hsu et al. 2019,
    arXiv:1909.06335)."""
    server_beta1: float = 0.9
    """Momentum of the server optimiser."""
    server_beta2: float = 0.99
    """Decay of the squared changes that adam and yogi keep."""
    server_tau: float = 1e-3
    """What adam and yogi add to their denominator."""
    robust: Robust = "none"
    """What takes the place of the weighted mean so that a few sites cannot move it at will (aggregator/robust.py)."""
    attackers: int = 0
    """How many such sites the rule is to withstand, where it is told a number."""
    cosine_least: float = 0.0
    """cosine-gate: the least median cosine of a site's change with the others'."""
    norm_gate: float = 0.0
    """Updates are quarantined that are more than so many times as large as the median one of the round; 0: none. It needs five
    updates to say anything."""
    dp_noise: float = 0.0
    """Noise multiplier sigma of DP-SGD (Abadi et al. 2016, arXiv:1607.00133) on what is shared; 0: no differential privacy."""
    dp_clip: float = 1.0
    """C: the largest norm of one patient's gradient, over everything that is shared."""
    dp_delta: float = 1e-5
    """delta of (epsilon, delta); a site refuses 1 / n_k or more."""
    dp_epsilon: float = 0.0
    """What a site may spend in all at this delta; it stops before it would pass it. A site refuses more than HOPELESS_EPSILON."""

    def __post_init__(self) -> None:
        _check_installed(self.name)
        for name, choices in (
            ("mode", Mode),
            ("weighting", Weighting),
            ("augmentation", Augmentation),
            ("server_optimiser", ServerOptimiser),
            ("robust", Robust),
        ):
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
        for name, (least, most) in _WHOLE.items():
            if not least <= getattr(self, name) <= most:
                bound = f"at least {least}" if getattr(self, name) < least else f"at most {most}"
                raise InputError(f"recipe parameter {name} must be {bound}, got {getattr(self, name)}")
        if not 0 < self.topk_share <= 1:
            raise InputError(f"recipe parameter topk_share must be above 0 and at most 1, got {self.topk_share}")
        for name in ("alpha_local", "clip_norm", "server_lr", "weight_cap", "server_tau", "dp_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"recipe parameter {name} must be positive, got {getattr(self, name)}")
        for name in _NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"recipe parameter {name} must not be negative, got {getattr(self, name)}")
        for name in ("beta1", "beta2", "server_beta1", "server_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"recipe parameter {name} must be at least 0 and below 1, got {getattr(self, name)}")
        if not -1 <= self.cosine_least <= 1 or not 0 < self.dp_delta < 1:
            raise InputError(
                f"recipe parameters cosine_least and dp_delta must be a cosine and a probability, got {self.cosine_least} and "
                f"{self.dp_delta}"
            )
        if 0 < self.norm_gate <= 1:
            raise InputError(f"recipe parameter norm_gate must be 0 or above 1, got {self.norm_gate}")
        if not 0 <= self.lr_floor <= 1:
            raise InputError(f"recipe parameter lr_floor must be a share from 0 to 1, got {self.lr_floor}")
        for field in fields(self):  # 16 and 16.0 are the same number: one text, one contract hash on both sides
            if isinstance(field.default, float):
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        compatibility.check(self)

    def check_adapter(self, adapter: AdapterMetadata) -> None:
        """Raise InputError if a federation cannot train this adapter by this recipe, saying which of the two to change."""
        method = self.method
        if any(method.trained) and not adapter.rank:
            raise InputError(
                f"recipe '{self.name}' trains low-rank factors and the adapter has rank 0; use a higher rank"
            )
        if self.orthogonality and not adapter.rank:
            raise InputError(
                "recipe parameter orthogonality holds the local part apart from a global one, and the adapter has rank 0; use a "
                "higher rank, or orthogonality 0"
            )
        if method.dense and not adapter.dense:
            raise InputError(
                f"recipe '{self.name}' trains the base model's own weights and the adapter names none; make one with "
                "`site-agent init-adapter --dense all`"
            )
        if (method.rule == "exact") != bool(adapter.residual_rank):
            what = "needs an adapter with" if method.rule == "exact" else "has no use for an adapter with"
            raise InputError(
                f"recipe '{self.name}' {what} a residual; make one with `site-agent init-adapter "
                f"--residual-rank {8 * (adapter.rank or 1) if method.rule == 'exact' else 0}`"
            )
        if self.mode == "non-interference" and adapter.head_policy == "local":
            raise InputError(
                "mode non-interference trains the global part with a head that is shared, and the adapter's head policy is local; "
                "make one with `site-agent init-adapter --head-policy global+local-bias`"
            )
        if any(phase.anchored for phase in method.passes):
            own, shared = (
                (self.rank_local, self.alpha_local, "global+local"),
                (adapter.rank, adapter.alpha, adapter.head_policy),
            )
            if own != shared:
                raise InputError(
                    f"recipe '{self.name}' draws the site's own part to the shared one, so rank_local, alpha_local and head "
                    f"policy must be {shared[0]}, {shared[1]:g} and global+local, got {own[0]}, {own[1]:g} and {shared[2]}"
                )

    @property
    def method(self) -> Method:
        """What the recipe's name stands for."""
        return METHODS[self.name]

    @property
    def rule(self) -> Rule:
        """What the aggregator makes of factors: the method's rule, unless a robust one judges products."""
        return "products" if self.robust in compatibility.PRODUCT_RULES else self.method.rule

    def passes(self) -> tuple[tuple[Phase, ...], ...]:
        """Return the passes of a round through its epochs; the phases of a pass share its steps evenly, one after the other."""
        if self.mode == "alternating":
            return ((GLOBAL_BESIDE_LOCAL, LOCAL_BESIDE_GLOBAL),)
        if self.mode == "non-interference":
            return (GLOBAL_ALONE,), (LOCAL_BESIDE_GLOBAL,)
        return tuple((phase,) for phase in self.method.passes)

    def to_jsonable(self) -> dict[str, Any]:
        """Return name and parameters. One that came after protocol 1.1 stands only where it differs from its default, so that
        contracts of then keep their hash and agents of then their understanding."""
        values = asdict(self)
        defaults = {field.name: field.default for field in fields(self)}
        return {key: value for key, value in values.items() if key not in _SINCE_1_2 or value != defaults[key]}

    def parameters(self) -> bytes:
        """Return everything but the name as canonical JSON."""
        values = self.to_jsonable()
        del values["name"]
        return canonical_json(values)

    def trained(self, round_number: int) -> frozenset[Factor]:
        """Return the factors of the global part that sites train in this round."""
        turns = self.method.trained
        return turns[(round_number - 1) % len(turns)]

    def shared(self, round_number: int) -> frozenset[Factor]:
        """Return the factors of the global part that travel in this round; a trained one that does not stays at the site."""
        return self.trained(round_number) - self.method.kept

    def travels(self, tensor: str, round_number: int) -> bool:
        """Return whether a tensor of the adapter file is part of this round's updates."""
        if not self.method.federated:
            return False
        factor = factor_of(tensor)
        return factor in self.shared(round_number) if factor else not is_residual(tensor)

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


_SINCE_1_2 = (
    *("broadcast_codec", "topk_share", "view_epochs", "augmentation", "weight_cap", "logit_adjustment", "proximal"),
    *("ditto_lambda", "orthogonality", "local_decay", "shrinkage_patients", "local_norm_cap", "gate"),
    *(
        "server_optimiser",
        "server_beta1",
        "server_beta2",
        "server_tau",
        "robust",
        "attackers",
        "cosine_least",
        "norm_gate",
    ),
    *("dp_noise", "dp_clip", "dp_delta", "dp_epsilon"),
)
_WHOLE = {
    "rank_local": (0, 1024),
    "local_epochs": (1, 1_000_000),
    "batch_size": (1, 1 << 16),
    "views": (0, 1000),
    "view_epochs": (0, 1_000_000),
    "attackers": (0, 10_000),
}
"""Least and most: what comes from the other side must not make a site allocate or compute without end."""
_NOT_NEGATIVE = (
    *("lr_global", "lr_local", "lr_head", "weight_decay", "proximal", "ditto_lambda"),
    *("orthogonality", "local_decay", "shrinkage_patients", "local_norm_cap", "norm_gate", "dp_noise", "dp_epsilon"),
)


def factor_of(tensor: str) -> Factor | None:
    """Return which factor of the global part a tensor of an adapter file is; None for a head's, a residual's or a dense one."""
    if ".lora_A." in tensor:
        return "A"
    return "B" if ".lora_B." in tensor else None


def is_residual(tensor: str) -> bool:
    """Return whether a tensor belongs to what the aggregator alone writes: the residual of an exact rule."""
    return RESIDUAL in tensor


RESIDUAL = ".lora_residual_"
"""In the names `<module>.lora_residual_A.weight`, `<module>.lora_residual_B.weight`."""


def make(name: str, parameters: Mapping[str, Any]) -> Recipe:
    """Return an installed recipe with these numbers.

    Raises InputError for a recipe that is not installed here, an unknown parameter, or a value of another type.
    """
    _check_installed(name)
    types = {f.name: type(getattr(Recipe(), f.name)) for f in fields(Recipe) if f.name != "name"}
    values: dict[str, Any] = {}
    for key, value in parameters.items():
        if key not in types:
            raise InputError(f"recipe '{name}' has no parameter '{key}' (it has: {', '.join(sorted(types))})")
        values[key] = _coerce(key, value, types[key])
    return Recipe(name=name, **values)


def _check_installed(name: str) -> None:
    if name not in METHODS:
        raise InputError(
            f"recipe '{name}' is not installed here (installed: {', '.join(INSTALLED)}); upgrade med-duallora"
        )


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
