"""The installed methods: what each trains in a round, what of it travels, and what the aggregator makes of it.

A method is a few facts; the numbers that go with it are in the recipe (`shared.recipe`). To add one, add an entry here: neither the
agent's loop nor the aggregator's knows any of them by name.

W0: frozen weight, s = alpha / r, dW_g = s_g B_g A_g the global part, dW_l = s_l B_l A_l the local one, w_k: weight of site k.
What of a head is shared the adapter's head policy says; a shared head is averaged plainly under every method.
"""

from dataclasses import dataclass
from typing import Literal

Factor = Literal["A", "B"]
Part = Literal["global", "local"]
Rule = Literal["factors", "products", "exact"]
"""What the aggregator makes of the sites' A_k and B_k.

factors: A = sum w_k A_k and B = sum w_k B_k. products: the best B A of rank r for sum w_k B_k A_k. exact: the factors' means, and
what they miss of sum w_k B_k A_k in low-rank form beside them.
"""

NONE: frozenset[Factor] = frozenset()
BOTH: frozenset[Factor] = frozenset({"A", "B"})
ONLY_A: frozenset[Factor] = frozenset({"A"})
ONLY_B: frozenset[Factor] = frozenset({"B"})

GLOBAL: frozenset[Part] = frozenset({"global"})
LOCAL: frozenset[Part] = frozenset({"local"})
PARTS: frozenset[Part] = GLOBAL | LOCAL


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of a site's round: which parts count in the model, and which of them are trained.

    A part stands for its low-rank product and for what of the head goes with it: the shared head with the global part, the
    private one or the private bias with the local part.
    """

    active: frozenset[Part]
    trained: frozenset[Part]
    anchored: bool = False
    """Whether what is trained is drawn towards the global part that the round began with (Ditto)."""


JOINT = Phase(active=PARTS, trained=PARTS)
GLOBAL_BESIDE_LOCAL = Phase(active=PARTS, trained=GLOBAL)
LOCAL_BESIDE_GLOBAL = Phase(active=PARTS, trained=LOCAL)
GLOBAL_ALONE = Phase(active=GLOBAL, trained=GLOBAL)
LOCAL_ALONE = Phase(active=LOCAL, trained=LOCAL)
PERSONAL = Phase(active=LOCAL, trained=LOCAL, anchored=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One installed method."""

    source: str
    formula: str
    trained: tuple[frozenset[Factor], ...] = (BOTH,)
    """Factors of the global part that sites train, round by round in turns."""
    kept: frozenset[Factor] = NONE
    """Of them, those that stay at the site."""
    rule: Rule = "factors"
    passes: tuple[Phase, ...] = (JOINT,)
    """A round goes through its epochs once for each of these."""
    fused: bool = False
    """Whether the site fits one weight for each part after training, on cases of its own."""
    serves: frozenset[Part] = PARTS
    """The parts of the model that the site uses in the end."""
    dense: bool = False
    """Whether weights of the base model itself are trained and sent instead of low-rank parts."""

    @property
    def low_rank(self) -> bool:
        """Whether low-rank parts are trained at all."""
        return any(self.trained) or any(phase.trained == LOCAL for phase in self.passes)

    @property
    def federated(self) -> bool:
        """Whether a site trains anything that is shared."""
        return any("global" in phase.trained for phase in self.passes)


METHODS: dict[str, Method] = {
    "med-duallora": Method(
        source="arXiv:2603.10967; with rank_local 0 FedIT, which averages one LoRA (Zhang et al. 2023, arXiv:2305.05644)",
        formula="y = W0 x + dW_g x + dW_l x; A_g = sum w_k A_k, B_g = sum w_k B_k; A_l and B_l stay",
    ),
    "ffa-lora": Method(
        source="Sun et al. 2024, arXiv:2403.12313",
        formula="A stays as drawn, B = sum w_k B_k: the mean of products is the product of means",
        trained=(ONLY_B,),
    ),
    "fedsa-lora": Method(
        source="Guo et al. 2024, arXiv:2410.01463",
        formula="A = sum w_k A_k; every B_k stays at its site",
        kept=ONLY_B,
    ),
    "rolora": Method(
        source="Chen et al. 2025, arXiv:2502.01755",
        formula="odd rounds B = sum w_k B_k with A fixed, even ones A = sum w_k A_k with B fixed",
        trained=(ONLY_B, ONLY_A),
    ),
    "fedex-lora": Method(
        source="Singhal et al. 2024, arXiv:2410.09432",
        formula="A and B as FedIT; beside them the residual sum w_k (B_k - B)(A_k - A), summed over the rounds, in factors",
        rule="exact",
    ),
    "flex-lora": Method(
        source="Bai et al. 2024, arXiv:2402.11505 (FlexLoRA); compare Ramesh and Dass 2025, arXiv:2506.09199 (FLoRIST)",
        formula="B A = the r largest singular triplets of sum w_k B_k A_k, from the QR of the factors side by side",
        rule="products",
    ),
    "feddpa-lora": Method(
        source="Yang et al. 2024, arXiv:2403.19211",
        formula="first A_g, B_g without the local part, averaged as FedIT; then A_l, B_l beside the fixed global part",
        passes=(GLOBAL_ALONE, LOCAL_BESIDE_GLOBAL),
    ),
    "fdlora": Method(
        source="Qi et al. 2024, arXiv:2406.07925",
        formula="A_g, B_g and A_l, B_l each trained alone; y = W0 x + v_g dW_g x + v_l dW_l x, v fitted at the site",
        passes=(GLOBAL_ALONE, LOCAL_ALONE),
        fused=True,
    ),
    "ditto-lora": Method(
        source="Li et al. 2021, arXiv:2012.04221",
        formula="A_g, B_g as FedIT; the site uses A_l, B_l alone, trained on loss + lambda/2 || (A_l, B_l) - (A_g, B_g) ||^2",
        passes=(GLOBAL_ALONE, PERSONAL),
        serves=LOCAL,
    ),
    "adaptation": Method(
        source="k-shot adaptation: LoRA (Hu et al. 2021, arXiv:2106.09685) on a federation's finished global part",
        formula="A_l, B_l and private bias beside a global part and a shared head that stay as they came",
        trained=(NONE,),
        passes=(LOCAL_BESIDE_GLOBAL,),
    ),
    "head-only": Method(
        source="McMahan et al. 2017, arXiv:1602.05629, on a linear probe",
        formula="logits = W f + b on frozen features f; W = sum w_k W_k",
        trained=(NONE,),
    ),
    "full": Method(
        source="McMahan et al. 2017, arXiv:1602.05629",
        formula="every weight of the base model is trained: W0 = sum w_k W0_k",
        trained=(NONE,),
        dense=True,
    ),
}
