"""Fusion weights: fitted on few cases of the site's own, they go where the parts are worth something, and touch nothing else."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from shared.recipe import Recipe
from site_agent.models import lora
from site_agent.models.adapter_tensors import Ownership
from site_agent.models.lora import DualLoRALinear
from site_agent.training import fusion, local
from site_agent.training.compute import Compute
from site_agent.training.local import CaseLoss, Hooks, Position
from site_agent.training.views import View
from tests.support import tiny_site

RECIPE = Recipe(
    name="fdlora", rank_local=2, augmentation="none", local_epochs=6, batch_size=8, lr_global=2e-2, lr_local=2e-2
)
OWNED = Ownership("global+local-bias")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Sign:
    """A case that is told from others by signs alone."""

    key: int
    label: int


class TwoMargins(nn.Module):
    """Logits whose margin is v_g m_g x_1 + v_l m_l x_2: one layer with a weight of zero and two parts of rank 1."""

    def __init__(self, margins):
        super().__init__()
        self.layer = DualLoRALinear(
            nn.Linear(2, 2, bias=False), dict.fromkeys(lora.PARTS, 1.0), dict.fromkeys(lora.PARTS, 1), gated=True
        )
        self.layer.weight.data.zero_()
        for number, (part, margin) in enumerate(zip(lora.PARTS, margins, strict=True)):
            self.layer.lora_A[part].data = torch.eye(2)[number : number + 1]
            self.layer.lora_B[part].data = torch.tensor([[-margin / 2], [margin / 2]])

    def suffix(self, prefix):
        return self.layer(prefix)


@dataclass(frozen=True)
class Signs:
    """Instead of activations: x_1 is +1 for label 1 and -1 for 0. x_2 is the same, or the sign of another halving of the cases."""

    informative: bool
    compute: Compute = field(default_factory=lambda: Compute(CPU))

    def prefixes(self, views):
        said = [2.0 * view.case.label - 1 for view in views]
        other = [1.0 if view.case.key // 2 % 2 else -1.0 for view in views]
        return torch.tensor(list(zip(said, said if self.informative else other, strict=True)))


SIGNS = [Sign(key, key % 2) for key in range(32)]
PLAIN_LOSS = CaseLoss(torch.ones(2), torch.zeros(2))


def fitted(margins, informative=True):
    model = TwoMargins(margins)
    return fusion.fit(model, Signs(informative), SIGNS, PLAIN_LOSS, 7)


def best_alone(margin):
    """Where d/dv (log(1 + exp(-m v)) + 0.05 v) = 0: v = log(m / 0.05 - 1) / m."""
    return math.log(margin / fusion.PENALTY - 1) / margin


@pytest.mark.parametrize(
    ("margins", "informative", "worth"),
    [
        ((4.0, 0.0), True, "global"),  # the local product is zero: only the penalty is left of it
        ((0.0, 4.0), True, "local"),
        ((1.0, 0.0), True, "global"),
        ((4.0, 3.0), False, "global"),  # the local part says what has nothing to do with the label
        ((20.0, 3.0), False, "global"),
        ((1.0, 3.0), True, "local"),  # both say the same, the local part with less weight
    ],
)
def test_weights_go_to_the_minimum_in_closed_form(margins, informative, worth):
    """A part that is worth nothing is switched off, and the other one gets what it would get alone."""
    found = dict(zip(lora.PARTS, fitted(margins, informative), strict=True))
    wanted = best_alone(dict(zip(lora.PARTS, margins, strict=True))[worth])
    (other,) = set(lora.PARTS) - {worth}
    assert abs(found[other]) < 0.1
    assert found[worth] == pytest.approx(wanted, rel=0.1)


def test_a_part_that_says_the_contrary_is_turned_round_or_switched_off():
    of_global, of_local = fitted((4.0, -4.0))
    assert of_global > 0.5
    assert of_local < 0.1


# --- in a model -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return tiny_site.write_cases(tmp_path_factory.mktemp("cases"), 12)


class Fitted:
    """A model of which one part was trained on the cases and the other is noise, and the weights that were found."""

    def __init__(self, cases, useful):
        self.cases, self.model = cases, tiny_site.classifier(recipe=RECIPE)
        self.activations = tiny_site.activations(self.model)
        other = next(part for part in lora.PARTS if part != useful)
        local.train_round(self.model, self.activations, cases, RECIPE, OWNED, Position(1, 1, 7))
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for layer in lora.adapted_layers(self.model).values():
                layer.lora_B[other].copy_(0.5 * torch.randn(layer.lora_B[other].shape, generator=generator))
        self.loss_of = CaseLoss.of(cases, RECIPE, CPU)
        self.before = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        self.found = fusion.fit(self.model, self.activations, cases, self.loss_of, 7)

    def cost(self, weights):
        """Mean loss of the cases that it is fitted on, and 0.05 (| v_g | + | v_l |), as FDLoRA's authors have it."""
        for layer in lora.adapted_layers(self.model).values():
            for part, value in zip(lora.PARTS, weights, strict=True):
                layer.lora_gate[part].data.fill_(value)
        with torch.no_grad():
            logits = self.model.suffix(self.activations.prefixes([View(case, "plain") for case in self.cases]))
            wanted = torch.tensor([case.label for case in self.cases])
            return float(self.loss_of(logits, wanted).mean()) + 0.05 * sum(abs(value) for value in weights)


@pytest.mark.parametrize("useful", lora.PARTS)
def test_the_weights_cost_no_more_than_any_they_began_with(cases, useful):
    one = Fitted(cases, useful)
    assert one.cost(one.found) <= min(one.cost(start) for start in fusion.START) + 1e-6


def test_only_the_gates_change_and_all_of_a_part_are_one_weight(cases):
    one = Fitted(cases, "local")
    for name, value in one.model.named_parameters():
        if ".lora_gate." not in name:
            assert torch.equal(value, one.before[name]), name
    for part in lora.PARTS:
        gates = {layer.lora_gate[part].item() for layer in lora.adapted_layers(one.model).values()}
        assert gates == {np.float32(one.found[lora.PARTS.index(part)]).item()}
    assert all(layer.active == lora.PARTS for layer in lora.adapted_layers(one.model).values())


def test_the_same_cases_and_seed_give_the_same_weights(cases):
    first, again = Fitted(cases, "global"), Fitted(cases, "global")
    assert first.found == again.found


def test_every_round_trains_the_parts_as_they_are_and_fits_them_anew(cases):
    """Weights of the round before are no factor in the steps of the next."""
    ends = []
    for gate in (1.0, 0.1):
        model, seen = tiny_site.classifier(recipe=RECIPE), []
        layers = lora.adapted_layers(model).values()
        fusion._put(model, (gate, gate))

        def look(*_, layers=layers, seen=seen):
            seen.append({value.item() for layer in layers for value in layer.lora_gate.values()})

        local.train_round(
            model, tiny_site.activations(model), cases, RECIPE, OWNED, Position(2, 4, 7), hooks=Hooks(on_step=look)
        )
        assert seen == [{1.0}] * len(seen)
        ends.append({name: value.detach().clone() for name, value in model.named_parameters()})
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_cases_are_half_of_each_class_as_far_as_it_goes(tmp_path):
    many = tiny_site.write_cases(tmp_path, 60)  # 20 normal, 40 not
    chosen = fusion._few(many, 7)
    assert [case.label for case in chosen] == [0] * 16 + [1] * 16
    assert chosen == fusion._few(many, 7) != fusion._few(many, 8)
    assert len({case.key for case in chosen}) == 32
    assert [case.label for case in fusion._few(many[:7], 7)] == [0] * 3 + [1] * 4
