"""The arms that were never federated: on the device the site trains on, in pieces that fit, with the local part off."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from shared.contract import ARMS
from shared.recipe import Recipe
from site_agent.models import lora
from site_agent.models.adapter_tensors import Ownership
from site_agent.models.backbone import Prefix
from site_agent.training import arms, evaluate, local, metrics
from site_agent.training.arms import Arm
from site_agent.training.compute import Compute
from site_agent.training.micro_batch import MicroBatch
from tests.support import tiny_site

OWNED = Ownership("global+local-bias")
RECIPE = Recipe(rank_local=2, augmentation="none", local_epochs=1, batch_size=4)


@dataclass
class Elsewhere:
    """Activations on torch's `meta` device, which like a GPU refuses to mix with tensors of the CPU."""

    compute = Compute(torch.device("meta"))

    def make_room(self):
        return False

    def look(self, view):
        return view

    def finish(self, looked):
        entries, width = len(looked), tiny_site.CONFIG.enc_embed_dim
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


def judged(model, cases):
    compared = arms.compare(model, tiny_site.activations(model), {"dual": Arm.of(model)}, cases, ())
    return compared.figures["dual"]["validation"]


def test_alone_trains_in_micro_batches_to_the_same_model(cases):
    scores = []
    for micro_batch in (0, 2):
        model = tiny_site.classifier()
        activations, sizes = tiny_site.activations(model), []
        suffix = model.suffix
        model.suffix = lambda prefix, sizes=sizes, suffix=suffix: sizes.append(len(prefix.tokens)) or suffix(prefix)
        arms.fit_alone(model, activations, cases, RECIPE, OWNED, 1, 0, local.Hooks(), MicroBatch(micro_batch))
        assert min(sizes) <= (micro_batch or RECIPE.batch_size)
        assert micro_batch == 0 or sizes[:2] == [2, 2]
        scores.append(judged(model, cases)["auc"])
    assert scores[0] == pytest.approx(scores[1])


def test_an_arm_brings_adapters_heads_and_what_counts_back(cases):
    model = tiny_site.classifier()
    before, dual = judged(model, cases), Arm.of(model)
    arms.switch_local_off(model)
    with torch.no_grad():
        for value in model.parameters():
            value.requires_grad and value.add_(0.3)
    assert judged(model, cases) != before
    dual.put(model)
    assert judged(model, cases) == before


def test_all_arms_share_one_pass_of_the_frozen_part(cases, monkeypatch):
    model = tiny_site.classifier()
    images, prefix = [], model.backbone.prefix
    monkeypatch.setattr(model.backbone, "prefix", lambda image, k: images.append(len(image)) or prefix(image, k))
    four = {name: Arm.of(model) for name in ARMS}
    found = arms.compare(model, tiny_site.activations(model), four, cases[:5], cases[5:]).figures
    assert len(images) == len(cases)
    assert list(found) == list(ARMS)
    assert all(figures == found["probe"] for figures in found.values())


def test_with_nothing_to_validate_on_no_arm_has_figures_and_the_held_out_cases_have_scores(cases):
    model = tiny_site.classifier()
    found = arms.compare(model, tiny_site.activations(model), {"dual": Arm.of(model)}, (), cases)
    assert found.figures == {"dual": {}}
    assert (found.scores.keys, set(found.scores.sets)) == (tuple(case.key for case in cases), {"test"})


def test_the_scores_that_are_kept_are_those_the_figures_are_of(cases):
    model = tiny_site.classifier()
    activations = tiny_site.activations(model)
    found = arms.compare(model, activations, {"dual": Arm.of(model)}, cases[:5], cases[5:])
    test = found.scores.of("test")
    assert test.keys == tuple(case.key for case in cases[5:])
    assert found.scores.of("validation").labels.tolist() == [case.label for case in cases[:5]]
    again = evaluate.scores(model, activations, cases[5:])[0]
    np.testing.assert_array_equal(test.margins["dual"], again)
    assert found.figures["dual"]["test"]["auc"] == metrics.auc(again, test.labels)


def test_the_global_arm_has_neither_local_product_nor_private_bias():
    model = tiny_site.classifier()
    with torch.no_grad():
        for value in model.heads().values():
            value.fill_(0.5)
    arms.switch_local_off(model)
    assert all(layer.active == ("global",) for layer in lora.adapted_layers(model).values())
    weights = [value for name, value in model.heads().items() if name.endswith(".weight")]
    features = torch.rand(3, 2, model.feature_dim, generator=torch.Generator().manual_seed(2))
    expected = sum(features[:, i] @ weight.T for i, weight in enumerate(weights)) / 2
    torch.testing.assert_close(model.head(features), expected)
    assert {float(value.detach().min()) for value in model.heads().values()} == {0.5}  # nothing is lost


def test_without_a_local_part_the_global_arm_is_the_dual_one_but_for_its_bias(cases):
    model = tiny_site.classifier(rank_local=0)
    dual = judged(model, cases)
    arms.switch_local_off(model)
    assert judged(model, cases) == dual
