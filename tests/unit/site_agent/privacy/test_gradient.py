"""A private step: one patient changes the sum by at most C, all that travels is in it, the noise is what was said, and the clipped
sum is that of Opacus.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from structlog.testing import capture_logs
from torch import nn
from torch.nn import functional as F

from shared.errors import InputError
from shared.methods import GLOBAL_ALONE
from site_agent.models import adapter_tensors, lora
from site_agent.models.lora import DualLoRALinear
from site_agent.privacy import gradient, sampling
from site_agent.privacy.gradient import ClippedSum, PrivateGradient
from site_agent.privacy.stream import NOISE, Stream
from site_agent.training import local, views
from site_agent.training.gradient import Gradient
from site_agent.training.micro_batch import MicroBatch
from site_agent.training.parallel import ALONE
from site_agent.training.schedule import Batch
from site_agent.training.site import SiteTrainer
from tests.support import private_site
from tests.support.private_site import RECIPE, stream

HEAD = "base_model.model.pred_head_dict.{}.weight"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> SiteTrainer:
    trainer, initial = private_site.make(tmp_path_factory.mktemp("site"))
    rng = np.random.default_rng(2)
    noisy = {n: v + rng.normal(0, 0.1, v.shape).astype(np.float32) for n, v in initial.tensors.items()}
    adapter_tensors.load_global(trainer.model, trainer.owned, noisy)
    return trainer


class Silenced(Stream):
    """Draws no noise at all."""

    def normals(self, purpose: int, step: int, count: int) -> np.ndarray:
        return np.zeros(count)


def private(site: SiteTrainer, stream: Stream, at_once: int = 0, **parameters: float) -> PrivateGradient:
    recipe = replace(RECIPE, **parameters)
    lora.use(site.model, GLOBAL_ALONE.active)
    trained = [p for p in site.model.parameters() if p.requires_grad]
    loss_of = local.CaseLoss.of(site.train_cases, recipe, torch.device("cpu"))
    made = Gradient(site.model, site.activations, trained, loss_of, MicroBatch(at_once), ALONE)
    travelling = adapter_tensors.travelling(site.model, site.owned, recipe, 1)
    return PrivateGradient(made, travelling, recipe, len(site.train_cases), stream)


def batch_of(site: SiteTrainer, patients: Sequence[int]) -> Batch:
    cases = [site.train_cases[i] for i in patients]
    shown = [view for case in cases for view in views.at_a_time(case, RECIPE, 7, 0)]
    return Batch(tuple(shown), np.array([view.case.label for view in shown], np.int64), 0.0, 0, GLOBAL_ALONE)


def step(site: SiteTrainer, made: PrivateGradient, patients: Sequence[int], number: int = 0) -> dict[str, np.ndarray]:
    """Return what a step leaves in the tensors that travel, times what it was divided by."""
    batch = batch_of(site, patients)
    made.of(batch, number, iter([[site.activations.look(view) for view in batch.views]]))
    times = sampling.expected(made.patients, made.recipe)
    return {name: times * p.grad.numpy().astype(np.float64) for name, p in made.travelling.items()}


def flat(tensors: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])


# --- what is in it ----------------------------------------------------------------------------------------------------


def test_the_vector_is_every_tensor_that_travels_the_head_too(site):
    made = private(site, Silenced(bytes(32)))
    layout = RECIPE.upload_layout(site.contract.manifest, 1, 2)
    assert {spec.name for spec in layout.tensors} == set(made.travelling)
    assert {HEAD.format(name) for name in ("sax", "cls")} < set(made.travelling)
    found = step(site, made, range(9))
    assert all(np.any(value) for value in found.values())


def test_the_head_shares_the_clip_with_the_factors(site):
    """A patient over C comes to a norm of C with the head in it, and to less without."""
    found = step(site, private(site, Silenced(bytes(32)), dp_clip=1e-3), [3])
    factors = {name: value for name, value in found.items() if "pred_head" not in name}
    assert np.linalg.norm(flat(found)) == pytest.approx(1e-3, rel=1e-6)
    assert np.linalg.norm(flat(factors)) < 0.99e-3


def test_nothing_else_gets_a_gradient(site):
    made = private(site, stream())
    step(site, made, range(9))
    travelling = {id(p) for p in made.travelling.values()}
    assert all(p.grad is None for p in site.model.parameters() if id(p) not in travelling)


def test_a_tensor_that_is_trained_and_not_noised_is_refused():
    travels, own = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    gradient.check_covers({"b": travels}, [travels])
    with pytest.raises(InputError, match="a tensor that does not travel"):
        gradient.check_covers({"b": travels}, [travels, own])
    with pytest.raises(InputError, match=r"something else \(head\)"):
        gradient.check_covers({"b": travels, "head": own}, [travels])


# --- sensitivity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [1e-4, 1e-2, 1.0, 100.0])
def test_adding_or_removing_one_patient_moves_the_sum_by_at_most_c(site, clip):
    made = private(site, Silenced(bytes(32)), dp_clip=clip)
    everybody = flat(step(site, made, range(9)))
    moved = [
        np.linalg.norm(everybody - flat(step(site, made, [i for i in range(9) if i != left]))) for left in range(9)
    ]
    assert max(moved) <= clip * (1 + 1e-6)
    assert (max(moved) > 0.999 * clip) == (clip < 10)  # the bound is met where patients are clipped at all


def test_a_patients_views_are_averaged_before_clipping(site):
    """Two views of one patient: the clipped mean of two gradients, not two clipped ones."""
    made, clip = private(site, Silenced(bytes(32)), dp_clip=1e6), 5e-3
    batch = batch_of(site, [4])
    assert len(batch.views) == RECIPE.views + 1
    single = []
    for at in range(len(batch.views)):
        one = replace(batch, views=batch.views[at : at + 1], labels=batch.labels[at : at + 1])
        made.of(one, 0, iter([[site.activations.look(view) for view in one.views]]))
        single.append(4 * np.concatenate([made.travelling[n].grad.numpy().ravel() for n in sorted(made.travelling)]))
    mean = np.mean(single, axis=0)
    expected = mean * min(1, clip / np.linalg.norm(mean))
    found = flat(step(site, private(site, Silenced(bytes(32)), dp_clip=clip), [4]))
    assert found == pytest.approx(expected, abs=1e-6 * clip)


def test_the_log_says_that_a_gradient_is_not_finite_and_not_of_how_many_patients(site):
    made = private(site, Silenced(bytes(32)))
    one = next(iter(made.travelling.values()))
    before = one.detach().clone()
    with capture_logs() as events, torch.no_grad():
        one.fill_(torch.nan)
        with torch.enable_grad():
            found = step(site, made, [1, 2])
        one.copy_(before)
    assert events == [{"event": "gradient_not_finite", "log_level": "warning"}]
    assert not flat(found).any()


def test_a_gradient_that_is_not_finite_counts_as_nothing():
    total = ClippedSum.of(3, 2.0)
    for vector in ([3.0, 0.0, 4.0], [np.nan, 1.0, 0.0], [np.inf, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]):
        total.add(np.array(vector))
    assert total.total == pytest.approx([1.2, 1.0, 1.6])
    assert total.left_out == 2


# --- noise ------------------------------------------------------------------------------------------------------------


def test_noise_has_the_variance_that_was_said(site):
    """sigma^2 C^2, in every tensor, over 40 steps with nobody in them."""
    made = private(site, stream(9), dp_noise=1.5, dp_clip=0.2)
    drawn = [step(site, made, [], number) for number in range(40)]
    count = sum(p.numel() for p in made.travelling.values())
    values = np.array([flat(one) for one in drawn])
    assert values.shape == (40, count)
    assert values.std() == pytest.approx(0.3, rel=4 / (2 * values.size) ** 0.5)
    for name in made.travelling:
        of_one = np.array([one[name] for one in drawn])
        assert of_one.std() == pytest.approx(0.3, rel=5 / (2 * of_one.size) ** 0.5), name


def test_a_step_is_the_clipped_sum_plus_the_streams_noise_over_the_expected_size(site):
    without, made = private(site, Silenced(bytes(32))), private(site, stream(3))
    clipped, noisy = flat(step(site, without, [0, 5])), flat(step(site, made, [0, 5], number=4))
    noise = RECIPE.dp_noise * RECIPE.dp_clip * stream(3).normals(NOISE, 4, len(clipped))
    assert noisy == pytest.approx(clipped + noise, abs=1e-7)
    batch = batch_of(site, [0, 5])
    made.of(batch, 4, iter([[site.activations.look(view) for view in batch.views]]))
    left = {name: p.grad.numpy() for name, p in made.travelling.items()}
    assert flat(left) == pytest.approx((clipped + noise) / 4, abs=1e-7)  # batch_size, whoever was drawn


def test_a_step_with_nobody_in_it_is_noise_alone(site):
    made = private(site, stream(3))
    found = flat(step(site, made, []))
    expected = RECIPE.dp_noise * RECIPE.dp_clip * stream(3).normals(NOISE, 0, len(found))
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert np.isnan(made.of(batch_of(site, []), 0, iter([[]])))


def test_micro_batches_make_no_difference(site):
    whole, single = (private(site, Silenced(bytes(32)), at_once=size) for size in (0, 1))
    assert flat(step(site, single, range(9))) == pytest.approx(flat(step(site, whole, range(9))), abs=1e-7)


# --- Opacus -----------------------------------------------------------------------------------------------------------


class OpacusLayer(nn.Module):
    """The same layer of plain linear ones, which Opacus knows: W x + b + s B (A x)."""

    def __init__(self, layer: DualLoRALinear) -> None:
        super().__init__()
        out_features, in_features = layer.weight.shape
        rank = layer.lora_A["global"].shape[0]
        self.base, self.scale = nn.Linear(in_features, out_features), layer.scales["global"]
        self.down, self.up = nn.Linear(in_features, rank, bias=False), nn.Linear(rank, out_features, bias=False)
        with torch.no_grad():
            self.base.weight.copy_(layer.weight)
            self.base.bias.copy_(layer.bias)
            self.down.weight.copy_(layer.lora_A["global"])
            self.up.weight.copy_(layer.lora_B["global"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.scale * self.up(self.down(x))


class OpacusModel(nn.Module):
    """The trained part of a site's model, its adapted layers replaced by those."""

    def __init__(self, site: SiteTrainer) -> None:
        super().__init__()
        self.model = site.model
        self.replaced = lora.adapted_layers(site.model)
        self.layers = nn.ModuleDict({path.replace(".", "/"): OpacusLayer(one) for path, one in self.replaced.items()})
        self.heads = nn.ModuleDict({name: nn.Linear(one.in_features, 2, bias=False) for name, one in self._heads()})
        for name, one in self._heads():
            self.heads[name].weight.data.copy_(one.weight)

    def _heads(self):
        return list(self.model.pred_head_dict.items())

    def forward(self, tokens: torch.Tensor, skips: torch.Tensor) -> torch.Tensor:
        from site_agent.models.backbone import Prefix

        pooled = self.model.pooled(Prefix(tokens, skips))
        logits = [self.heads[name](pooled[:, at]) for at, name in enumerate(("sax", "cls"))]
        return torch.stack(logits).mean(dim=0)


@pytest.mark.parametrize("clip", [2e-3, 1e-2, 10.0])
def test_the_clipped_sum_is_that_of_opacus(site, clip, monkeypatch):
    """Per-sample gradients by Opacus's hooks and its optimiser's clipping, on the whole trained part of the model."""
    made = private(site, Silenced(bytes(32)), dp_clip=clip)
    recipe = replace(RECIPE, augmentation="none")
    cases = site.train_cases
    shown = [views.at_a_time(case, recipe, 7, 0)[0] for case in cases]
    batch = Batch(tuple(shown), np.array([case.label for case in cases], np.int64), 0.0, 0, GLOBAL_ALONE)
    made.of(batch, 0, iter([[site.activations.look(view) for view in shown]]))
    times = sampling.expected(made.patients, made.recipe)
    ours = {name: times * p.grad.numpy() for name, p in made.travelling.items()}

    with torch.no_grad():
        prefix = site.activations.prefixes(shown)
    twin = OpacusModel(site)
    for path, layer in twin.replaced.items():
        monkeypatch.setattr(layer, "forward", twin.layers[path.replace(".", "/")].forward)
    held = {name: twin.layers[name].up.weight for name in twin.layers} | {n: h.weight for n, h in twin.heads.items()}
    theirs = twin_gradients(twin, held, prefix, batch.labels, clip)
    for name, value in theirs.items():
        path = f"base_model.model.{name.replace('/', '.')}.lora_B.weight" if "/" in name else HEAD.format(name)
        assert ours[path] == pytest.approx(value, abs=1e-6 * clip), path
    assert len(theirs) == len(ours)


def twin_gradients(twin, held, prefix, labels, clip) -> dict[str, np.ndarray]:
    """Return the sum of clipped per-sample gradients of the tensors in `held`, by Opacus."""
    hooked = nn.ModuleDict({"layers": twin.layers, "heads": twin.heads})
    for parameter in hooked.parameters():
        parameter.requires_grad_(False)
    for parameter in held.values():
        parameter.requires_grad_(True)
    sampled = GradSampleModule(hooked, loss_reduction="sum", strict=True)
    try:
        optimiser = DPOptimizer(
            torch.optim.SGD(list(held.values()), lr=0.0),
            noise_multiplier=0.0,
            max_grad_norm=clip,
            expected_batch_size=1,
            loss_reduction="sum",
        )
        loss = F.cross_entropy(twin(prefix.tokens, prefix.skips), torch.from_numpy(labels), reduction="sum")
        loss.backward()
        optimiser.clip_and_accumulate()
        return {name: parameter.summed_grad.numpy() for name, parameter in held.items()}
    finally:
        sampled.remove_hooks()
