"""The choices of views that are compared, and the table of what came of them. Pure."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from experiments import output
from shared.recipe import Augmentation, Recipe


@dataclass(frozen=True, slots=True)
class Choice:
    """Recipe parameters that say which views training sees."""

    augmentation: Augmentation
    views: int
    view_epochs: int = 0

    @property
    def key(self) -> str:
        """Name of its file."""
        return f"{self.augmentation}-{self.views}-{self.view_epochs}"

    @property
    def name(self) -> str:
        """What a table calls it."""
        if self.augmentation == "none":
            return "plain images"
        if not self.views:
            return f"{self.augmentation}, fresh in every epoch"
        until = f", each for {self.view_epochs} epochs" if self.view_epochs else ""
        return f"{self.augmentation}, {self.views} and the plain one{until}"

    def recipe(self) -> Recipe:
        """The default recipe with this choice."""
        return Recipe(augmentation=self.augmentation, views=self.views, view_epochs=self.view_epochs)


PLAIN = Choice("none", 0)
NUMBERS = ((0, 0), (1, 0), (2, 0), (4, 0), (8, 0), (2, 2), (4, 4))
RANGES: tuple[Augmentation, ...] = ("cinema", "narrow")
CHOICES = (PLAIN, *(Choice(ranges, *numbers) for ranges in RANGES for numbers in NUMBERS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One federation: means over the sites' held-out cases after the last round, and what it took.

    at_half, at_validation: balanced accuracy at probability 0.5, and at the thresholds of the sites' validation cases.
    """

    seed: int
    choice: Choice
    auc: float
    at_half: float
    at_validation: float
    passes: int
    seconds: float


HEAD = ("views", "AUC", "+-", "against plain", "bal. acc. at 0.5", "+-", "at the site's", "passes", "training, s")


def lines(cells: Sequence[Cell]) -> list[str]:
    """Return a row for each choice: means over cohorts, their standard deviations, and the mean difference to plain images."""
    plain = {cell.seed: cell.auc for cell in cells if cell.choice == PLAIN}
    choices = dict.fromkeys(cell.choice for cell in cells)
    return output.table(HEAD, [_row([cell for cell in cells if cell.choice == choice], plain) for choice in choices])


def _row(mine: Sequence[Cell], plain: dict[int, float]) -> list[object]:
    auc, half = [cell.auc for cell in mine], [cell.at_half for cell in mine]
    gaps = [cell.auc - plain[cell.seed] for cell in mine if cell.seed in plain]
    return [
        mine[0].choice.name,
        f"{statistics.mean(auc):.3f}",
        _spread(auc),
        f"{statistics.mean(gaps):+.3f}" if gaps else "",
        f"{statistics.mean(half):.3f}",
        _spread(half),
        f"{statistics.mean(cell.at_validation for cell in mine):.3f}",
        round(statistics.mean(cell.passes for cell in mine)),
        round(output.median([cell.seconds for cell in mine])),
    ]


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.stdev(values):.3f}" if len(values) > 1 else ""
