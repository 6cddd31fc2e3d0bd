"""How much memory there is, by the files of a machine that is made up, and what a forward pass keeps, by hand."""

import os
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from site_agent.training import memory
from site_agent.training.recompute import recomputed
from tests.support import tiny_site

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.fixture
def machine(tmp_path):
    """Return what answers for a machine with these control groups: their limits by folder, and the process's own line."""

    def total(line, **limits):
        own = tmp_path / "cgroup"
        own.write_text(f"{line}\n")
        for place, text in limits.items():
            file = tmp_path / "fs" / place.replace("__", "/").replace("max", "memory.max")
            file = file if file.name == "memory.max" else file.parent / "memory.limit_in_bytes"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")
        return memory.total_bytes(tmp_path / "fs", own)

    return total


def test_without_a_limit_it_is_the_machines(machine, tmp_path):
    assert machine("0::/a", max="max") == MACHINE
    assert memory.total_bytes(tmp_path / "none", tmp_path / "none") == MACHINE


def test_the_least_limit_of_the_groups_above_counts(machine):
    assert machine("0::/a/b", a__b__max=3_000_000, a__max=2_000_000, max="max") == 2_000_000


def test_in_a_container_the_limit_lies_at_the_top(machine):
    """Its path is then that of the host, which is not there."""
    assert machine("0::/system.slice/docker-1.scope", max=5_000_000) == 5_000_000


def test_version_1_has_a_tree_of_its_own_for_memory(machine):
    assert machine("9:cpuset,memory:/docker/0a", memory__docker__0a__limit=7_000_000) == 7_000_000
    assert machine("9:cpuset:/docker/0a", memory__docker__0a__limit=7_000_000) == MACHINE


def test_all_processes_of_a_machine_share_half_of_it():
    assert memory.for_training(1) == memory.total_bytes() // 2
    assert memory.for_training(4) == memory.total_bytes() // 8


def test_what_is_kept_is_counted_once_and_without_the_models_own():
    """A linear layer keeps its input for the gradient of its weight, and GELU keeps its own: 8 x 10 and 8 x 6 float32."""
    layer = nn.Linear(10, 6)
    x = torch.randn(8, 10)
    assert memory.saved_bytes(layer, lambda: F.gelu(layer(x))) == 4 * (8 * 10 + 8 * 6)
    assert memory.saved_bytes(layer, lambda: (layer(x) + layer(x[:, :])).sum()) == 4 * 8 * 10
    frozen = nn.Linear(10, 6).requires_grad_(False)
    assert memory.saved_bytes(frozen, lambda: F.gelu(frozen(x))) == 0


def test_nothing_of_the_forward_pass_stays():
    """An operation that keeps what it returned must not be kept by that in turn."""
    x, passed = torch.randn(8, 10, requires_grad=True), []

    def forward():
        value = (2 * x).exp()
        passed.append(weakref.ref(value.untyped_storage()))
        return value.sum()

    assert memory.saved_bytes(nn.Linear(1, 1), forward) == 4 * 8 * 10
    assert passed[0]() is None


# --- gradient checkpointing -----------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path):
    model = tiny_site.classifier()
    cases = tiny_site.write_cases(tmp_path, 3)
    activations = tiny_site.activations(model)
    return model, activations.prefixes([activations.windows(case)[0] for case in cases])


def gradients(model):
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def test_checkpointed_blocks_give_the_same_bits_and_keep_less(site):
    model, prefix = site
    blocks = model.backbone.blocks[model.first_block :]
    model.suffix(prefix).sum().backward()
    expected = gradients(model)
    model.zero_grad()
    with recomputed(blocks):
        logits = model.suffix(prefix)
    logits.sum().backward()
    found = gradients(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())

    def lean():
        with recomputed(blocks):
            return model.suffix(prefix)

    whole = memory.saved_bytes(model, lambda: model.suffix(prefix))
    assert memory.saved_bytes(model, lean) < 0.5 * whole


def test_after_it_the_blocks_are_as_they_were(site):
    model, _ = site
    names = [name for name, _ in model.named_parameters()]
    with recomputed(model.backbone.blocks):
        assert [name for name, _ in model.named_parameters()] == names
    with pytest.raises(KeyboardInterrupt), recomputed(model.backbone.blocks):
        raise KeyboardInterrupt
    assert not any("forward" in vars(block) for block in model.backbone.blocks)
