"""What goes beyond the paper, each switch alone on top of a tuned method: `med-duallora+gate`, `fedit-r16+capped`.

Nothing here is tuned: a switch has one value, chosen before it was tried.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from experiments.comparison.contenders import (
    CONTENDERS,
    R8,
    SHARED_HEAD,
    TWO_HEADS,
    TWO_PARTS,
    Contender,
    Options,
    doubles,
)
from shared.errors import InputError

PLUS = "+"
PLAIN = ("med-duallora", "fedit-r16")
"""The methods that a switch is tried on, unless it names others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """One change. `needs_local`: whether it is about the local part."""

    title: str
    recipe: Options = field(default_factory=dict)
    adapter: Options = field(default_factory=dict)
    method: str = ""
    needs_local: bool = False
    picked_blocks: bool = False
    one_frame: bool = False
    bases: tuple[str, ...] = PLAIN
    """The methods that it is tried on where it applies."""


FIRST_CONVOLUTION = ("enc_down_dict.sax.conv_blocks.0.patch_embed.conv.",)

SWITCHES: Mapping[str, Switch] = {
    "shared-head": Switch(title="head shared, bias too", adapter=SHARED_HEAD),
    "private-head": Switch(title="a private head beside the shared one", adapter=TWO_HEADS),
    "prior": Switch(
        title="logits adjusted by the site's prior, loss not balanced by class",
        recipe={"logit_adjustment": True, "class_balanced": False},
    ),
    "orthogonal": Switch(title="orthogonality penalty 1", recipe={"orthogonality": 1.0}, needs_local=True),
    "norm-cap": Switch(title="local norm at most 5 % of W0", recipe={"local_norm_cap": 0.05}, needs_local=True),
    "local-decay": Switch(title="penalty 0.01 on the local norm", recipe={"local_decay": 0.01}, needs_local=True),
    "shrinkage": Switch(title="small sites shrunk, prior of 1 patient", recipe={"shrinkage_patients": 1.0}, needs_local=True),
    "gate": Switch(title="learned gate per layer", recipe={"gate": True}),
    "exact": Switch(title="exact aggregation", method="fedex-lora"),
    "svd": Switch(title="products, stack + QR + SVD", method="flex-lora"),
    "momentum": Switch(title="server momentum 0.5", recipe={"server_optimiser": "momentum", "server_beta1": 0.5}),
    "adam": Switch(title="server Adam", recipe={"server_optimiser": "adam", "server_lr": 3e-2}),
    "yogi": Switch(title="server Yogi", recipe={"server_optimiser": "yogi", "server_lr": 3e-2}),
    "capped": Switch(title="weights capped at the median", recipe={"weighting": "capped"}),
    "uniform": Switch(title="uniform weights", recipe={"weighting": "uniform"}),
    "picked": Switch(title="the two blocks with the highest scores", picked_blocks=True),
    "repeated": Switch(title="one-frame network, kernel repeated", adapter={"frames": "stacked"}, one_frame=True),
    "siamese": Switch(title="one-frame network, siamese frames", adapter={"frames": "siamese"}, one_frame=True),
    "repeated-first": Switch(
        title="one-frame network, kernel repeated, first convolution trained",
        adapter={"frames": "stacked", "dense": FIRST_CONVOLUTION},
        one_frame=True,
    ),
    "no-prior": Switch(title="without the prior", recipe={"shrinkage_patients": 0.0}, bases=("ours",)),
    "equal-rates": Switch(title="the local part at 5e-3", recipe={"lr_local": 5e-3}, bases=("ours",)),
    "equal-ranks": Switch(title="ranks 8 + 8", recipe=TWO_PARTS, adapter=R8, bases=("ours",)),
    "first": Switch(title="first convolution trained too", adapter={"dense": FIRST_CONVOLUTION}),
}  # fmt: skip


def basis_of(key: str) -> str:
    """Return the key of the method that one is derived from."""
    return key.partition(PLUS)[0]


def extend(contender: Contender, key: str) -> Contender:
    """Return a contender with the switches that follow its name in `key`. Raises InputError for one there is not."""
    _, *names = key.split(PLUS)
    for name in names:
        if name not in SWITCHES:
            raise InputError(f"no switch is called '{name}'; there are: {', '.join(SWITCHES)}")
        switch = SWITCHES[name]
        contender = replace(
            contender,
            key=key,
            title=f"{contender.title} + {switch.title}",
            group="extension",
            method=switch.method or contender.method,
            recipe={**contender.recipe, **switch.recipe},
            adapter={**contender.adapter, **switch.adapter},
            picked_blocks=switch.picked_blocks or contender.picked_blocks,
            one_frame=switch.one_frame or contender.one_frame,
        )
    return contender


def _applies(contender: Contender, switch: Switch) -> bool:
    return contender.key in switch.bases and (bool(contender.recipe.get("rank_local")) or not switch.needs_local)


def _extended() -> tuple[Contender, ...]:
    return tuple(
        extend(one, f"{one.key}{PLUS}{name}")
        for one in CONTENDERS
        for name, switch in SWITCHES.items()
        if _applies(one, switch)
    )


EXTENDED = _extended()


def is_tried(one: Contender, frames: str, *, synthetic: bool) -> bool:
    """Whether an extension is one where all others have these frames: on real ones CineMA's network is siamese already."""
    return synthetic or one.group != "extension" or one.adapter.get("frames") != frames


def everyone() -> tuple[Contender, ...]:
    """All contenders in the order of tables: the core, the other methods, those with doubled passes, and the extensions."""
    return (*CONTENDERS, *doubles(), *EXTENDED)
