"""Cross-validation folds that need no generator: the same patients get the same folds on every machine."""

import hashlib
from collections.abc import Mapping

FOLDS = 5


def assign(labels: Mapping[str, int], seed: int) -> dict[str, int]:
    """Fold 0-4 per case key, stratified by label: class counts differ by at most one between folds, and so do fold sizes.

    The cases of a class are put in the order of sha256("seed:key") and dealt out in turn; the next class goes on where the last
    one stopped. A pure function of the keys, their labels and the seed, so neither file order nor a library version matters.
    """
    folds: dict[str, int] = {}
    for label in sorted(set(labels.values())):
        members = sorted((key for key, own in labels.items() if own == label), key=lambda key: _rank(key, seed))
        folds |= {key: position % FOLDS for position, key in enumerate(members, start=len(folds))}
    return folds


def _rank(key: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()
