"""Predictions of made-up methods, as a comparison keeps them."""

import numpy as np

from experiments.comparison.records import Prediction


def predictions(
    margins: list[float], labels: list[int], *, site: str = "a", run: int = 0, threshold: float = 0.0
) -> list[Prediction]:
    return [
        Prediction(run=run, fold=0, site=site, case=f"{i:04d}", label=label, margin=margin, threshold=threshold)
        for i, (margin, label) in enumerate(zip(margins, labels, strict=True))
    ]


def method(seed: int, shift: float = 0.0, runs: int = 2, cases: int = 60) -> list[Prediction]:
    """Three sites of `cases` cases a run; diseased margins are N(1 + shift, 1), normal ones N(-1, 1)."""
    rng = np.random.default_rng(seed)
    labels = [int(i % 3 > 0) for i in range(cases)]
    return [
        one
        for run in range(runs)
        for site in "abc"
        for one in predictions(
            [float(rng.normal() + (1 + shift if y else -1)) for y in labels], labels, site=site, run=run
        )
    ]


def calls(right: int, n: int) -> list[float]:
    return [1.0] * right + [-1.0] * (n - right)
