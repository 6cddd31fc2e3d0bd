"""Looking up activations on threads, one batch ahead of the computation that uses them."""

from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from site_agent.training.activations import Activations, Looked
from site_agent.training.views import View

READERS = 4
"""Threads. One reads and checks an entry of 7 MB in a few milliseconds, which is longer than a GPU trains on it."""


def looked_up(batches: Iterable[Sequence[View]], activations: Activations) -> Generator[list[Looked], None, None]:
    """Yield what `Activations.look` finds of each batch, while the next one is being looked up.

    What it raises is raised here. On a CPU entries lie in their files until they are used, so a batch ahead takes no memory of
    its own but the images of what must be computed.
    """
    threads = ThreadPoolExecutor(READERS, thread_name_prefix="ahead")
    try:
        coming: list[Future[Looked]] | None = None
        for views in batches:
            after = [threads.submit(activations.look, view) for view in views]
            if coming is not None:
                yield [one.result() for one in coming]
            coming = after
        if coming is not None:
            yield [one.result() for one in coming]
    finally:
        threads.shutdown(cancel_futures=True)
