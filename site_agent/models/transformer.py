"""The pre-norm transformer block of CineMA's encoder and decoder, with its parameter names."""

from typing import cast

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention of `x` (B, T, C) over `context` (B, S, C), over itself when none is given."""

    def __init__(self, dim: int, n_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        source = x if context is None else context
        query = self._by_head(self.q(x))
        key, value = self.kv(source).chunk(2, dim=-1)
        mixed = F.scaled_dot_product_attention(query, self._by_head(key), self._by_head(value))
        return cast(torch.Tensor, self.proj(mixed.transpose(1, 2).flatten(2)))

    def _by_head(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) → (B, heads, T, C / heads)"""
        return x.reshape(*x.shape[:2], self.n_heads, -1).transpose(1, 2)


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.fc2(F.gelu(self.fc1(x))))


class Block(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)). `context`, if given, is used as it is, without a norm."""

    def __init__(self, dim: int, n_heads: int, mlp_ratio: int, norm_eps: float, qkv_bias: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, n_heads, qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, dim * mlp_ratio)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), context)
        return cast(torch.Tensor, x + self.mlp(self.norm2(x)))
