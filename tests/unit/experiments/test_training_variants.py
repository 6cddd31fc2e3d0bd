"""What the timed steps train, where cached entries lie, and how often views are computed."""

import pytest
import torch

from experiments.training import cache, synthetic, variants, views
from experiments.training.variants import Step
from shared.recipe import Recipe
from site_agent.cache.folder import CacheFolder
from site_agent.data import cohort
from site_agent.data.cohort import Cohort
from site_agent.training.compute import Compute
from site_agent.training.views import View
from tests.support import tiny_site

CPU = Compute(torch.device("cpu"))
NETWORK = tiny_site.CONFIG


def trained(step: Step) -> list[torch.nn.Parameter]:
    return [parameter for group in step.optimiser.param_groups for parameter in group["params"]]


@pytest.fixture
def image():
    return synthetic.images(2, NETWORK)


def test_peft_trains_as_many_numbers_as_dual_lora_and_all_of_them(image):
    ours = variants.uncached(synthetic.dual(NETWORK), image, CPU)
    peft = variants.peft(NETWORK, image, CPU)
    for step in (ours, peft):
        step()
    assert sum(p.numel() for p in trained(peft)) == sum(p.numel() for p in trained(ours))
    assert all(p.grad is not None for p in (*trained(ours), *trained(peft)))
    moved = [p for p in trained(peft) if p.grad is not None and bool(p.grad.any())]
    assert len(moved) == 2 * 3 * 2 + 4  # B of both adapters on three layers of two blocks, and the heads; A waits for B


def test_full_fine_tuning_trains_the_stem_too(image):
    step = variants.full(NETWORK, image, CPU)
    before = [p.detach().clone() for p in trained(step)]
    step()
    unmoved = [a for a, b in zip(before, trained(step), strict=True) if torch.equal(a, b)]
    assert len(trained(step)) == len(list(synthetic.classifier(NETWORK).parameters()))
    assert not unmoved


def test_a_cached_step_shows_the_model_what_an_uncached_one_does(tmp_path):
    cases = tiny_site.write_cases(tmp_path / "cases", 2)
    model, shown = synthetic.dual(NETWORK), [View(case, "plain") for case in cases]
    activations = tiny_site.activations(model, CacheFolder(tmp_path / "activations", 1 << 30, left_free_bytes=0))
    activations.fill(shown)
    images = torch.stack([torch.from_numpy(cohort.load_input(case, tiny_site.SIZE)) for case in cases])
    with torch.no_grad():
        found = variants.cached(model, activations, shown).logits()
        expected = variants.uncached(model, images, CPU).logits()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_entries_that_were_found_lie_in_their_file(tmp_path):
    (case,) = tiny_site.write_cases(tmp_path / "cases", 1)
    folder = tmp_path / "activations"
    activations = tiny_site.activations(synthetic.dual(NETWORK), CacheFolder(folder, 1 << 30, left_free_bytes=0))
    batch = activations.prefixes([View(case, "plain")])
    (entry,) = activations.look(View(case, "plain")).entries
    assert entry is not None
    assert all(cache.lies_in_file(value, folder) for value in entry)
    assert not any(cache.lies_in_file(value, folder) for value in batch)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [({"augmentation": "none"}, 6), ({"views": 0}, 6 * 4 * 2), ({"views": 1}, 12)],
)
def test_a_view_that_is_kept_is_computed_once(tmp_path, choice, expected):
    """Six cases, four rounds of two epochs; with one random view a case shows both of its views sooner or later."""
    cases = tiny_site.write_cases(tmp_path, 6)
    rounds = 4 if expected != 12 else 20
    assert views.passes(cases, Recipe(local_epochs=2, **choice), rounds, seed=0) == expected


def test_the_synthetic_cohort_is_one_that_a_site_can_train_on(tmp_path):
    written = synthetic.cohort(tmp_path, training=4, test=2)
    loaded = Cohort.load(tmp_path)
    assert loaded.cases == written
    assert [len(loaded.train(0)), len(loaded.validation(0)), len(loaded.test())] == [2, 2, 2]
    assert sorted(case.label for case in loaded.train(0)) == [0, 1]
