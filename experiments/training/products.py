"""Doing matrix products and attentions of given shapes and nothing else: what a step's time is held against."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from experiments.training.flops import Attention, Operand, Product


class Products:
    """Plain products, each with operands of its own as in a network, written to memory that is there already."""

    def __init__(self, products: Sequence[Product], device: torch.device) -> None:
        self._operands = [
            (
                torch.zeros(product.columns, device=device) if product.bias else None,
                _matrix(product.rows, product.inner, product.left, device),
                _matrix(product.inner, product.columns, product.right, device),
                torch.empty(product.rows, product.columns, device=device),
            )
            for product in products
        ]

    def __call__(self) -> None:
        for bias, left, right, out in self._operands:
            if bias is None:
                torch.mm(left, right, out=out)
            else:
                torch.addmm(bias, left, right, out=out)


class Attentions:
    """torch's attention, forward and backward, on queries, keys and values that lie as a linear layer leaves them."""

    def __init__(self, attentions: Sequence[Attention], device: torch.device) -> None:
        self._inputs = [[_by_head(one, device) for _ in range(3)] for one in attentions]
        self._gradients = [_by_head(one, device).detach() for one in attentions]

    def __call__(self) -> None:
        for (query, key, value), gradient in zip(self._inputs, self._gradients, strict=True):
            mixed = F.scaled_dot_product_attention(query, key, value)
            torch.autograd.grad(mixed, (query, key, value), gradient)


def _matrix(rows: int, columns: int, lies: Operand, device: torch.device) -> torch.Tensor:
    if lies == "transposed":
        return torch.randn(columns, rows, device=device).T
    return torch.randn(rows, columns, device=device)


def _by_head(one: Attention, device: torch.device) -> torch.Tensor:
    """(images, heads, tokens, head_dim), in memory (images, tokens, heads, head_dim)"""
    made = torch.randn(one.images, one.tokens, one.heads, one.head_dim, device=device).transpose(1, 2)
    return made.requires_grad_()
