"""Entries that stay on the device: the same numbers, within their room, and gone when it is needed."""

import pytest
import torch
from structlog.testing import capture_logs

from site_agent.cache.folder import CacheFolder
from site_agent.models.backbone import Prefix
from site_agent.training import evaluate
from site_agent.training.compute import Compute
from site_agent.training.resident import Resident
from site_agent.training.views import View
from tests.support import tiny_site
from tests.support.devices import DEVICES

SIZE = 2 * 10 * 4


def entry():
    return Prefix(torch.zeros(10, dtype=torch.float32), torch.zeros(10, dtype=torch.float32))


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return tiny_site.write_cases(tmp_path_factory.mktemp("cases"), 4)


def keys(cases):
    return [(View(case, "plain"), 0) for case in cases]


def test_what_comes_first_stays_within_the_room_there_is(cases):
    resident = Resident(2 * SIZE)
    for key in keys(cases):
        resident.put(key, entry())
    assert [resident.get(key) is not None for key in keys(cases)] == [True, True, False, False]
    assert resident.size == 2 * SIZE
    resident.put(keys(cases)[0], entry())
    assert resident.size == 2 * SIZE


def test_what_two_rounds_have_not_used_makes_room(cases):
    resident, (first, second, third, _) = Resident(2 * SIZE), keys(cases)
    resident.put(first, entry())
    resident.put(second, entry())
    for _ in range(2):
        resident.begin_round()
        resident.get(second)
    resident.put(third, entry())
    assert resident.get(third) is None
    resident.begin_round()
    resident.put(third, entry())
    assert [resident.get(key) is not None for key in (first, second, third)] == [False, True, True]


def test_all_of_it_can_be_given_back(cases):
    resident = Resident(2 * SIZE)
    assert not resident.clear()
    resident.put(keys(cases)[0], entry())
    assert resident.clear()
    assert resident.size == 0
    assert resident.get(keys(cases)[0]) is None
    resident.put(keys(cases)[0], entry())  # it was too much
    assert not resident.clear()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("frames", ["stacked", "siamese"])
def test_an_entry_that_stays_is_the_one_from_the_cache(cases, tmp_path, device, frames):
    model, folder = tiny_site.classifier(frames), CacheFolder(tmp_path / "activations", 1 << 30)
    views = [View(case, "plain") for case in cases]
    plain = tiny_site.activations(model, folder, device=device, stored=torch.float16)
    expected = plain.prefixes(views)
    held = tiny_site.activations(model, folder, device=device, stored=torch.float16, resident=Resident(1 << 30))
    held.prefixes(views)
    for path in folder.path.rglob("*.safetensors"):
        path.unlink()  # it is not asked for any more
    found = held.prefixes(views)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.skips, expected.skips)
    assert held.resident.size == sum(value.nbytes for value in expected) // 2


def test_without_a_cache_nothing_stays(cases):
    activations = tiny_site.activations(tiny_site.classifier(), resident=Resident(1 << 30))
    activations.prefixes([View(cases[0], "plain")])
    assert activations.resident.size == 0


@pytest.mark.parametrize(("failures", "sizes"), [(1, [4, 4]), (2, [4, 4, 2, 2]), (3, [4, 4, 2, 1, 1, 1, 1])])
def test_when_memory_runs_out_it_goes_once_before_fewer_samples_are_taken(cases, tmp_path, failures, sizes):
    model = tiny_site.classifier()
    activations = tiny_site.activations(
        model, CacheFolder(tmp_path / "activations", 1 << 30), resident=Resident(1 << 30)
    )
    (expected,) = evaluate.scores(model, activations, cases)
    suffix, tried = model.suffix, []

    def narrow(prefix):
        tried.append(len(prefix.tokens))
        if len(tried) <= failures:
            raise MemoryError
        return suffix(prefix)

    model.suffix = narrow
    with capture_logs() as logs:
        (found,) = evaluate.scores(model, activations, cases)
    assert tried == sizes
    assert [event["next"].split(",")[0] for event in logs] == ["as many", "2 at a time", "1 at a time"][:failures]
    assert found == pytest.approx(expected, abs=1e-6)


def test_memory_that_runs_out_while_the_cache_is_filled_is_left_to_training(cases, tmp_path):
    model = tiny_site.classifier()
    activations = tiny_site.activations(
        model, CacheFolder(tmp_path / "activations", 1 << 30), resident=Resident(1 << 30)
    )
    views = [View(case, "plain") for case in cases]
    activations.prefixes(views[:1])
    prefix, tried = model.backbone.prefix, []

    def narrow(image, first_block):
        tried.append(len(tried))
        if len(tried) != 2:
            raise MemoryError
        return prefix(image, first_block)

    model.backbone.prefix = narrow
    with capture_logs() as logs:
        assert activations.fill(views) == 1  # with the room that was made; the one after it is too much
    assert len(tried) == 3
    assert [event["event"] for event in logs] == ["memory_ran_out"]


def test_a_cpu_needs_none():
    assert Resident.on(Compute(torch.device("cpu"))) is None
