"""What is compared: each contender is an installed recipe with its numbers, an adapter, and who trains together.

All of them have the same trainer, cases, order of batches, epochs and evaluation. Those whose method has two passes
(`shared.methods`) take as many optimiser steps as the others with half the epochs in each; their doubles, marked 2x, take twice as
many. Ranks: r = 8 for one low-rank part, 16 where a contender is to have as many trained numbers as two parts have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from shared.errors import InputError
from shared.methods import METHODS
from shared.recipe import Recipe, make

if TYPE_CHECKING:
    from site_agent.new_adapter import AdapterChoices

Together = Literal["federated", "alone", "pooled"]
"""federated: the sites, by the recipe. alone: every site by itself, a federation of one. pooled: one site that has all cases."""
Group = Literal["core", "other", "extension"]
Options = Mapping[str, Any]

RANK, SCALE = 8, 2.0
MATCHED = 2 * RANK
FEW = 4
"""Our recipe's local rank; the rest of MATCHED is global."""
MOST_SETTINGS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One choice of a contender's numbers: what differs from the contender's own."""

    recipe: Options = field(default_factory=dict)
    adapter: Options = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The choice in words; "as it is" for none."""
        return ", ".join(f"{k} {v}" for k, v in {**self.adapter, **self.recipe}.items()) or "as it is"


RATES = (2e-3, 5e-3, 1e-2, 2e-2)
"""Of the low-rank parts, the same four for all; where a method has a number of its own, that at MIDDLE_RATES."""
MIDDLE_RATES = RATES[1:3]
HEAD_RATES = (1e-2, 3e-2, 1e-1, 3e-1)
FULL_RATES = (2e-4, 5e-4, 1e-3, 2e-3)

ONE_PART = {"rank_local": 0}
TWO_PARTS = {"rank_local": RANK, "alpha_local": SCALE * RANK}
"""Recipes of one low-rank part, and of a global and a local one."""
SHARED_HEAD, PRIVATE_BIAS, TWO_HEADS = ({"head_policy": p} for p in ("global", "global+local-bias", "global+local"))
R8, R12, R16 = ({"rank": rank, "alpha": SCALE * rank, **PRIVATE_BIAS} for rank in (RANK, MATCHED - FEW, MATCHED))
"""Adapters of one rank and scale, with the bias of the head private: it decides little, and is given to all."""


def _rates(name: str = "", rates: tuple[float, ...] = RATES) -> tuple[Setting, ...]:
    """The budget: so many learning rates of what is trained besides the head, or of `name` alone."""
    names = (name,) if name else ("lr_global", "lr_local")
    return tuple(Setting(recipe=dict.fromkeys(names, rate)) for rate in rates)


def _with(name: str, values: tuple[float, ...]) -> tuple[Setting, ...]:
    """The same budget where a method has a number of its own: two values of it at two rates."""
    return tuple(
        Setting(recipe={name: value, "lr_global": rate, "lr_local": rate}) for value in values for rate in MIDDLE_RATES
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One line of the comparison. `sent` and `stays`: what leaves a site in every round, and what never does."""

    key: str
    title: str
    method: str
    sent: str
    stays: str
    group: Group = "other"
    together: Together = "federated"
    recipe: Options = field(default_factory=lambda: ONE_PART)
    adapter: Options = field(default_factory=lambda: R16)
    every_block: bool = False
    """Whether all transformer blocks are adapted, not the adapter's own choice."""
    picked_blocks: bool = False
    """Whether the blocks that are adapted are picked by their scores at the sites."""
    one_frame: bool = False
    """Whether the frozen network is one that was pre-trained on single frames, as CineMA's was."""
    doubled: bool = False
    """Whether each of two passes has all epochs, which is twice the others' optimiser steps."""
    settings: tuple[Setting, ...] = field(default_factory=_rates)
    """What is tried on the tuning cohort, at most MOST_SETTINGS; the first where nothing was tuned."""

    paper: str = ""
    """Where it is from, if not where its method is from."""
    is_written: str = ""
    """Its formula, if that is not its method's."""

    def said(self, setting: Setting) -> str:
        """Return a setting in words, without a rate of the local part where there is none."""
        local = bool(self.recipe.get("rank_local"))
        shown = {name: value for name, value in setting.recipe.items() if local or name != "lr_local"}
        return replace(setting, recipe=shown).text

    @property
    def source(self) -> str:
        return self.paper or METHODS[self.method].source

    @property
    def formula(self) -> str:
        return self.is_written or METHODS[self.method].formula

    def with_setting(self, setting: Setting) -> "Contender":
        """Return the contender with these numbers."""
        return replace(
            self,
            recipe={**self.recipe, **setting.recipe},
            adapter={**self.adapter, **setting.adapter},
            settings=(Setting(),),
        )

    def made_recipe(self, common: Options) -> Recipe:
        """Return the recipe; `common`: what all contenders share, such as epochs."""
        values = {**common, **self.recipe}
        if len(METHODS[self.method].passes) > 1 and not self.doubled:
            epochs = int(values.get("local_epochs", Recipe().local_epochs))
            if epochs % 2:
                raise InputError(f"two passes share the epochs of a round: local_epochs must be even, got {epochs}")
            values["local_epochs"] = epochs // 2
        return make(self.method, values)

    def choices(self, common: Options, depth: int, most_residual: int) -> "AdapterChoices":
        """Return what version 0 is made of.

        depth: the network's number of blocks. most_residual: the rank that an exact rule's residual can grow to; enough for it.
        """
        from site_agent.new_adapter import AdapterChoices  # which brings PyTorch, and lists of cells need none

        blocks = {"blocks": tuple(range(depth))} if self.every_block else {}
        residual = {"residual_rank": most_residual} if METHODS[self.method].rule == "exact" else {}
        return AdapterChoices(**{**common, **self.adapter, **blocks, **residual})


CONTENDERS: tuple[Contender, ...] = (
    Contender(
        key="local-only",
        title="Local-only LoRA, r 16",
        group="core",
        method="med-duallora",
        together="alone",
        paper="Hu et al. 2021, arXiv:2106.09685 (LoRA)",
        is_written="y = W0 x + dW x, every site by itself",
        sent="nothing",
        stays="everything",
        adapter=R16 | SHARED_HEAD,
    ),
    Contender(
        key="centralised",
        title="Centralised LoRA, r 16",
        group="core",
        method="med-duallora",
        together="pooled",
        paper="Hu et al. 2021, arXiv:2106.09685 (LoRA)",
        is_written="y = W0 x + dW x on all sites' cases",
        sent="all images (no federation: the pooled reference)",
        stays="nothing",
        adapter=R16 | SHARED_HEAD,
    ),
    Contender(
        key="head-only",
        title="Head only",
        group="core",
        method="head-only",
        sent="head weights",
        stays="private bias",
        adapter={"rank": 0, **PRIVATE_BIAS},
        settings=_rates("lr_head", HEAD_RATES),
    ),
    Contender(
        key="fedit-r8",
        title="FedIT, r 8",
        group="core",
        method="med-duallora",
        paper="Zhang et al. 2023, arXiv:2305.05644 (FedIT)",
        is_written="y = W0 x + dW x; A = sum w_k A_k, B = sum w_k B_k",
        sent="A, B, head weights",
        stays="private bias",
        adapter=R8,
    ),
    Contender(
        key="fedit-r16",
        title="FedIT, r 16 (rank-matched)",
        group="core",
        method="med-duallora",
        paper="Zhang et al. 2023, arXiv:2305.05644 (FedIT)",
        is_written="y = W0 x + dW x; A = sum w_k A_k, B = sum w_k B_k",
        sent="A, B, head weights",
        stays="private bias",
    ),
    Contender(
        key="med-duallora",
        title="Med-DualLoRA, 2 blocks",
        group="core",
        method="med-duallora",
        paper="arXiv:2603.10967",
        sent="A_g, B_g, head weights",
        stays="A_l, B_l, private bias",
        recipe=TWO_PARTS,
        adapter=R8,
    ),
    Contender(
        key="ours",
        title="Med-DualLoRA, our recipe",
        group="core",
        method="med-duallora",
        paper="arXiv:2603.10967",
        is_written="Med-DualLoRA, r 12 + 4, the local part at a lower rate; loss + (c / n_k) / 2 sum || dW_l ||^2; private bias",
        sent="A_g, B_g, head weights",
        stays="A_l, B_l, private bias",
        recipe={"rank_local": FEW, "alpha_local": SCALE * FEW, "lr_local": 2e-3},
        adapter=R12,
        settings=tuple(
            Setting(recipe={"shrinkage_patients": patients, "lr_global": rate})
            for patients in (1.0, 3.0)
            for rate in MIDDLE_RATES
        ),
    ),
    Contender(
        key="fedit-r12",
        title="FedIT, r 12",
        method="med-duallora",
        paper="Zhang et al. 2023, arXiv:2305.05644 (FedIT)",
        is_written="as FedIT: our recipe without its local part",
        sent="A, B, head weights",
        stays="private bias",
        adapter=R12,
    ),
    Contender(
        key="fedprox",
        title="FedProx-LoRA, r 16",
        method="med-duallora",
        paper="Li et al. 2020, arXiv:1812.06127 (FedProx), on FedIT",
        is_written="as FedIT, + mu/2 || w - w_received ||^2 at the sites",
        sent="A, B, head weights",
        stays="private bias",
        settings=_with("proximal", (1e-2, 1e-1)),
    ),
    Contender(
        key="ffa",
        title="FFA-LoRA, r 16",
        method="ffa-lora",
        sent="B, head weights",
        stays="private bias",
    ),
    Contender(
        key="fedsa",
        title="FedSA-LoRA, r 16",
        method="fedsa-lora",
        sent="A, head weights",
        stays="B, private bias",
    ),
    Contender(
        key="rolora",
        title="RoLoRA, r 16",
        method="rolora",
        sent="B and A by turns, head weights",
        stays="private bias",
    ),
    Contender(
        key="fedex",
        title="FedEx-LoRA, r 16 (exact)",
        method="fedex-lora",
        sent="A, B, head weights",
        stays="private bias",
    ),
    Contender(
        key="flexlora",
        title="FlexLoRA, r 16 (stack, QR, SVD)",
        method="flex-lora",
        sent="A, B, head weights",
        stays="private bias",
    ),
    Contender(
        key="feddpa",
        title="FedDPA, r 8 + 8",
        method="feddpa-lora",
        sent="A_g, B_g, head weights",
        stays="A_l, B_l, private bias",
        recipe=TWO_PARTS,
        adapter=R8,
    ),
    Contender(
        key="fdlora",
        title="FDLoRA, r 8 + 8",
        method="fdlora",
        sent="A_g, B_g, head weights",
        stays="A_l, B_l, fusion weights, private bias",
        recipe=TWO_PARTS,
        adapter=R8,
    ),
    Contender(
        key="ditto",
        title="Ditto-LoRA, r 8",
        method="ditto-lora",
        sent="A_g, B_g, head",
        stays="a personal A, B and head",
        recipe=TWO_PARTS,
        adapter=R8 | TWO_HEADS,
        settings=_with("ditto_lambda", (0.1, 1.0)),
    ),
    Contender(
        key="full",
        title="Full fine-tuning, FedAvg",
        method="full",
        sent="every weight of the network, head weights",
        stays="private bias",
        adapter={"rank": 0, "dense": ("",), **PRIVATE_BIAS},
        settings=_rates("lr_global", FULL_RATES),
    ),
    Contender(
        key="med-duallora-all",
        title="Med-DualLoRA, all blocks",
        method="med-duallora",
        paper="arXiv:2603.10967",
        sent="A_g, B_g, head weights",
        stays="A_l, B_l, private bias",
        recipe=TWO_PARTS,
        adapter=R8,
        every_block=True,
    ),
)


def doubles() -> tuple[Contender, ...]:
    """Return the two-pass contenders once more, with twice the steps."""
    return tuple(
        replace(one, key=f"{one.key}-2x", title=f"{one.title}, 2x the steps", doubled=True)
        for one in CONTENDERS
        if len(METHODS[one.method].passes) > 1
    )


def find(key: str, among: tuple[Contender, ...] = CONTENDERS) -> Contender:
    """Return a contender by its key. Raises InputError naming those there are."""
    for one in among:
        if one.key == key:
            return one
    raise InputError(f"no method is called '{key}'; there are: {', '.join(one.key for one in among)}")
