"""The arms that were never federated: on the device the site trains on, in pieces that fit, with the local part off."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from shared.recipe import Recipe
from site_agent.models import lora
from site_agent.models.adapter_tensors import Ownership
from site_agent.models.backbone import Prefix
from site_agent.training import arms, local
from site_agent.training.activations import Activations, View
from tests.support import tiny_site

OWNED = Ownership("global+local-bias")
RECIPE = Recipe(rank_local=2, views=0, local_epochs=1, batch_size=4)


@dataclass
class Elsewhere:
    """Activations on torch's `meta` device, which like a GPU refuses to mix with tensors of the CPU."""

    device = torch.device("meta")

    def plain(self, case):
        return View(case, "window", 0)

    def training_views(self, case, random_views):
        return [self.plain(case)]

    def prefixes(self, views):
        entries, width = len(views), tiny_site.CONFIG.enc_embed_dim
        tokens = int(np.prod(tiny_site.CONFIG.grid_size))
        return Prefix(
            torch.empty(entries, 1 + tokens, width, device="meta"), torch.empty(entries, tokens, width, device="meta")
        )


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return tiny_site.write_cases(tmp_path_factory.mktemp("cases"), 9)


def test_the_probe_stays_on_the_sites_device(cases):
    model = tiny_site.classifier().to("meta")
    arms.fit_probe(model, Elsewhere(), cases, RECIPE, rounds=1, seed=0)
    assert {value.device.type for value in model.heads().values()} == {"meta"}


def test_alone_trains_in_micro_batches_to_the_same_model(cases):
    scores = []
    for micro_batch in (0, 2):
        model = tiny_site.classifier()
        activations = Activations(model, tiny_site.SIZE, 0, torch.device("cpu"), 10**9)
        sizes = []
        suffix = model.suffix
        model.suffix = lambda prefix, sizes=sizes, suffix=suffix: sizes.append(len(prefix.tokens)) or suffix(prefix)
        comparison = arms.Comparison(activations, cases, cases, ())
        figures = comparison.alone(model, RECIPE, OWNED, 1, 0, local.Hooks(), micro_batch)
        assert min(sizes) <= (micro_batch or RECIPE.batch_size)
        assert micro_batch == 0 or sizes[:2] == [2, 2]
        scores.append(figures["validation"]["auc"])
    assert scores[0] == pytest.approx(scores[1])


def test_the_global_arm_has_neither_local_product_nor_private_bias():
    model = tiny_site.classifier()
    with torch.no_grad():
        for value in model.heads().values():
            value.fill_(0.5)
    arms.switch_local_off(model, OWNED)
    assert all(layer.active == ("global",) for layer in lora.adapted_layers(model).values())
    assert {float(v.detach().abs().max()) for n, v in model.heads().items() if n.endswith(".bias")} == {0.0}
    assert {float(v.detach().min()) for n, v in model.heads().items() if n.endswith(".weight")} == {0.5}


def test_without_a_local_part_the_global_arm_is_the_dual_one_but_for_its_bias(cases):
    model = tiny_site.classifier(rank_local=0)
    comparison = arms.Comparison(tiny_site.activations(model), cases, cases, ())
    dual = comparison.figures(model)
    arms.switch_local_off(model, OWNED)
    assert comparison.figures(model) == dual
