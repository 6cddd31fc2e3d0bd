"""Looking up activations on a thread, one batch ahead of the training that uses them."""

from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from site_agent.training.activations import Activations, Looked
from site_agent.training.views import View


def looked_up(batches: Iterable[Sequence[View]], activations: Activations) -> Generator[list[Looked], None, None]:
    """Yield what `Activations.look` finds of each batch, while the next one is being looked up.

    What it raises is raised here. Entries lie in their files until they are used, so a batch ahead takes no memory of its own
    but the images of what must be computed.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead") as thread:
        coming = None
        for views in batches:
            after = thread.submit(activations.look, views)
            if coming is not None:
                yield coming.result()
            coming = after
        if coming is not None:
            yield coming.result()
