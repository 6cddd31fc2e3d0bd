"""Weights of the base model itself: all of them, none but the head, or a stem beside LoRA. What moves, travels and is kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments import simulation
from shared.errors import InputError
from shared.recipe import Recipe, factor_of
from site_agent import starting
from site_agent.cache.folder import CacheFolder
from site_agent.models import adapter_tensors, weights
from site_agent.models.adapter_tensors import Ownership
from site_agent.models.convvit import ConvViT
from site_agent.new_adapter import AdapterChoices, init_adapter
from site_agent.training import local
from site_agent.training.local import Hooks, Position
from site_agent.training.micro_batch import MicroBatch
from tests.support import tiny_site

QUICK = Recipe(rank_local=2, augmentation="none", local_epochs=1, batch_size=4)
FULL = replace(QUICK, name="full", rank_local=0, lr_global=1e-3)
HEAD = replace(QUICK, name="head-only", rank_local=0)
FIRST_CONVOLUTION = "enc_down_dict.sax.conv_blocks.0.patch_embed.conv."
PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return tiny_site.write_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def site(backbone, tmp_path_factory):
    def make(recipe, name="ge", cases=12, rounds=4, **choices):
        contract, initial = tiny_site.contract(backbone, recipe, rounds, **choices)
        return tiny_site.trainer(tmp_path_factory.mktemp("site"), backbone, contract, name, cases), contract, initial

    return make


def own_parameters(trainer):
    return {n: v for n, v in trainer.model.backbone_module().named_parameters() if ".lora_" not in n}


# --- all of them ------------------------------------------------------------------------------------------------------


def test_version_0_holds_every_weight_of_the_base_model_as_it_is(backbone):
    adapter = init_adapter(backbone, "", AdapterChoices(rank=0, dense=("",), head_policy="global"))
    network = ConvViT(tiny_site.CONFIG, heads=False)
    network.load_state_dict(weights.read_tensors(backbone / "model.safetensors"))
    base = {f"{PREFIX}{name}": value.detach().numpy() for name, value in network.named_parameters()}
    heads = {f"{PREFIX}pred_head_dict.{head}.{kind}" for head in ("cls", "sax") for kind in ("weight", "bias")}
    assert adapter.tensors.keys() == base.keys() | heads
    assert all(adapter.tensors[name].tobytes() == value.tobytes() for name, value in base.items())
    assert adapter.manifest.metadata.dense == ("",)
    assert adapter.manifest.metadata.base_model_sha256 == weights.base_model_sha256(network)


def test_no_site_can_draw_it_and_its_head_is_drawn_from_the_seed(backbone, site):
    trainer, contract, initial = site(FULL)
    assert contract.manifest.metadata.seed is None
    assert starting.version_0(trainer, contract) is None
    again, other = (init_adapter(backbone, "", AdapterChoices(rank=0, dense=("",), seed=seed)) for seed in (3, 4))
    assert again.digest == initial.digest
    differ = {name for name, value in other.tensors.items() if not np.array_equal(value, initial.tensors[name])}
    assert differ == {name for name in initial.tensors if "pred_head_dict" in name}


def test_every_weight_travels_and_moves_and_nothing_is_private_but_a_bias(site):
    trainer, _, initial = site(FULL)
    trained = trainer.train(1, initial, trainer.initial_local(), Hooks())
    expected = {f"{PREFIX}{name}" for name in own_parameters(trainer)} | {n for n in initial.tensors if "head" in n}
    assert trained.global_tensors.keys() == initial.tensors.keys() == expected
    assert not [n for n, value in trained.global_tensors.items() if np.array_equal(value, initial.tensors[n])]
    assert set(trained.local_tensors) == {"local.pred_head_dict.cls.bias", "local.pred_head_dict.sax.bias"}


def test_a_federation_of_one_ends_each_round_with_what_its_site_trained(site):
    trainer, contract, initial = site(FULL, rounds=3)
    contract = replace(contract, policy=replace(contract.policy, invited=1, quorum=1))
    rounds = list(simulation.federate(contract, initial, {"ge": trainer}))
    held = adapter_tensors.global_tensors(trainer.model, trainer.owned)
    for name, value in rounds[-1].version.tensors.items():
        np.testing.assert_allclose(value, held[name], atol=1e-7, rtol=1e-6, err_msg=name)
    assert rounds[-1].train_loss < rounds[0].train_loss


def test_the_mean_of_two_sites_is_taken_weight_by_weight(site):
    """Source: McMahan et al. 2017, arXiv:1602.05629, algorithm 1."""
    ge, contract, initial = site(FULL, rounds=1)
    canon, *_ = site(FULL, "canon", 18, rounds=1)
    (one,) = simulation.federate(contract, initial, {"ge": ge, "canon": canon})
    ends = {s: adapter_tensors.global_tensors(t.model, t.owned) for s, t in (("ge", ge), ("canon", canon))}
    n = {"ge": ge.training_patients, "canon": canon.training_patients}
    for name, value in one.version.tensors.items():
        mean = sum(n[s] * ends[s][name].astype(np.float64) for s in n) / sum(n.values())
        np.testing.assert_allclose(value, mean, atol=1e-6, err_msg=name)


# --- what is cached -----------------------------------------------------------------------------------------------------


def test_where_nothing_is_frozen_before_the_blocks_the_prefix_is_the_image():
    model = tiny_site.classifier(recipe=FULL)
    image = torch.rand(2, 2, *tiny_site.SIZE, generator=torch.Generator().manual_seed(1))
    prefix = model.prefix(image)
    assert model.first_block is None
    assert torch.equal(prefix.tokens, image)
    assert prefix.skips.shape == (2, 0)


@pytest.mark.parametrize("frames", ["stacked", "siamese"])
@pytest.mark.parametrize("dense", [("",), (FIRST_CONVOLUTION,)])
def test_logits_are_those_of_the_same_network_cut_before_a_block(frames, dense):
    model = tiny_site.classifier(frames, recipe=QUICK, dense=dense)
    image = torch.rand(2, 2, *tiny_site.SIZE, generator=torch.Generator().manual_seed(1))
    whole = model(image)
    for block in (0, 1, 2):
        model.first_block = block
        torch.testing.assert_close(model(image), whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize("recipe", [FULL, replace(QUICK, views=2)], ids=["full", "stem"])
def test_cached_and_uncached_rounds_end_with_the_same_bytes(tmp_path, recipe, stored):
    """A kept entry is rounded as it is stored whether it was found or computed. The stem's round shows random views too."""
    recipe = replace(recipe, augmentation="narrow")
    choices = {"dense": (FIRST_CONVOLUTION,)} if recipe.name != "full" else {}
    owned = Ownership.of(tiny_site.metadata(recipe, **choices), recipe)
    cases = tiny_site.write_cases(tmp_path / "cases", 6)
    ends = []
    for folder in (None, CacheFolder(tmp_path / "kept", 1 << 30), CacheFolder(tmp_path / "kept", 1 << 30)):
        model = tiny_site.classifier(recipe=recipe, **choices)
        activations = tiny_site.activations(model, folder, stored=stored)
        local.train_round(model, activations, cases, recipe, owned, Position(1, 4, 7))
        ends.append({name: value.detach().numpy().tobytes() for name, value in model.named_parameters()})
    assert ends[0] == ends[1] == ends[2]


def test_micro_batches_and_recomputed_blocks_give_the_gradient_of_the_whole_batch(tmp_path):
    cases, owned = tiny_site.write_cases(tmp_path, 8), Ownership.of(tiny_site.metadata(FULL), FULL)
    ends = []
    for fitting in (MicroBatch(), MicroBatch(3), MicroBatch(3, recompute=True)):
        model = tiny_site.classifier(recipe=FULL)
        local.train_round(
            model, tiny_site.activations(model), cases, FULL, owned, Position(1, 4, 7), micro_batch=fitting
        )
        ends.append(adapter_tensors.global_tensors(model, owned))
    for name, value in ends[0].items():
        np.testing.assert_allclose(ends[1][name], value, atol=2e-4, err_msg=name)
        np.testing.assert_allclose(ends[2][name], value, atol=2e-4, err_msg=name)


# --- a stem beside LoRA -------------------------------------------------------------------------------------------------


def test_a_first_convolution_trains_and_travels_beside_both_low_rank_parts(site):
    trainer, _, initial = site(QUICK, dense=(FIRST_CONVOLUTION,))
    stem = {f"{PREFIX}{FIRST_CONVOLUTION}{kind}" for kind in ("weight", "bias")}
    assert stem < initial.tensors.keys()
    assert any(factor_of(name) for name in initial.tensors)
    frozen = {n: v.detach().clone() for n, v in own_parameters(trainer).items() if f"{PREFIX}{n}" not in stem}
    first = trainer.train(1, initial, trainer.initial_local(), Hooks())
    assert first.global_tensors.keys() == initial.tensors.keys()
    still = {name for name, value in first.global_tensors.items() if np.array_equal(value, initial.tensors[name])}
    assert not still & stem
    assert all(torch.equal(own_parameters(trainer)[name], value) for name, value in frozen.items())
    second = initial.successor({**initial.tensors, **first.global_tensors}, 1)
    again = trainer.train(2, second, first.local_tensors, Hooks())
    assert all(not np.array_equal(v, first.local_tensors[n]) for n, v in again.local_tensors.items())


def test_the_stem_learns_at_the_global_rate_and_rests_where_the_global_part_does(tmp_path):
    """AdamW's first step is rate * sign(gradient) wherever the gradient is far above eps (Kingma & Ba 2015, section 2.1)."""
    recipe = replace(QUICK, lr_global=1e-3, lr_local=3e-3, batch_size=16)
    choices = {"dense": (FIRST_CONVOLUTION,)}
    cases, owned = tiny_site.write_cases(tmp_path, 8), Ownership.of(tiny_site.metadata(recipe, **choices), recipe)
    name, moved = f"{PREFIX}{FIRST_CONVOLUTION}weight", {}
    for mode, rounds in (("joint", recipe), ("adaptation", replace(recipe, name="adaptation"))):
        model = tiny_site.classifier(recipe=rounds, **choices)
        before = adapter_tensors.global_tensors(model, owned)[name]
        local.train_round(model, tiny_site.activations(model), cases, rounds, owned, Position(1, 4, 7))
        moved[mode] = np.abs(adapter_tensors.global_tensors(model, owned)[name] - before)
    assert np.median(moved["joint"]) == pytest.approx(1e-3, rel=1e-2)
    assert not moved["adaptation"].any()


def test_a_weight_that_is_not_there_is_refused_with_some_that_are(backbone):
    with pytest.raises(InputError, match=r"begins with 'stem\.'; it has: .*enc_down_dict"):
        init_adapter(backbone, "", AdapterChoices(dense=("stem.",)))


# --- none but the head --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("policy", ["global", "global+local-bias", "global+local"])
def test_with_the_head_alone_nothing_else_travels_or_moves(site, policy, rank):
    trainer, _, initial = site(HEAD, rank=rank, head_policy=policy)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trained = trainer.train(1, initial, trainer.initial_local(), Hooks())
    heads = {name for name in initial.tensors if "pred_head_dict" in name}
    assert trained.global_tensors.keys() == heads
    assert all(not np.array_equal(trained.global_tensors[name], initial.tensors[name]) for name in heads)
    moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    drawn = {
        name for name in before if ".lora_A.global" in name
    }  # what version 0 says, and the model before it was loaded
    assert {name.split(".")[0] for name in moved - drawn} <= {"pred_head_dict", "private_head_dict"}
    now = adapter_tensors.global_tensors(trainer.model, trainer.owned)
    assert all(np.array_equal(now[name], initial.tensors[name]) for name in initial.tensors if name not in heads)
