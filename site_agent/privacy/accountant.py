"""What releases cost: epsilon at a delta, by Renyi differential privacy and by privacy loss distributions, from dp-accounting.

Neighbours differ in one patient who is there or not (add/remove-one). A release is the Poisson-subsampled Gaussian mechanism,
composed with itself. RDP: Mironov, Talwar and Zhang 2019, arXiv:1908.10530. PLD: Koskela et al. 2020, arXiv:1906.03049, discretised
pessimistically (Doroshenko et al. 2022, arXiv:2207.04380): an upper bound too, and a tighter one. Budgets are held against PLD.
"""

import bisect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from shared.errors import InputError
from shared.recipe import HOPELESS_EPSILON

ORDERS = (*(1 + x / 10 for x in range(10, 70)), *range(8, 64), *range(64, 257, 8), 320, 384, 512, 1024)
"""From 2: at lower ones between whole numbers dp-accounting's series does not always converge."""
HOPELESS = HOPELESS_EPSILON
"""An epsilon by RDP above which nothing is protected, and the other figure, which then takes gigabytes, is not asked for."""
MOST_STEPS = 1_000_000
"""Above, it would take hours; the figure by RDP, an upper bound too, stands for both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """`steps` times: every patient with probability q, clipped to C, noise of standard deviation sigma C on the sum."""

    q: float
    sigma: float
    steps: int


@dataclass(frozen=True, slots=True)
class Epsilon:
    """What was spent. `pld` is what budgets are held against; where it is not asked for it is the same number as `rdp`."""

    rdp: float
    pld: float


def epsilon(releases: Iterable[Release], delta: float) -> Epsilon:
    """Return what releases of the same patients cost together.

    Raises InputError if dp-accounting is not installed, or says nothing.
    """
    accounting = installed()
    steps: dict[tuple[float, float], int] = {}
    for one in releases:
        steps[one.q, one.sigma] = steps.get((one.q, one.sigma), 0) + one.steps
    if not steps:
        return Epsilon(0.0, 0.0)
    events = [
        accounting.SelfComposedDpEvent(accounting.PoissonSampledDpEvent(q, accounting.GaussianDpEvent(sigma)), count)
        for (q, sigma), count in sorted(steps.items())
    ]
    rdp = _spent(accounting.rdp.RdpAccountant(ORDERS), events, delta)
    if rdp > HOPELESS or sum(steps.values()) > MOST_STEPS:
        return Epsilon(rdp, rdp)
    return Epsilon(rdp, _spent(accounting.pld.PLDAccountant(), events, delta))


def afforded(spent: Sequence[Release], one: Release, delta: float, budget: float, most: int) -> int:
    """Return how many releases such as `one`, up to `most`, keep to the budget together with what is spent; errors as above."""
    costs = range(1, most + 1)
    return bisect.bisect_right(costs, budget, key=lambda count: epsilon([*spent, *[one] * count], delta).pld)


def installed() -> ModuleType:
    """Return dp-accounting. Raises InputError naming the extra that brings it."""
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError as error:
        raise InputError(
            "this federation asks for differential privacy, and the accountant is not installed here; install the extra: "
            "pip install 'med-duallora[dp]'"
        ) from error
    module: ModuleType = dp_accounting
    return module


def _spent(accountant: Any, events: Iterable[Any], delta: float) -> float:
    try:
        for event in events:
            accountant.compose(event)
        found = float(accountant.get_epsilon(delta))
    except ArithmeticError:  # sigma^2 is no number above 0 any more
        return math.inf
    if not found >= 0:
        raise InputError(
            f"the accountant says epsilon {found} at delta {delta:g}, and no round is trained on that; choose another dp_noise or "
            "dp_delta"
        )
    return found
