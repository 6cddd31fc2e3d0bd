"""A run beside other methods of fine-tuning the same base model together.

What others send is computed: the tensors that travel each way for one site and round, as float32, from the shapes in the
federation's adapter file. Only this run's own rows are measured.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aggregator.accounts import goodput
from aggregator.accounts.goodput import Account
from aggregator.accounts.logs import Call
from shared.adapter import Adapter, AdapterManifest
from shared.errors import InputError, InvalidAdapter
from shared.recipe import factor_of

COMPUTED, MEASURED = "computed", "measured"
SCALAR_BYTES = 4


def full_model(manifest: AdapterManifest) -> int | None:
    """Return the bytes of everything that full fine-tuning sends one way; None if the adapter file does not say how large its base
    model is."""
    parameters = manifest.metadata.base_parameters
    if parameters is None:
        return None
    head = sum(spec.size for spec in manifest.layout.tensors if not factor_of(spec.name))
    return SCALAR_BYTES * parameters + head


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What the methods' bytes are computed from. Sizes are bytes of float32 tensors."""

    full: int
    """Everything that full fine-tuning sends one way."""
    depth: int
    """Transformer blocks of the base model."""
    adapted: int
    """Blocks with low-rank factors in this federation."""
    rank: int
    factors_a: int
    factors_b: int
    head: int
    """Shared head; it travels under every method."""

    @classmethod
    def of(cls, adapter: Adapter, full_model_bytes: int | None = None, base_blocks: int | None = None) -> "Baseline":
        """Return the baseline of a federation's adapter file.

        The arguments stand in for what a file of a release before 1.2 does not say. Raises InputError for what neither says or
        cannot be, InvalidAdapter for a file whose blocks differ in size: nothing follows from them for blocks that are not in it.
        """
        metadata = adapter.manifest.metadata
        sizes: dict[str | None, int] = defaultdict(int)
        blocks: dict[int, int] = defaultdict(int)
        for spec in adapter.manifest.layout.tensors:
            factor = factor_of(spec.name)
            sizes[factor] += spec.size
            if factor:
                blocks[_block(spec.name)] += spec.size
        if full_model_bytes is None and metadata.base_parameters is None:
            raise InputError(
                "the adapter file does not say how large its base model is (releases before 1.2 wrote none); "
                "say it with --full-model-bytes, for example 358000000 for CineMA-base"
            )
        depth = base_blocks or metadata.base_blocks
        if depth is None:
            raise InputError(
                "the adapter file does not say how many blocks its base model has (releases before 1.2 wrote none); "
                "say it with --base-blocks, for example 12 for CineMA-base"
            )
        if blocks and depth <= max(blocks):
            raise InputError(
                f"a base model of {depth} blocks has no block {max(blocks)}, which the adapter file adapts; "
                "check --base-blocks, and that --compare names this federation's file"
            )
        if len(set(blocks.values())) > 1:
            listed = ", ".join(f"block {number}: {size}" for number, size in sorted(blocks.items()))
            raise InvalidAdapter(
                f"adapted blocks differ in size ({listed} bytes), so that nothing follows for the others; "
                "leave --compare out, and compare with --full-model-bytes alone"
            )
        return cls(
            full=full_model_bytes or full_model(adapter.manifest) or 0,
            depth=depth,
            adapted=len(blocks),
            rank=metadata.rank,
            factors_a=sizes["A"],
            factors_b=sizes["B"],
            head=sizes[None],
        )


def _block(tensor: str) -> int:
    """Return the block a factor belongs to: the first number in its path."""
    number = re.search(r"\.(\d+)\.", tensor)
    if number is None:
        raise InvalidAdapter(f"tensor '{tensor}' belongs to no block; expected a name such as encoder.blocks.10.attn.q")
    return int(number[1])


def table(accounts: Sequence[Account], base: Baseline) -> list[dict[str, Any]]:
    """Return a row for every method, bytes each way for one site and round, and how many times less than full fine-tuning."""
    lora = base.factors_a + base.factors_b
    everywhere = lora // base.adapted * base.depth if base.adapted else 0
    computed = {
        "full fine-tuning": base.full,
        f"LoRA, rank {base.rank}, all {base.depth} blocks": everywhere + base.head,
        f"this adapter: LoRA, rank {base.rank}, {base.adapted} blocks": lora + base.head,
        "FFA-LoRA on these blocks: factors B": base.factors_b + base.head,
        "FedSA-LoRA on these blocks: factors A": base.factors_a + base.head,
        "head only": base.head,
    }
    rows = [_row(name, COMPUTED, size, size, base.full) for name, size in computed.items()]
    count = len(goodput.updates([one.call for one in accounts]))
    if count:
        for name, sizes in (
            ("this run: tensors, each once", [(one.up.payload, one.down.payload) for one in accounts]),
            ("this run: all messages", [(one.call.up.bytes, one.call.down.bytes) for one in accounts]),
        ):
            up, down = (round(sum(way) / count) for way in zip(*sizes, strict=True))
            rows.append(_row(name, MEASURED, up, down, base.full))
    return rows


def _row(method: str, source: str, up: int, down: int, full: int) -> dict[str, Any]:
    both = up + down
    return {
        "method": method,
        "source": source,
        "bytes_up": up,
        "bytes_down": down,
        "times_less_than_full": 2 * full / both if both else None,
    }


def against_full_model(calls: Sequence[Call], full_model_bytes: int) -> dict[str, Any]:
    """Compare with sending the full model once each way per update, which is what full fine-tuning does."""
    updates = goodput.updates(calls)
    up = sum(c.up.bytes for c in calls if c.purpose == "delta_up")
    down = sum(c.down.bytes for c in calls if c.purpose == "adapter_down")
    full = full_model_bytes * len(updates)
    return {
        "full_model_bytes": full_model_bytes,
        "updates": len(updates),
        "full_model_bytes_each_way": full,
        "delta_bytes_up": up,
        "adapter_bytes_down": down,
        "reduction_up": full / up if up else None,
        "reduction_down": full / down if down else None,
    }
