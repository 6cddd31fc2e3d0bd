"""On what the benchmarks of training run: the CPU, and the GPU that torch sees."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Which = Literal["all", "cpu", "cuda"]


def there(which: Which = "all") -> "list[torch.device]":
    """Return the CPU, and the GPU if torch sees one, or only one of them."""
    import torch

    names = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [torch.device(name) for name in names if which in ("all", name)]


def not_run(what: str, which: Which = "all") -> list[str]:
    """Return the line that stands for the rows of a GPU where there is none."""
    import torch

    return [f"not run: {what} on CUDA, torch sees no GPU"] if which != "cpu" and not torch.cuda.is_available() else []
