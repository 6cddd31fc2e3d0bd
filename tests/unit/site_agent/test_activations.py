"""Frozen activations: found or computed, they are the same numbers, and nobody computes them twice."""

from dataclasses import replace

import pytest
import torch

from shared.errors import InputError
from site_agent.cache.folder import CacheFolder
from site_agent.data import cohort, windows
from site_agent.training import ahead, augment
from site_agent.training.views import View
from tests.support import tiny_site


@pytest.fixture
def cases(tmp_path):
    return tiny_site.write_cases(tmp_path / "cases", 3)


@pytest.fixture
def folder(tmp_path):
    return CacheFolder(tmp_path / "activations", 1 << 30, left_free_bytes=0)


@pytest.fixture
def counted(monkeypatch):
    """Count the images that go through the frozen part of a model."""

    def count(model):
        images, prefix = [], model.backbone.prefix
        monkeypatch.setattr(model.backbone, "prefix", lambda image, k: images.append(len(image)) or prefix(image, k))
        return images

    return count


def views_of(cases, *random):
    return [View(case, "plain") for case in cases] + [View(case, "random", i) for case in cases for i in random]


@pytest.mark.parametrize("frames", ["stacked", "siamese"])
def test_a_plain_view_is_the_model_s_prefix_of_the_case(cases, frames):
    model = tiny_site.classifier(frames)
    found = tiny_site.activations(model).prefixes(views_of(cases))
    images = torch.stack([torch.from_numpy(cohort.load_input(case, tiny_site.SIZE)) for case in cases])
    with torch.no_grad():
        expected = model.prefix(images)
    torch.testing.assert_close(found.tokens, expected.tokens, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.skips, expected.skips, rtol=0, atol=1e-6)
    assert len(found.tokens) == len(cases) * model.entries_per_case


@pytest.mark.parametrize("frames", ["stacked", "siamese"])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_an_entry_is_computed_once_for_all_rounds_restarts_and_federations(cases, folder, counted, frames, stored):
    model = tiny_site.classifier(frames)
    first = tiny_site.activations(model, folder, stored=stored)
    images, views = counted(model), views_of(cases, 1, 2)
    computed = first.prefixes(views)
    assert images == [1] * 9 * model.entries_per_case
    again = tiny_site.activations(model, CacheFolder(folder.path, 1 << 30), stored=stored).prefixes(views)
    assert len(images) == 9 * model.entries_per_case
    without = tiny_site.activations(model, stored=stored).prefixes(views)
    for name in ("tokens", "skips"):
        assert getattr(again, name).dtype == torch.float32
        assert torch.equal(getattr(again, name), getattr(computed, name))
        assert torch.equal(getattr(again, name), getattr(without, name))


def test_a_frame_is_an_entry_of_its_own(cases, folder, counted):
    model = tiny_site.classifier("siamese")
    activations = tiny_site.activations(model, folder)
    expected = activations.prefixes(views_of(cases))
    entries = sorted(folder.path.rglob("*.safetensors"))
    assert len(entries) == 6
    entries[2].unlink()
    images = counted(model)
    found = activations.prefixes(views_of(cases))
    assert images == [1]
    assert torch.equal(found.tokens, expected.tokens)


def test_the_frozen_part_runs_without_gradients_in_evaluation_mode(cases, monkeypatch):
    model = tiny_site.classifier()
    seen, prefix = [], model.backbone.prefix

    def watched(image, k):
        seen.append((torch.is_grad_enabled(), model.backbone.training))
        return prefix(image, k)

    monkeypatch.setattr(model.backbone, "prefix", watched)
    found = tiny_site.activations(model).prefixes(views_of(cases))
    assert set(seen) == {(False, False)}
    assert not found.tokens.requires_grad


@pytest.mark.parametrize("how", ["cut short", "one bit", "another entry", "not a file of this kind", "empty"])
def test_a_damaged_entry_is_computed_again_and_never_used(cases, folder, counted, how):
    model = tiny_site.classifier()
    activations = tiny_site.activations(model, folder)
    expected = activations.prefixes(views_of(cases))
    entries = sorted(folder.path.rglob("*.safetensors"))
    data = bytearray(entries[1].read_bytes())
    if how == "one bit":
        data[-5] ^= 4
    entries[1].write_bytes(
        {
            "cut short": bytes(data[:-100]),
            "one bit": bytes(data),
            "another entry": entries[0].read_bytes(),
            "not a file of this kind": b"no tensors at all, but long enough to be looked at" * 9,
            "empty": b"",
        }[how]
    )
    images = counted(model)
    found = activations.prefixes(views_of(cases))
    assert images == [1]
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.skips, expected.skips)
    activations.prefixes(views_of(cases))
    assert images == [1]


def test_every_bit_of_an_entry_counts(cases, folder, counted):
    """One flipped bit anywhere in the file: computed again, or as good as before (a name in the header may have two spellings)."""
    model = tiny_site.classifier()
    activations = tiny_site.activations(model, folder)
    expected = activations.prefixes(views_of(cases[:1]))
    (entry,) = folder.path.rglob("*.safetensors")
    whole = entry.read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 300)):
        data = bytearray(whole)
        data[position] ^= 1 << position % 8
        entry.write_bytes(bytes(data))
        found = activations.prefixes(views_of(cases[:1]))
        assert torch.equal(found.tokens, expected.tokens), position
        assert torch.equal(found.skips, expected.skips), position


def test_what_an_entry_was_computed_from_is_in_its_name(cases, folder, tmp_path):
    """Another image under the same case name, another seed, other ranges: another entry."""
    activations = tiny_site.activations(tiny_site.classifier(), folder)
    views = views_of(cases[:1], 1)
    before = activations.prefixes(views)

    def entries():
        return len(list(folder.path.rglob("*.safetensors")))

    assert entries() == 2
    tiny_site.activations(tiny_site.classifier(), folder, seed=1).prefixes(views)
    assert entries() == 3
    tiny_site.activations(tiny_site.classifier(), folder, ranges=augment.RANGES["narrow"]).prefixes(views)
    assert entries() == 4
    other = replace(tiny_site.write_cases(tmp_path / "other", 1, seed=9)[0])
    assert other.key == cases[0].key
    found = tiny_site.activations(tiny_site.classifier(), folder).prefixes(views_of([other], 1))
    assert entries() == 6
    assert not torch.equal(found.tokens, before.tokens)


def test_the_plain_view_is_the_window_that_evaluation_uses_and_one_entry(tmp_path, folder, counted):
    (case,) = tiny_site.write_cases(tmp_path, 1, slices=9)
    model = tiny_site.classifier()
    activations, images = tiny_site.activations(model, folder), counted(model)
    crops = windows.split(cohort.load_pair(case), tiny_site.SIZE)
    shown = activations.windows(case)
    assert [view.index for view in shown] == list(range(len(crops)))
    assert len(crops) == 4  # slices 0-3, 2-5, 4-7 and, flush with the end, 5-8
    of_windows = activations.prefixes(shown)
    plain = activations.prefixes([View(case, "plain")])
    assert len(images) == 4
    assert torch.equal(plain.tokens[0], of_windows.tokens[2])


def test_filling_computes_what_is_missing_and_says_how_far_it_is(cases, folder, counted):
    model = tiny_site.classifier()
    activations, images, told = tiny_site.activations(model, folder), counted(model), []
    activations.prefixes(views_of(cases[:1]))
    assert activations.fill(views_of(cases, 1), on_progress=lambda done, of: told.append((done, of))) == 5
    assert told == [(n, 6) for n in range(1, 7)]
    assert activations.fill(views_of(cases, 1)) == 0
    assert len(images) == 6


def test_filling_leaves_off_when_asked_to_stop_and_without_a_cache_does_nothing(cases, folder, counted):
    model = tiny_site.classifier()
    images = counted(model)
    assert tiny_site.activations(model).fill(views_of(cases)) == 0
    assert images == []
    assert tiny_site.activations(model, folder).fill(views_of(cases), should_stop=lambda: len(images) >= 2) == 2


def test_filling_takes_no_room_from_what_it_found(cases, folder):
    """After a restart what is there counts as in use, and is not given up for what comes later."""
    model = tiny_site.classifier()
    tiny_site.activations(model, folder).prefixes(views_of(cases[:2]))
    before = sorted(folder.path.rglob("*.safetensors"))
    full = CacheFolder(folder.path, sum(path.stat().st_size for path in before), left_free_bytes=0)
    assert tiny_site.activations(model, full).fill(views_of(cases, 1)) == 0
    assert sorted(folder.path.rglob("*.safetensors")) == before


def test_filling_stops_where_the_limit_is(cases, folder, counted):
    model = tiny_site.classifier()
    tiny_site.activations(model, folder).prefixes(views_of(cases[:1]))
    (entry,) = folder.path.rglob("*.safetensors")
    small = CacheFolder(folder.path.parent / "small", int(2.5 * entry.stat().st_size), left_free_bytes=0)
    activations, images = tiny_site.activations(model, small), counted(model)
    assert activations.fill(views_of(cases, 1, 2)) == 2
    assert len(images) == 3  # the third is how it learns that there is no room
    assert len(list(small.path.rglob("*.safetensors"))) == 2


def test_a_fresh_view_is_not_kept(cases, folder):
    activations = tiny_site.activations(tiny_site.classifier(), folder)
    fresh = [View(case, "random", 5, kept=False) for case in cases]
    first, again = activations.prefixes(fresh), activations.prefixes(fresh)
    assert torch.equal(first.tokens, again.tokens)
    assert activations.fill(fresh) == 0
    assert list(folder.path.rglob("*.safetensors")) == []


def test_numbers_that_the_cache_cannot_write_are_refused_by_name(cases, folder):
    model = tiny_site.classifier()
    with torch.no_grad():
        model.backbone.encoder.cls_token.fill_(1e6)
    with pytest.raises(InputError, match=r"case mnms/P000 are not finite as float16; set cache_dtype"):
        tiny_site.activations(model, folder, stored=torch.float16).prefixes(views_of(cases))
    assert tiny_site.activations(model, folder, stored=torch.bfloat16).prefixes(views_of(cases)).tokens.isfinite().all()


def test_random_views_repeat_with_the_seed_and_differ_between_views_cases_and_seeds(cases):
    def view_prefixes(seed):
        activations = tiny_site.activations(tiny_site.classifier(), seed=seed)
        shown = [view for case in cases[:2] for view in views_of([case], 1, 2)]
        return activations.prefixes(shown).tokens

    first, again, other = view_prefixes(1), view_prefixes(1), view_prefixes(2)
    assert torch.equal(first, again)
    assert torch.equal(first[0], other[0])  # the plain view knows no seed
    for position in (1, 2, 4, 5):
        assert not torch.equal(first[position], other[position])
    assert not torch.equal(first[1], first[2])
    assert not torch.equal(first[1], first[4])


# --- a batch ahead --------------------------------------------------------------------------------------------------


def test_what_a_batch_needs_is_looked_up_while_the_one_before_is_used(cases, folder, counted):
    """Also the same view in neighbouring batches is computed once: the second look came too early to find it."""
    model = tiny_site.classifier()
    activations, images = tiny_site.activations(model, folder), counted(model)
    batches = [[View(cases[0], "plain")], [View(cases[0], "plain"), View(cases[1], "plain")], [View(cases[1], "plain")]]
    found = [activations.finish(looked).tokens for looked in ahead.looked_up(batches, activations)]
    assert [len(tokens) for tokens in found] == [1, 2, 1]
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[1][1], found[2][0])
    assert images == [1, 1]


def test_what_goes_wrong_ahead_is_raised_to_who_asked(cases):
    cases[1].es_path.unlink()
    activations = tiny_site.activations(tiny_site.classifier())
    looked = ahead.looked_up([[View(case, "plain")] for case in cases], activations)
    assert len(next(looked)) == 1
    with pytest.raises(InputError, match="mnms/P001"):
        next(looked)
