"""Ways to look at a case, and which of them training uses: a pure function of (seed, case, epoch)."""

from dataclasses import dataclass
from typing import Literal

from shared.canonical import canonical_json, sha256_hex
from shared.recipe import Recipe
from site_agent.data.cases import Case

Kind = Literal["plain", "window", "random"]


@dataclass(frozen=True, slots=True)
class View:
    """One way to look at a case.

    plain: the case as training sees it without augmentation, its only window or the middle one. window: number `index` of the
    overlapping windows that evaluation combines. random: number `index` of the endless row of a case's random views.
    """

    case: Case
    kind: Kind
    index: int = 0
    kept: bool = True
    """Whether it will be asked for again, so that its activations are worth keeping."""

    @property
    def key(self) -> tuple[str, str, int]:
        return (self.case.key, self.kind, self.index)


def of_epoch(case: Case, slot: int, recipe: Recipe, seed: int, epoch: int) -> View:
    """Return the view that a case shows in an epoch, counted through the whole federation from 0.

    `slot`, from 0 to `recipe.views`, says which of those that a case has at a time: 0 is the plain one. With `view_epochs` a
    random one gives way to a fresh one after so many epochs; cases and slots take turns. With no slots but the plain one
    every epoch has a fresh view, which is not kept.
    """
    if recipe.augmentation == "none":
        return View(case, "plain")
    if not recipe.views:
        return View(case, "random", epoch + 1, kept=False)
    if slot == 0:
        return View(case, "plain")
    return View(case, "random", slot + recipe.views * _generation(case, slot, recipe.view_epochs, seed, epoch))


def at_a_time(case: Case, recipe: Recipe, seed: int, epoch: int) -> tuple[View, ...]:
    """Return all views that a case has in an epoch, of which `of_epoch` shows one: as many for every case."""
    slots = range(recipe.views + 1)
    return tuple(dict.fromkeys(of_epoch(case, slot, recipe, seed, epoch) for slot in slots))


def _generation(case: Case, slot: int, lifetime: int, seed: int, epoch: int) -> int:
    """How many views were in this slot before."""
    if not lifetime:
        return 0
    turn = int(sha256_hex(canonical_json([seed, case.key, slot]))[:8], 16) % lifetime
    return (epoch + turn) // lifetime
