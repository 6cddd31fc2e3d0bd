"""The matrix products that a step of dual LoRA cannot avoid, counted. Pure.

Floating-point operations of a product (m, k) @ (k, n) are 2 m k n. With T tokens (of the whole batch), width D, MLP ratio M and R
low-rank columns, an adapted block takes in its forward pass

    q 2TDD   kv 4TDD   proj 2TDD   fc1, fc2 2MTDD each   attention 4TTD per image   LoRA of a layer to `out`: 2TR(D + out)

and in its backward pass the gradient of each layer's input (as many again) but none of a frozen weight, twice the attention's
forward products (a kernel that computes the scores anew, as torch's does, takes five instead of four: those are not counted), and
of the low-rank factors their own gradients too. Nothing enters the first adapted block that needs a gradient: there the input
gradients of q and kv, and those of their low-rank parts, are not needed.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from site_agent.models.config import ConvViTConfig

Operand = Literal["plain", "transposed"]
"""How a matrix lies in memory: as it is used, or as its transpose."""


@dataclass(frozen=True, slots=True)
class Product:
    """(rows, inner) @ (inner, columns), with a bias added or not."""

    rows: int
    inner: int
    columns: int
    left: Operand = "plain"
    right: Operand = "plain"
    bias: bool = False

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inner * self.columns


@dataclass(frozen=True, slots=True)
class Attention:
    """Scores and their mixture of the values, forward and backward."""

    images: int
    heads: int
    tokens: int
    head_dim: int

    @property
    def flops(self) -> int:
        """Two products forward, four backward."""
        return 6 * 2 * self.images * self.heads * self.tokens * self.tokens * self.head_dim


def tokens(network: ConvViTConfig) -> int:
    """Patch tokens and the class token."""
    return math.prod(network.grid_size) + 1


def attentions(network: ConvViTConfig, blocks: int, images: int) -> list[Attention]:
    """Return the attentions of so many adapted blocks."""
    head_dim = network.enc_embed_dim // network.enc_n_heads
    return [Attention(images, network.enc_n_heads, tokens(network), head_dim)] * blocks


def products(network: ConvViTConfig, blocks: int, images: int, rank: int) -> list[Product]:
    """Return the products of linear layers and of LoRA in a step that adapts q, kv and proj of the last `blocks` blocks.

    rank: of both low-rank parts together.
    """
    found: list[Product] = []
    for block in range(blocks):
        found += _block(images * tokens(network), network.enc_embed_dim, network.mlp_ratio, rank, first=block == 0)
    return found


def _block(rows: int, width: int, ratio: int, rank: int, *, first: bool) -> Iterator[Product]:
    adapted = {"q": width, "kv": 2 * width, "proj": width}
    for outputs in adapted.values():
        yield from _forward(rows, width, outputs)
        yield Product(rows, width, rank, right="transposed")
        yield Product(rows, rank, outputs, right="transposed")
    for inputs, outputs in ((width, ratio * width), (ratio * width, width)):
        yield from _forward(rows, inputs, outputs)
        yield Product(rows, outputs, inputs)  # the gradient of its input
    for name, outputs in adapted.items():
        yield Product(outputs, rows, rank, left="transposed")  # of B
        yield Product(rows, outputs, rank)  # of A x
        yield Product(rank, rows, width, left="transposed")  # of A
        if name == "proj" or not first:
            yield Product(rows, outputs, width)  # of x through W
            yield Product(rows, rank, width)  # of x through A


def _forward(rows: int, inputs: int, outputs: int) -> Iterator[Product]:
    yield Product(rows, inputs, outputs, right="transposed", bias=True)


def total(parts: Sequence[Product | Attention]) -> int:
    """Floating-point operations of all of them."""
    return sum(part.flops for part in parts)
