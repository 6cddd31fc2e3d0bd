"""Comparing our values with recorded ones: tolerances, and one record per compared tensor."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Tolerance:
    """|ours - recorded| must not exceed atol + rtol * |recorded|."""

    atol: float
    rtol: float = 0.0

    def __str__(self) -> str:
        return f"{self.atol:g}" + (f" + {self.rtol:g} x" if self.rtol else "")


EXACT = Tolerance(0.0)


@dataclass(frozen=True, slots=True)
class Check:
    """One recorded value compared with ours; `tolerance` None: recorded, but not compared, which is never passed."""

    where: str
    kind: str
    tensor: str
    deviation: float
    tolerance: Tolerance | None
    passed: bool


@dataclass(frozen=True, slots=True)
class Computed:
    """Our side of a comparison."""

    kind: str
    value: torch.Tensor
    tolerance: Tolerance


def compare(where: str, name: str, ours: Computed, recorded: torch.Tensor) -> Check:
    """Largest absolute deviation, and whether every element is within tolerance. Another shape, no element or a NaN never is."""
    if ours.value.shape != recorded.shape or not recorded.numel():
        return Check(where, ours.kind, name, float("inf"), ours.tolerance, False)
    difference = (ours.value.double() - recorded.double()).abs()
    allowed = ours.tolerance.atol + ours.tolerance.rtol * recorded.double().abs()
    passed = bool((difference <= allowed).all())
    largest = difference.nan_to_num(nan=float("inf")).max().item()
    return Check(where, ours.kind, name, largest, ours.tolerance, passed)


def compare_names(where: str, kind: str, name: str, ours: Collection[str], recorded: Collection[str]) -> Check:
    """Two sets of tensor names; the deviation is how many are in one only."""
    differing = len(set(ours) ^ set(recorded))
    return Check(where, kind, name, float(differing), EXACT, differing == 0)


def match(
    where: str, recorded: Mapping[str, torch.Tensor], ours: Mapping[str, Computed], given: Collection[str] = ()
) -> Iterator[Check]:
    """Compare every recorded value but the `given` inputs with ours of the same name."""
    for name, value in recorded.items():
        if name in ours:
            yield compare(where, name, ours[name], value)
        elif name not in given:
            yield unknown(where, name)


def unknown(where: str, name: str) -> Check:
    """A recorded value without a counterpart: a failure, for what nobody compared has not been checked."""
    return Check(where, "not compared", name, float("inf"), None, False)


def some(where: str, checks: Iterable[Check]) -> Iterator[Check]:
    """These checks of the file `where`; a failed one if there are none."""
    empty = True
    for check in checks:
        empty = False
        yield check
    if empty:
        yield unknown(where, "no value at all")
