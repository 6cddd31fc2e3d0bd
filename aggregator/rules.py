"""What a round makes of its sites' tensors, by the rule of the recipe's method (`shared.methods.Rule`). Pure numpy on values.

Whatever is no factor of a module that travels whole is averaged plainly: sum_k w_k delta_k (McMahan et al. 2017, arXiv:1602.05629).
Of such a module, with the trained factors A_k = A_0 + dA_k (r, in) and B_k = B_0 + dB_k (out, r), and S = sum_k w_k B_k A_k:

factors   A = sum_k w_k A_k, B = sum_k w_k B_k, each averaged plainly (Med-DualLoRA, arXiv:2603.10967; FedIT, arXiv:2305.05644)
products  B A = the best approximation of S of rank r (FlexLoRA, Bai et al. 2024, arXiv:2402.11505)
exact     A and B as factors, and beside them the residual R = R_0 + S - B A (FedEx-LoRA, Singhal et al. 2024, arXiv:2410.09432),
          as the best approximation of the rank that the adapter gives it

R is in the units of B A: a site's layer computes W0 x + s (B A + R) x.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from aggregator import products
from aggregator.products import LowRank
from shared.forms import moved
from shared.layout import TensorSpec
from shared.methods import Rule
from shared.recipe import RESIDUAL, factor_of, is_residual

ROUNDING = 2.0**-24
"""Half of float32's last bit: what is so much smaller than the whole, factors in float32 do not tell from nothing."""

Unit = dict[str, np.ndarray]
"""Tensors of one site that are aggregated together, by name: a single one, or both factors of a module, A first."""
Finish = Callable[[str, np.ndarray], np.ndarray]
"""(name of a tensor, the weighted mean of its deltas in float64) to what the round makes of it."""


@dataclass(frozen=True, slots=True)
class Errors:
    """Squared Frobenius norms, summed over modules.

    left: of what the rule misses of S. factors: of S less the product of the averaged factors. whole: of S.
    """

    left: float = 0.0
    factors: float = 0.0
    whole: float = 0.0

    def __add__(self, other: "Errors") -> "Errors":
        return Errors(self.left + other.left, self.factors + other.factors, self.whole + other.whole)

    def figures(self) -> dict[str, float]:
        """Return aggregation_error and factor_error, relative to S; nothing where no module was aggregated whole."""
        if not self.whole:
            return {}
        return {
            "aggregation_error": (self.left / self.whole) ** 0.5,
            "factor_error": (self.factors / self.whole) ** 0.5,
        }


class Sum(Protocol):
    """What is added up of one unit, site by site in the order of their names."""

    def add(self, share: float, deltas: Unit) -> None:
        """Take a site's deltas, its weight being `share`."""

    def outcome(self) -> tuple[dict[str, np.ndarray], Errors]:
        """Return what the round makes of the unit, float32 by name, and how well it went."""


def units(rule: Rule, tensors: Iterable[tuple[TensorSpec, np.ndarray]]) -> Iterator[Unit]:
    """Yield a site's tensors in the units that the rule aggregates. In an adapter's order B follows A."""
    held: Unit = {}
    for spec, array in tensors:
        if held and spec.name != _other(next(iter(held))):
            yield held
            held = {}
        held[spec.name] = array
        if rule == "factors" or len(held) > 1 or factor_of(spec.name) != "A":
            yield held
            held = {}
    if held:
        yield held


def begin(rule: Rule, base: Mapping[str, np.ndarray], names: Iterable[str], finish: Finish, cut: int = 0) -> Sum:
    """Return the empty sum of the unit of these tensors; `base` is the parent version. `cut`: how many of the largest and of the
    smallest values of every number are left out, and the sites' weights with them."""
    found = list(names)
    if len(found) == 1 and cut:
        return _Trimmed(found[0], cut, finish)
    if len(found) == 1:
        return _Mean(found[0], np.zeros(base[found[0]].shape), finish)
    return _Module(rule, found[0], base)


def is_decomposed(rule: Rule, tensor: str) -> bool:
    """Return whether a tensor's last bits may depend on the machine that made it, a QR and an SVD having gone before."""
    return (rule == "products" and factor_of(tensor) is not None) or (rule == "exact" and is_residual(tensor))


@dataclass(slots=True)
class _Mean:
    """sum_k w_k delta_k, element by element in a fixed order: bit for bit the same everywhere."""

    name: str
    total: np.ndarray
    finish: Finish

    def add(self, share: float, deltas: Unit) -> None:
        self.total += share * deltas[self.name].astype(np.float64)

    def outcome(self) -> tuple[dict[str, np.ndarray], Errors]:
        return {self.name: self.finish(self.name, self.total)}, Errors()


@dataclass(slots=True)
class _Trimmed:
    """The mean of what is left of every number without its `cut` largest and smallest values; with as many cut as can be, the
    median. Takes the memory of one tensor of every site."""

    name: str
    cut: int
    finish: Finish
    held: list[np.ndarray] = field(default_factory=list)

    def add(self, share: float, deltas: Unit) -> None:
        del share
        self.held.append(deltas[self.name].astype(np.float64))

    def outcome(self) -> tuple[dict[str, np.ndarray], Errors]:
        ordered = np.sort(np.stack(self.held), axis=0)[self.cut : len(self.held) - self.cut]
        total = np.zeros(ordered.shape[1:])
        for values in ordered:
            total += values
        return {self.name: self.finish(self.name, total / len(ordered))}, Errors()


class _Module:
    """S of one module in factors, and the mean of each. Takes the memory of at most twice its smaller side's rows, however many
    sites there are: beyond that the factors are compressed on the way."""

    def __init__(self, rule: Rule, name_a: str, base: Mapping[str, np.ndarray]) -> None:
        self._rule, self._base = rule, base
        self._names = name_a, _other(name_a)
        self._received = LowRank.of(*(base[name] for name in self._names))
        self._mean = tuple(np.zeros(base[name].shape) for name in self._names)
        self._parts: list[LowRank] = []
        self._most = 2 * min(len(self._received.b), self._received.a.shape[1])

    def add(self, share: float, deltas: Unit) -> None:
        if not share:
            return
        a, b = (deltas[name].astype(np.float64) for name in self._names)
        for mean, delta in zip(self._mean, (a, b), strict=True):
            mean += share * delta
        self._parts.append(LowRank(self._received.a + a, share * (self._received.b + b)))
        if sum(part.rank for part in self._parts) > self._most:
            self._parts = [products.compressed(products.total(*self._parts))]

    def outcome(self) -> tuple[dict[str, np.ndarray], Errors]:
        whole = products.total(*self._parts)
        a, b = (moved(self._base[name], mean) for name, mean in zip(self._names, self._mean, strict=True))
        averaged = LowRank.of(a, b)
        missed = products.total(whole, -averaged)
        if self._rule == "exact":
            names = tuple(name.replace(".lora_", RESIDUAL) for name in self._names)
            before = LowRank.of(*(self._base[name] for name in names))
            residual, left = _residual(missed, before, floor=ROUNDING * products.total(whole, before).norm)
            made = dict(zip((*self._names, *names), (a, b, *residual), strict=True))
        else:
            factors = _best(whole, self._received.a)
            left = products.total(whole, -LowRank.of(*factors))
            made = dict(zip(self._names, factors, strict=True))
        return made, Errors(left.norm**2, missed.norm**2, whole.norm**2)


def _best(whole: LowRank, before_a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return A and B of the best B A of A's rank r, float32.

    Where fewer than r singular values are there, A keeps rows of the version before, which no site has a say in, and B's columns
    are zero. With both zero neither would ever have a gradient again.
    """
    rank = len(before_a)
    found = products.truncated(whole, rank, floor=ROUNDING * whole.norm)
    a = np.concatenate([found.a, before_a[found.rank :]])
    return a.astype(np.float32), _widened(found.b, rank)


def _residual(missed: LowRank, before: LowRank, floor: float) -> tuple[tuple[np.ndarray, np.ndarray], LowRank]:
    """Return the factors, float32, of the best approximation of `before` + `missed` of the rank of `before`, and what they miss."""
    wanted = products.total(missed, before)
    found = products.truncated(wanted, before.rank, floor)
    a, b = _widened(found.a.T, before.rank).T, _widened(found.b, before.rank)
    return (np.ascontiguousarray(a), b), products.total(wanted, -LowRank.of(a, b))


def _widened(columns: np.ndarray, count: int) -> np.ndarray:
    """Return float32 columns with zeros behind them."""
    return np.pad(columns, ((0, 0), (0, count - columns.shape[1]))).astype(np.float32)


def _other(name_a: str) -> str:
    """Return the name of B's tensor by that of A's."""
    return name_a.replace(".lora_A.", ".lora_B.")
