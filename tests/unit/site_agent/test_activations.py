"""Frozen activations: kept or computed again, they are the same numbers."""

import pytest
import torch

from site_agent.data import cohort, windows
from site_agent.models.classifier import CineClassifier
from site_agent.training.activations import PREFIX_BATCH
from tests.support import tiny_site


class Counted(CineClassifier):
    """Counts the images that go through the frozen part."""

    images = 0

    def prefix(self, image):
        self.images += len(image)
        return super().prefix(image)


@pytest.fixture
def cases(tmp_path):
    return tiny_site.write_cases(tmp_path, 3)


@pytest.mark.parametrize("frames", ["stacked", "siamese"])
def test_a_plain_view_is_the_model_s_prefix_of_the_case(cases, frames):
    model = tiny_site.classifier(frames)
    activations = tiny_site.activations(model)
    found = activations.prefixes([activations.plain(case) for case in cases])
    images = torch.stack([torch.from_numpy(cohort.load_input(case, tiny_site.SIZE)) for case in cases])
    with torch.no_grad():
        expected = model.prefix(images)
    torch.testing.assert_close(found.tokens, expected.tokens, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.skips, expected.skips, rtol=0, atol=1e-6)
    assert len(found.tokens) == len(cases) * model.entries_per_case


def test_what_is_kept_is_not_computed_again(cases):
    model = tiny_site.classifier(kind=Counted)
    activations = tiny_site.activations(model)
    views = [activations.plain(case) for case in cases]
    activations.fill(views)
    assert model.images == 3
    again = activations.prefixes(views)
    assert model.images == 3
    assert activations.bytes_held == again.tokens.nbytes + again.skips.nbytes


def test_without_room_the_same_numbers_are_computed_every_time(cases):
    model = tiny_site.classifier(kind=Counted)
    kept, recomputed = tiny_site.activations(model), tiny_site.activations(model, limit_bytes=0)
    views = [view for case in cases for view in kept.training_views(case, 2)]
    expected = kept.prefixes(views)
    for _ in range(2):
        before = model.images
        found = recomputed.prefixes(views)
        assert model.images == before + len(views)
        assert torch.equal(found.tokens, expected.tokens)
        assert torch.equal(found.skips, expected.skips)
    assert recomputed.bytes_held == 0


def test_the_limit_is_kept(cases):
    whole = tiny_site.activations(tiny_site.classifier())
    whole.fill([whole.plain(cases[0])])
    limited = tiny_site.activations(tiny_site.classifier(), limit_bytes=2 * whole.bytes_held + 1)
    limited.fill([limited.plain(case) for case in cases])
    assert limited.bytes_held == 2 * whole.bytes_held


def test_filling_leaves_off_when_asked_to_stop(tmp_path):
    cases = tiny_site.write_cases(tmp_path, 20)
    model = tiny_site.classifier(kind=Counted)
    activations = tiny_site.activations(model)
    activations.fill([activations.plain(case) for case in cases], should_stop=lambda: model.images >= 8)
    assert model.images == PREFIX_BATCH


def test_a_tall_volume_has_overlapping_windows_and_trains_on_the_middle_one(tmp_path):
    (case,) = tiny_site.write_cases(tmp_path, 1, slices=9)
    activations = tiny_site.activations(tiny_site.classifier())
    crops = windows.split(cohort.load_pair(case), tiny_site.SIZE)
    assert [view.index for view in activations.windows(case)] == list(range(len(crops)))
    assert len(crops) == 4  # slices 0-3, 2-5, 4-7 and, flush with the end, 5-8
    assert activations.plain(case).index == 2


def test_random_views_repeat_with_the_seed_and_differ_between_views_cases_and_seeds(cases):
    def view_prefixes(seed):
        activations = tiny_site.activations(tiny_site.classifier(), seed=seed)
        views = [view for case in cases[:2] for view in activations.training_views(case, 2)]
        assert [view.kind for view in views] == ["window", "random", "random"] * 2
        return activations.prefixes(views).tokens

    first, again, other = view_prefixes(1), view_prefixes(1), view_prefixes(2)
    assert torch.equal(first, again)
    assert torch.equal(first[0], other[0])  # the plain view knows no seed
    for position in (1, 2, 4, 5):
        assert not torch.equal(first[position], other[position])
    assert not torch.equal(first[1], first[2])
    assert not torch.equal(first[1], first[4])
