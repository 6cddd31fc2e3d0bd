"""Gradient checkpointing: blocks that keep only their input, and compute what their backward pass needs when it comes to them.

Less memory for more time: of the trained blocks only one's intermediate values exist at a time. The numbers are the same.
"""

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputed(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Have a forward pass in this context keep no more than these blocks' inputs.

    Their `forward` is covered up meanwhile; a wrapping module would change the names of what is inside.
    """
    covered = list(blocks)
    for block in covered:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in covered:
            del block.forward
