"""A site on each device there is: entries, training, resuming and scores, held against the CPU's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.recipe import Recipe
from site_agent.cache.folder import CacheFolder
from site_agent.models import adapter_tensors
from site_agent.models.adapter_tensors import Ownership
from site_agent.training import evaluate, local
from site_agent.training.local import Position
from site_agent.training.views import View
from tests.support import tiny_site
from tests.support.devices import DEVICES

OWNED = Ownership("global+local-bias")
RECIPE = Recipe(rank_local=2, local_epochs=2, batch_size=4)
ROOT = Path(__file__).resolve().parents[3]
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return tiny_site.write_cases(tmp_path_factory.mktemp("cases"), 9)


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def train(cases, device, folder=None, **options):
    model = tiny_site.classifier()
    activations = tiny_site.activations(model, folder, device=device)
    loss = local.train_round(model, activations, cases, RECIPE, OWNED, Position(1, 4, 7), **options)
    return loss, adapter_tensors.global_tensors(model, OWNED) | adapter_tensors.local_tensors(model, OWNED)


def assert_close(found, expected, tolerance=TOLERANCE):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_an_entry_is_found_as_it_was_computed(cases, device, stored, tmp_path):
    model, views = tiny_site.classifier(), [View(cases[0], "plain"), View(cases[1], "random", 1)]
    first = tiny_site.activations(model, CacheFolder(tmp_path, 1 << 30), device=device, stored=stored)
    computed = first.prefixes(views)
    found = tiny_site.activations(model, CacheFolder(tmp_path, 1 << 30), device=device, stored=stored).prefixes(views)
    on_cpu = tiny_site.activations(tiny_site.classifier(), stored=stored).prefixes(views)
    for one, other, expected in zip(computed, found, on_cpu, strict=True):
        assert one.device.type == device
        assert one.dtype == torch.float32
        assert torch.equal(one, other)
        torch.testing.assert_close(one.cpu(), expected, atol=0.04 if stored == torch.bfloat16 else 0.005, rtol=0)


def test_a_round_is_that_of_the_cpu_with_a_cache_and_without(cases, device, tmp_path):
    loss, expected = train(cases, "cpu")
    for folder in (None, CacheFolder(tmp_path, 1 << 30), CacheFolder(tmp_path, 1 << 30)):
        found_loss, found = train(cases, device, folder)
        assert found_loss == pytest.approx(loss, abs=TOLERANCE)
        assert_close(found, expected)


class Kept:
    """Keeps one checkpoint in memory, when training is stopped."""

    due = False

    def __init__(self):
        self.progress = None

    def newest(self):
        return self.progress

    def save(self, progress):
        self.progress = progress


def test_a_round_that_was_stopped_goes_on_to_the_same_adapter(cases, device):
    _, expected = train(cases, device)
    kept, asked = Kept(), []
    hooks = local.Hooks(should_stop=lambda: asked.append(True) is None and len(asked) == 4)
    with pytest.raises(local.Stopped):
        train(cases, device, keeper=kept, hooks=hooks)
    assert kept.progress.step == 3
    _, found = train(cases, device, keeper=kept)
    assert_close(found, expected, 1e-6)


def test_scores_are_those_of_the_cpu(cases, device):
    def scores(name):
        model = tiny_site.classifier()
        (found,) = evaluate.scores(model, tiny_site.activations(model, device=name), cases)
        return found

    np.testing.assert_allclose(scores(device), scores("cpu"), atol=TOLERANCE)


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_a_site_trains_validates_and_compares_its_arms(device, precision, tmp_path):
    contract, initial = tiny_site.contract(tiny_site.write_backbone(tmp_path / "base"), RECIPE)
    site = tiny_site.trainer(tmp_path, tmp_path / "base", contract, device=device, precision=precision)
    assert site.fill_cache(1) > 0
    trained = site.train(1, initial, site.initial_local(), local.Hooks())
    assert all(np.isfinite(value).all() for value in trained.global_tensors.values())
    assert any((value != initial.tensors[name]).any() for name, value in trained.global_tensors.items())
    figures = site.compare_arms(initial, initial, trained.local_tensors, local.Hooks()).figures
    assert set(figures) == {"probe", "alone", "global", "dual"}
    assert {value.device.type for value in site.model.parameters()} == {device}


# --- the device's own allocator -------------------------------------------------------------------------------------

LIMITED = """
import json, resource, sys
import torch
from structlog.testing import capture_logs
from site_agent.models.backbone import Prefix
from site_agent.training.micro_batch import MicroBatch
from tests.support import tiny_site

TOKENS, SAMPLES, ROOM, DEVICE = 512, 128, 32 << 20, sys.argv[1]
torch.set_num_threads(1)
model = tiny_site.classifier().to(DEVICE)
width = tiny_site.CONFIG.enc_embed_dim
generator = torch.Generator().manual_seed(1)
tokens = torch.randn(SAMPLES, 1 + TOKENS, width, generator=generator).to(DEVICE)
trained = [value for value in model.parameters() if value.requires_grad]

def gradient(at_once):
    for value in trained:
        value.grad = None
    for start in range(0, SAMPLES, at_once):
        part = tokens[start : start + at_once]
        with fitting.saving(model):
            logits = model.suffix(Prefix(part, part[:, 1:]))
        (logits[:, 0].sum() / SAMPLES).backward()
    return torch.cat([value.grad.flatten() for value in trained])

def limit():
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + ROOM) / whole)
        return
    pages = int(open("/proc/self/statm").read().split()[0])
    most = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))

fitting = MicroBatch()
expected = gradient(1)
for size in (2, 4, 8, 16):
    gradient(size)  # oneDNN makes code for every size, which needs pages of its own: it has them before the limit comes
limit()
with capture_logs() as logs:
    found = fitting.fitted(SAMPLES, gradient)
difference = (found - expected).abs().max() / expected.abs().max()
print(json.dumps([fitting.size, [event["samples"] for event in logs], float(difference)]))
"""


def test_a_process_that_may_have_no_more_memory_goes_on_with_less(device):
    """The process is limited, so torch's own allocator fails in the middle of a forward or backward pass."""
    finished = subprocess.run(
        [sys.executable, "-c", LIMITED, device],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
    )
    assert finished.returncode == 0, finished.stderr
    size, said, difference = json.loads(finished.stdout)
    assert 1 < size < 128
    assert said[0] == 128
    assert said == [128 // 2**i for i in range(len(said))]
    assert size == said[-1] // 2
    assert difference < 1e-5
