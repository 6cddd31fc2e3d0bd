"""The only door out: an `Update` is built here, from the global adapter alone, and nowhere else.

`seal` takes the received and the trained *global* tensors and subtracts them. There is no parameter through which a local
tensor could come: the local adapter lives in the site's state and is never an argument of anything that makes a message.
The allow-list is the adapter manifest both sides agreed on; whatever does not match it exactly is refused, not filtered.

What a lossy codec cannot say in one round is not lost but owed: it is kept as the residual and added to the next delta
(`shared.feedback`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from shared import codecs, feedback
from shared.adapter import Adapter
from shared.canonical import canonical_json, sha256_hex
from shared.contract import check_told
from shared.layout import Layout
from shared.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateFacts:
    """What goes with an update's bytes."""

    round: int
    base_version: int
    training_patients: int
    metrics: dict[str, float]
    codec: str = "f32"


@dataclass(frozen=True)
class Update:
    """A sealed update: payload bytes in the order of `layout`, and the facts that go with them."""

    facts: UpdateFacts
    layout: Layout
    payload: bytes
    derived_layout: bool = True
    """Whether the layout is the one the recipe derives; another one travels spelled out, and the aggregator refuses it."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the payload as sent, hex."""
        return sha256_hex(self.payload)

    def layout_field(self) -> dict[str, Any]:
        """Return the layout as BeginUpload carries it."""
        if self.derived_layout:
            return {"layout_digest": self.layout.digest}
        return {"layout_json": canonical_json(self.layout.to_jsonable())}


def seal(
    received: Adapter,
    trained: Mapping[str, np.ndarray],
    recipe: Recipe,
    facts: UpdateFacts,
    sites: int,
    residual: Mapping[str, np.ndarray] | None = None,
    seed: bytes = b"",
) -> tuple[Update, dict[str, np.ndarray]]:
    """Return the update for one round, and the residual it leaves; both by the recipe's codec.

    `trained` holds the tensors that travel in this round, and no others. delta = trained - received in float32. With a
    lossless codec delta is what is sent, and the residual is empty; otherwise see `shared.feedback.send`.

    Raises InvalidAdapter naming the first tensor of `trained` that is missing, extra, of another shape or not finite, and
    InputError for a metric that may not leave (none may under differential privacy): the site fails closed before anything is sent.
    """
    layout = recipe.upload_layout(received.manifest, facts.round, sites)
    check_told(recipe, facts.metrics)
    layout.written_as(codecs.PLAIN).check_equal(Layout.of(trained))
    delta = {s.name: (trained[s.name] - received.tensors[s.name]).astype(np.float32) for s in layout.tensors}
    sent = feedback.send(layout, delta, residual or {}, seed)
    update = Update(replace(facts, codec=recipe.codec), layout, sent.payload)
    return update, sent.residual if codecs.is_lossy(recipe.codec) else {}
