"""What a site takes part in: federation, base model, adapter, recipe and round policy, with one hash over all of it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from shared import compatibility, json_text
from shared.adapter import AdapterManifest
from shared.canonical import canonical_json, sha256_hex
from shared.errors import InputError
from shared.names import plain
from shared.recipe import Recipe, make

ALLOWED_METRICS = (
    "train_loss",
    "loss",
    "auc",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
)
"""Aggregate figures that may leave a site, and no others: refused by name at both ends."""

ARMS = ("probe", "alone", "global", "dual")
"""The models that a site compares at the end: what did federation bring it? (site_agent/training/arms.py)"""

MAX_CONTRACT = 512 << 10
MAX_CONTRACT_VALUES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPolicy:
    """When rounds open and close. Times in seconds."""

    rounds: int = 8
    invited: int = 3
    quorum: int = 3
    deadline_s: float = 3600.0
    grace_s: float = 300.0

    def __post_init__(self) -> None:
        for name in ("rounds", "invited", "quorum"):
            if type(getattr(self, name)) is not int:  # NaN would pass every comparison
                raise InputError(f"{name} must be a whole number, got {str(getattr(self, name))[:80]!r}")
        if self.rounds < 1:
            raise InputError(f"rounds must be at least 1, got {self.rounds}")
        if not 1 <= self.quorum <= self.invited:
            raise InputError(f"quorum must be between 1 and invited ({self.invited}), got {self.quorum}")
        if not 0 < self.deadline_s < math.inf or not 0 <= self.grace_s < math.inf:
            raise InputError(
                f"deadline must be positive and grace not negative, got {self.deadline_s} s and {self.grace_s} s"
            )
        for name in ("deadline_s", "grace_s"):  # 3600 in a file and 3600.0 off the wire are one contract, one hash
            object.__setattr__(self, name, float(getattr(self, name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """Everything a site agrees to; the same value on both sides has the same hash. Raises InputError if adapter, recipe and policy
    do not fit each other."""

    federation: str
    adapter_digest: str
    manifest: AdapterManifest
    recipe: Recipe
    policy: RoundPolicy

    def __post_init__(self) -> None:
        self.recipe.check_adapter(self.manifest.metadata)
        needed = compatibility.robust_quorum(self.recipe)
        if self.policy.quorum < needed:
            raise InputError(
                f"robust rule {self.recipe.robust} withstands {self.recipe.attackers} attacker(s) in rounds of at least {needed} "
                f"updates, and the quorum is {self.policy.quorum}; raise the quorum or lower attackers"
            )

    def to_bytes(self) -> bytes:
        """Return the canonical JSON of all of it."""
        return canonical_json(
            {
                "federation": self.federation,
                "adapter": self.adapter_digest,
                "manifest": self.manifest.to_bytes().decode(),
                "recipe": self.recipe.to_jsonable(),
                "policy": asdict(self.policy),
                "metrics": list(ALLOWED_METRICS),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Contract":
        """Read what `to_bytes` made. Raises InputError if it is something else."""
        try:
            value = json_text.read(data, MAX_CONTRACT, MAX_CONTRACT_VALUES)
            recipe = dict(value["recipe"])
            return cls(
                federation=str(value["federation"]),
                adapter_digest=str(value["adapter"]),
                manifest=AdapterManifest.from_bytes(value["manifest"].encode()),
                recipe=make(str(recipe.pop("name")), recipe),
                policy=RoundPolicy(**value["policy"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"a contract cannot be read: {error!r}") from error

    @property
    def sha256(self) -> str:
        """Hash of the contract, hex."""
        return sha256_hex(self.to_bytes())


def check_metrics(metrics: dict[str, float]) -> None:
    """Raise InputError naming the first metric that may not leave a site or is not finite."""
    for name, value in sorted(metrics.items()):
        if name not in ALLOWED_METRICS:
            raise InputError(f"metric '{name}' is not on the allow-list ({', '.join(ALLOWED_METRICS)})")
        if not abs(value) < float("inf"):
            raise InputError(f"metric '{name}' is {value}, expected a finite number")


def tells_arms(recipe: Recipe) -> bool:
    """Whether a site may tell how the models of its comparison do: not where nothing may depend on its private part, which
    differential privacy asks for too (shared/compatibility.py)."""
    return recipe.mode != "non-interference"


def check_told(recipe: Recipe, metrics: Mapping[str, float], *, always: bool = False, arm: str = "") -> None:
    """Raise InputError for a metric that may not leave a site under this recipe: under differential privacy none may, for none is
    noised. `always`: an evaluation, which may not even be reported empty then. `arm`: of which model of the comparison it is; how
    those do depends on the site's private part, of which nothing may be told in mode non-interference."""
    check_metrics(dict(metrics))
    if arm and arm not in ARMS:
        raise InputError(f"'{plain(arm, 40)}' is no model of the comparison (known: {', '.join(ARMS)})")
    if arm and not tells_arms(recipe):
        raise InputError(
            f"how the model '{arm}' does may not be told in mode non-interference: the comparison depends on the site's private "
            "part; keep it at the site"
        )
    if recipe.dp_noise and (metrics or always):
        told = f"metric '{min(metrics)}'" if metrics else "an evaluation"
        raise InputError(
            f"{told} is computed from cases without noise, and may not be told under differential privacy (dp_noise "
            f"{recipe.dp_noise:g}); keep it at the site"
        )
