"""Other methods' bytes from the shapes of an adapter of 100 numbers.

Two blocks with two layers each: A is 2 x 6, B 5 x 2, so a block has 24 numbers in A and 20 in B; the head has 2 x 6.
"""

from dataclasses import replace
from typing import Any

import pytest

from aggregator.accounts import comparison, goodput, logs
from aggregator.accounts.comparison import Baseline
from shared.adapter import Adapter, AdapterManifest
from shared.errors import InputError, InvalidAdapter
from shared.layout import Layout
from tests.support import adapters
from tests.support.rpc_events import event, fetch, poll, read, upload


def adapter(**facts: Any) -> Adapter:
    made = adapters.adapter()
    manifest = made.manifest
    return replace(made, manifest=AdapterManifest(manifest.layout, replace(manifest.metadata, **facts)))


def compared(*lines: str, **facts: Any) -> dict[str, tuple[Any, ...]]:
    base = Baseline.of(adapter(**{"base_parameters": 1000, "base_blocks": 12, **facts}))
    rows = comparison.table(goodput.accounts(logs.distinct(read(lines).calls)), base)
    return {row["method"]: tuple(row.values())[1:] for row in rows}


def test_methods_are_computed_from_shapes() -> None:
    """Scalars of 4 bytes: the model 1000 and the head 12; 44 a block; B alone 40, A alone 48."""
    assert compared() == {
        "full fine-tuning": ("computed", 4048, 4048, 1.0),
        "LoRA, rank 2, all 12 blocks": ("computed", 2160, 2160, 4048 / 2160),
        "this adapter: LoRA, rank 2, 2 blocks": ("computed", 400, 400, 4048 / 400),
        "FFA-LoRA on these blocks: factors B": ("computed", 208, 208, 4048 / 208),
        "FedSA-LoRA on these blocks: factors A": ("computed", 240, 240, 4048 / 240),
        "head only": ("computed", 48, 48, 4048 / 48),
    }


def test_the_run_stands_beside_them_as_measured() -> None:
    """Two updates: 900 bytes of tensors up and 800 down in all, one of the uploads cut and gone on with; 5 polls beside."""
    found = compared(
        fetch("f1", 400),
        upload("u1", 300, code="UNAVAILABLE"),
        upload("u2", 200, offset=200, attempt=1),
        fetch("f2", 400, site="canon"),
        upload("u3", 500, site="canon"),
        *(poll(f"p{n}") for n in range(5)),
    )
    up = 20 + 370 + 270 + 20 + 570 + 5 * 40
    down = 450 + 80 + 450 + 80 + 5 * 80
    assert found["this run: tensors, each once"] == ("measured", 450, 400, 2 * 4048 / 850)
    assert found["this run: all messages"] == ("measured", up // 2, down // 2, 2 * 4048 / ((up + down) // 2))


def test_without_an_update_nothing_is_measured() -> None:
    assert all(row[0] == "computed" for row in compared(poll("p1")).values())


def test_a_head_that_stays_at_the_sites_is_in_no_row() -> None:
    made = adapter(head_policy="local", base_parameters=1000, base_blocks=12)
    tensors = {name: value for name, value in made.tensors.items() if "pred_head" not in name}
    without = Adapter(AdapterManifest(Layout.of(tensors), made.manifest.metadata), 0, "", tensors)
    sizes = {row["method"]: row["bytes_up"] for row in comparison.table([], Baseline.of(without))}
    assert sizes["head only"] == 0
    assert sizes["full fine-tuning"] == 4000


def test_what_a_file_does_not_say_can_be_said() -> None:
    base = Baseline.of(adapter(), full_model_bytes=358_000_000, base_blocks=12)
    assert (base.full, base.depth, base.adapted) == (358_000_000, 12, 2)


@pytest.mark.parametrize(
    ("facts", "said", "text"),
    [
        ({"base_blocks": 12}, {}, r"how large its base model is .* --full-model-bytes, for example 358000000"),
        ({"base_parameters": 1000}, {}, r"how many blocks .* --base-blocks, for example 12"),
        (
            {"base_parameters": 1000},
            {"base_blocks": 1},
            r"a base model of 1 blocks has no block 1, .* check --base-blocks",
        ),
    ],
)
def test_what_nobody_says_is_asked_for(facts: dict[str, int], said: dict[str, int], text: str) -> None:
    with pytest.raises(InputError, match=text):
        Baseline.of(adapter(**facts), **said)


def test_blocks_of_different_sizes_are_refused() -> None:
    made = adapter(base_parameters=1000, base_blocks=12)
    tensors = dict(made.tensors)
    del tensors["base_model.model.encoder.blocks.1.attn.q.lora_A.weight"]
    uneven = Adapter(AdapterManifest(Layout.of(tensors), made.manifest.metadata), 0, "", tensors)
    with pytest.raises(InvalidAdapter, match=r"block 0: 176, block 1: 128 bytes.* leave --compare out"):
        Baseline.of(uneven)


def test_the_reduction_against_the_full_model() -> None:
    """Two updates of 1000 bytes up against 2 x 358 MB; 950 bytes down each."""
    lines = [event(), fetch("c2"), event(call_id="c3", site="canon"), fetch("c4", site="canon")]
    found = comparison.against_full_model(read(lines).calls, 358_000_000)
    assert found["updates"] == 2
    assert found["reduction_up"] == pytest.approx(358_000)
    assert found["reduction_down"] == pytest.approx(358_000_000 / 950)


def test_without_updates_there_is_no_reduction() -> None:
    assert comparison.against_full_model([], 1000)["reduction_up"] is None
