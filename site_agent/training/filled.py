"""Frozen activations computed ahead of their use by all processes of a site, each one view of every few."""

from collections.abc import Callable, Sequence

from site_agent.training.activations import Activations
from site_agent.training.parallel import Group
from site_agent.training.views import View


def fill(
    activations: Activations,
    views: Sequence[View],
    group: Group,
    should_stop: Callable[[], bool],
    on_progress: Callable[[int, int], None],
) -> int:
    """Compute what is missing of `views`, as `Activations.fill` does; rank 0 says when to stop."""
    if group.size == 1:
        return activations.fill(views, should_stop, on_progress)
    computed = 0
    for start in range(0, len(views), group.size):
        if group.told(should_stop()):
            break
        mine = views[start + group.rank : start + group.rank + 1]
        found = group.gathered(lambda mine=mine: _fill(activations, mine))  # type: ignore[misc]
        computed += sum(count for count, _ in found)
        if not all(kept for _, kept in found):
            break
        on_progress(min(start + group.size, len(views)), len(views))
    return computed


def _fill(activations: Activations, views: Sequence[View]) -> tuple[int, bool]:
    """Return how many of `views` were computed, and whether all that are to be kept are there now."""
    seen: list[int] = []
    computed = activations.fill(views, on_progress=lambda done, of: seen.append(done))
    return computed, len(seen) == len(views)
