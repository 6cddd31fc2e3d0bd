"""A tiny site under a recipe with differential privacy, and streams whose keys are known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from shared.adapter import Adapter
from shared.recipe import Recipe
from site_agent.privacy.stream import KEY_BYTES, Stream
from site_agent.training.site import SiteTrainer
from tests.support import methods, tiny_site

RECIPE = Recipe(
    **{**methods.PRIVATE, "dp_noise": 1.0, "dp_clip": 0.01},
    rank_local=methods.RANK,
    views=1,
    local_epochs=2,
    batch_size=4,
)
"""Two epochs over 9 training cases in batches of 4 on average: 6 steps a pass. The clip is below most patients' norms."""
STEPS = 6


def stream(number: int = 1) -> Stream:
    return Stream(bytes([number]) * KEY_BYTES)


def make(folder: Path, head_policy: str = "global+local-bias", **parameters: Any) -> tuple[SiteTrainer, Adapter]:
    """Return a site's trainer on nine training cases, and version 0."""
    backbone = tiny_site.write_backbone(folder / "backbone")
    contract, initial = tiny_site.contract(backbone, replace(RECIPE, **parameters), head_policy=head_policy)
    return tiny_site.trainer(folder / "cohort", backbone, contract), initial
