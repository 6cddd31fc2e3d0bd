"""Which choices of a recipe exclude each other: one table, asked before a contract can be made, and printed by the docs.

Every entry names the choice, what it does not go with and why, and finds the contradiction in a recipe with what to change.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shared import codecs
from shared.errors import InputError
from shared.methods import JOINT, LOCAL, NONE, ONLY_B, PARTS

if TYPE_CHECKING:
    from shared.recipe import Recipe

PRODUCT_RULES = ("trimmed-distance", "geometric-median", "krum", "multi-krum", "cosine-gate")
"""Robust rules that judge what a site's factors stand for, so that no other factors of the same product change them."""
FACTOR_RULES = ("median", "trimmed-mean")
"""Robust rules that judge every number by itself: not invariant, a site may write the same product in other numbers."""
COUNTED_RULES = ("trimmed-distance", "krum", "multi-krum", "trimmed-mean")
"""Robust rules that are told how many attackers they are to withstand."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two choices that exclude each other. `found`: what to change in a recipe that makes both, or nothing."""

    choice: str
    excludes: str
    found: Callable[["Recipe"], str]


def check(recipe: "Recipe") -> None:
    """Raise InputError for the first contradiction of the table, saying what to change."""
    for conflict in CONFLICTS:
        if message := conflict.found(recipe):
            raise InputError(message)


def honest_more(recipe: "Recipe") -> int:
    """Return by how many the honest sites of a round must outnumber the attackers for the recipe's robust rule to hold.

    Krum: K at least 2 f + 3 (Blanchard et al. 2017, arXiv:1703.02757); whoever cuts f on either side, or the f farthest: 2 f + 1.
    """
    return 3 if recipe.robust in ("krum", "multi-krum") else 1


def robust_quorum(recipe: "Recipe") -> int:
    """Return the fewest updates of a round from which the recipe's robust rule withstands its number of attackers."""
    return 2 * recipe.attackers + honest_more(recipe)


def blended(recipe: "Recipe", updates: int) -> int:
    """Return of how many updates the result of a round of so many may be made: who has the version before and after has them when
    it is one, and of two each site the other's."""
    left = {
        "trimmed-distance": updates - recipe.attackers,
        "krum": 1,
        "multi-krum": updates - recipe.attackers - 2,
        "cosine-gate": 1,
        "median": 1 if updates % 2 else 2,
        "trimmed-mean": updates - 2 * recipe.attackers,
    }
    return max(1, left.get(recipe.robust, updates))


def _must_be(recipe: "Recipe", name: str, wanted: object, why: str) -> str:
    """Return what to change where a parameter is not what another choice wants."""
    held = getattr(recipe, name)
    return "" if held == wanted else f"{why}: {name} must be {_said(wanted)}, got {_said(held)}"


def _said(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _first(*found: str) -> str:
    return next((one for one in found if one), "")


def _alternating(recipe: "Recipe") -> str:
    if recipe.mode == "joint":
        return ""
    if recipe.mode == "alternating" and recipe.method.passes != (JOINT,):
        return f"recipe '{recipe.name}' says itself what is trained when: mode must be joint"
    if not recipe.rank_local:
        return f"recipe parameter mode is {recipe.mode} and rank_local 0: half of the steps would train nothing"
    return ""


def _without_local(recipe: "Recipe") -> str:
    if recipe.rank_local:
        return ""
    if any(phase.trained == LOCAL for phase in recipe.method.passes):
        return f"recipe '{recipe.name}' trains a local part: rank_local must be at least 1"
    for name in ("orthogonality", "local_decay", "shrinkage_patients", "local_norm_cap"):
        if getattr(recipe, name):
            return f"recipe parameter {name} is about the local part, and rank_local is 0"
    return ""


def _no_low_rank(recipe: "Recipe") -> str:
    if recipe.method.low_rank or not recipe.rank_local:
        return ""
    return f"recipe '{recipe.name}' has no low-rank parts: rank_local must be 0"


def _without_effect(recipe: "Recipe") -> str:
    method = recipe.method
    for name, useful, why in (
        ("orthogonality", any(p.active == PARTS for p in method.passes), "has no step in which both parts count"),
        ("proximal", any("global" in p.trained for p in method.passes), "trains nothing that is shared"),
        ("gate", not method.fused, "fits weights of its own"),
        ("gate", any(method.trained) or recipe.rank_local, "trains no low-rank part"),
    ):
        if getattr(recipe, name) and not useful:
            return f"recipe '{recipe.name}' {why}: {name} must be {'false' if name == 'gate' else 0}"
    return ""


def _products(recipe: "Recipe") -> str:
    if recipe.rule == "factors":
        return ""
    by = f"robust rule {recipe.robust}" if recipe.robust in PRODUCT_RULES else f"recipe '{recipe.name}'"
    wanted = (("server_lr", 1.0), ("server_optimiser", "sgd"), ("broadcast_codec", "f32"))
    return _first(*(_must_be(recipe, name, only, f"{by} aggregates products") for name, only in wanted))


def _optimiser(recipe: "Recipe") -> str:
    if recipe.server_optimiser == "sgd" or not codecs.is_lossy(recipe.broadcast_codec):
        return ""
    return f"server_optimiser {recipe.server_optimiser} needs a broadcast_codec that loses nothing, got {recipe.broadcast_codec}"


def _interference(recipe: "Recipe") -> str:
    if recipe.mode != "non-interference":
        return ""
    method, why = recipe.method, "mode non-interference trains the global part without anything that stays at the site"
    if method.passes != (JOINT,):
        return f"recipe '{recipe.name}' says itself what is trained when: mode must be joint"
    if method.kept != NONE:
        return f"{why}, and recipe '{recipe.name}' keeps a factor of it; choose another recipe"
    return _must_be(recipe, "gate", False, why)


def _private(recipe: "Recipe") -> str:
    if not recipe.dp_noise:
        return ""
    why = "differential privacy (dp_noise above 0)"
    if recipe.mode != "non-interference":
        return (
            f"{why} of a part that is trained beside one without noise protects nothing: mode must be non-interference, "
            f"got {recipe.mode}"
        )
    if recipe.method.trained != (ONLY_B,):
        return f"{why} needs factors in which noise stays linear: recipe must be ffa-lora, got {recipe.name}"
    if not recipe.dp_epsilon:
        return f"{why} needs the epsilon that a site may spend in all: set dp_epsilon above 0"
    return _first(
        *(
            _must_be(recipe, name, False, f"{why} forbids what is computed from a site's labels without noise")
            for name in ("class_balanced", "logit_adjustment")
        )
    )


def _dp_without(recipe: "Recipe") -> str:
    if recipe.dp_noise or not recipe.dp_epsilon:
        return ""
    return f"recipe parameter dp_epsilon is {recipe.dp_epsilon:g} and dp_noise 0: without noise epsilon is unbounded"


def _no_products(recipe: "Recipe") -> str:
    method, robust = recipe.method, recipe.robust
    if robust not in PRODUCT_RULES:
        return ""
    if method.kept != NONE:
        return (
            f"robust rule {robust} needs every site's products, and recipe '{recipe.name}' keeps a factor at the site"
        )
    if not any(method.trained):
        return f"robust rule {robust} judges low-rank products, and recipe '{recipe.name}' sends none; choose median"
    return ""


def _exact(recipe: "Recipe") -> str:
    if recipe.robust == "none" or recipe.method.rule != "exact":
        return ""
    return f"recipe '{recipe.name}' is the exact mean of products, robust rule {recipe.robust} another one; robust must be none"


def _factorwise(recipe: "Recipe") -> str:
    robust = recipe.robust
    if robust not in FACTOR_RULES:
        return ""
    if recipe.method.rule != "factors":
        return f"robust rule {robust} takes every number by itself, and recipe '{recipe.name}' aggregates products"
    return _must_be(recipe, "weighting", "uniform", f"robust rule {robust} counts every site once")


def _idle(recipe: "Recipe") -> str:
    if recipe.cosine_least and recipe.robust != "cosine-gate":
        return (
            f"recipe parameter cosine_least is for robust rule cosine-gate, and robust is {recipe.robust}: it must be 0"
        )
    return ""


def _attackers(recipe: "Recipe") -> str:
    if (recipe.robust in COUNTED_RULES) == (recipe.attackers > 0):
        return ""
    if recipe.attackers:
        return f"robust rule {recipe.robust} is not told a number of attackers: attackers must be 0, got {recipe.attackers}"
    return f"robust rule {recipe.robust} must be told how many attackers to withstand: set attackers to at least 1"


CONFLICTS = (
    Conflict("mode alternating", "methods with phases of their own, rank_local 0", _alternating),
    Conflict("rank_local 0", "methods and penalties of a local part", _without_local),
    Conflict("head-only, full", "a local part", _no_low_rank),
    Conflict("orthogonality, proximal, gate", "methods in which they would do nothing", _without_effect),
    Conflict("rules on products", "server optimisers, server_lr other than 1, lossy broadcasts", _products),
    Conflict("server optimisers", "lossy broadcasts", _optimiser),
    Conflict("mode non-interference", "methods with phases of their own or a kept factor, gate", _interference),
    Conflict("differential privacy", "all modes but non-interference, all methods but ffa-lora, label frequencies", _private),
    Conflict("dp_epsilon", "no noise", _dp_without),
    Conflict("robust rules on products", "methods that send no products: fedsa-lora, head-only, full", _no_products),
    Conflict("robust rules", "fedex-lora", _exact),
    Conflict("median, trimmed-mean", "rules on products, weights by patients", _factorwise),
    Conflict("attackers", "rules that are told no number", _attackers),
    Conflict("cosine_least", "other rules than cosine-gate", _idle),
)  # fmt: skip
"""Every contradiction there is between two choices of a recipe. What one parameter alone may be, `Recipe` says."""
