"""Epsilon: against Opacus (its own code for RDP, PRV for PLD), a closed form, and what must hold of any accountant."""

import math
import sys

import pytest
from opacus.accountants import PRVAccountant
from opacus.accountants.analysis import rdp as opacus_rdp
from opacus.accountants.rdp import RDPAccountant
from scipy import optimize, stats

from shared.errors import InputError
from site_agent.privacy import accountant
from site_agent.privacy.accountant import ORDERS, Epsilon, Release

DELTA, NEAR = 1e-5, 0.01
GRID = [(q, sigma, steps) for q in (0.02, 0.1, 0.2, 0.5, 1.0) for sigma in (0.8, 2.0, 4.0) for steps in (10, 100)]
LEAST, MOST = 0.2, 12.0
"""Below, Opacus would need higher orders than its own. Above, the best order is so low that dp-accounting's bound between whole
ones is up to some percent above Opacus's integral."""
WHOLE = [order for order in ORDERS if order == int(order)]


def of(q: float, sigma: float, steps: int, delta: float = DELTA) -> Epsilon:
    return accountant.epsilon([Release(q=q, sigma=sigma, steps=steps)], delta)


@pytest.mark.parametrize(("q", "sigma", "steps"), GRID)
def test_rdp_is_that_of_opacus(q, sigma, steps, monkeypatch):
    """At the same whole orders to rounding, and each at its own orders within 1 %."""
    found = of(q, sigma, steps).rdp
    monkeypatch.setattr(accountant, "ORDERS", WHOLE)
    rdp = opacus_rdp.compute_rdp(q=q, noise_multiplier=sigma, steps=steps, orders=WHOLE)
    theirs, _ = opacus_rdp.get_privacy_spent(orders=WHOLE, rdp=rdp, delta=DELTA)
    assert of(q, sigma, steps).rdp == pytest.approx(theirs, rel=1e-9)
    its_own = RDPAccountant()
    its_own.history = [(sigma, q, steps)]
    if LEAST < its_own.get_epsilon(DELTA) < MOST:
        assert found == pytest.approx(its_own.get_epsilon(DELTA), rel=NEAR)
    else:
        assert found < its_own.get_epsilon(DELTA) or found > MOST


@pytest.mark.parametrize(("q", "sigma", "steps"), GRID)
def test_pld_is_prv_of_opacus(q, sigma, steps):
    found = of(q, sigma, steps)
    if found.rdp > accountant.HOPELESS:
        assert found.pld == found.rdp
        return
    theirs = PRVAccountant()
    theirs.history = [(sigma, q, steps)]
    prv = theirs.get_epsilon(DELTA, eps_error=min(0.01, found.pld / 1000))
    assert found.pld == pytest.approx(prv, rel=NEAR)
    assert found.pld < found.rdp


def test_releases_of_other_kinds_compose_as_opacus_has_it():
    releases = [Release(q=0.1, sigma=1.5, steps=40), Release(q=0.2, sigma=2.0, steps=30)]
    found = accountant.epsilon(releases, DELTA)
    theirs = PRVAccountant()
    theirs.history = [(1.5, 0.1, 40), (2.0, 0.2, 30)]
    assert found.pld == pytest.approx(theirs.get_epsilon(DELTA, eps_error=0.002), rel=NEAR)
    assert accountant.epsilon(releases[::-1], DELTA) == found


@pytest.mark.parametrize(("sigma", "steps"), [(1.0, 1), (2.0, 1), (4.0, 10), (10.0, 100)])
def test_without_sampling_pld_is_the_closed_form_of_gaussians(sigma, steps):
    """Balle and Wang 2018, arXiv:1805.06530, theorem 8, with sigma / sqrt(steps) for `steps` of them."""
    shift = math.sqrt(steps) / sigma

    def delta_at(epsilon: float) -> float:
        first, second = shift / 2 - epsilon / shift, -shift / 2 - epsilon / shift
        return float(stats.norm.cdf(first) - math.exp(epsilon) * stats.norm.cdf(second))

    exact = optimize.brentq(lambda epsilon: delta_at(epsilon) - DELTA, 0, 60, xtol=1e-9)
    found = of(1.0, sigma, steps).pld
    assert exact <= found + 1e-6
    assert found == pytest.approx(exact, rel=1e-3)


def test_more_steps_patients_or_less_noise_cost_more_and_nothing_costs_nothing():
    base = of(0.1, 1.5, 50).pld
    assert of(0.1, 1.5, 51).pld > base
    assert of(0.11, 1.5, 50).pld > base
    assert of(0.1, 1.4, 50).pld > base
    assert of(0.1, 1.5, 50, delta=1e-6).pld > base
    assert accountant.epsilon([], DELTA) == Epsilon(0.0, 0.0)


def test_the_same_release_twice_is_one_with_twice_the_steps():
    one = Release(q=0.2, sigma=3.0, steps=20)
    assert accountant.epsilon([one, one], DELTA) == of(0.2, 3.0, 40)


@pytest.mark.parametrize("sigma", [5e-324, 1e-200, 1e-4, 0.01, 0.1])
def test_noise_that_protects_nothing_is_said_at_once(sigma):
    found = of(0.1, sigma, 100)
    assert found.pld == found.rdp > accountant.HOPELESS


def test_a_million_steps_and_more_are_counted_by_rdp_at_once():
    found = of(0.01, 1000.0, 2 * accountant.MOST_STEPS)
    assert 0 < found.rdp == found.pld < 1


def test_so_many_releases_are_afforded_as_keep_to_the_budget():
    one, costs = Release(q=0.1, sigma=1.5, steps=20), [0.0, *(of(0.1, 1.5, 20 * count).pld for count in range(1, 6))]
    for budget, count in ((costs[1] - 1e-6, 0), (costs[1], 1), (costs[4] + 1e-6, 4), (100.0, 5)):
        assert accountant.afforded([], one, DELTA, budget, 5) == count
    assert accountant.afforded([one, one], one, DELTA, costs[4] + 1e-6, 5) == 2


def test_without_the_accountant_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(InputError, match=r"pip install 'med-duallora\[dp\]'"):
        of(0.1, 1.0, 10)
