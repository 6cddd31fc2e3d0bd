"""Adapter tensors by name: what travels under each head policy, and strict loading."""

import numpy as np
import pytest
import torch
from torch import nn

from shared.errors import InvalidAdapter
from shared.recipe import INSTALLED, make
from site_agent.models import adapter_tensors, lora, networks
from site_agent.models.adapter_tensors import Ownership
from site_agent.models.classifier import CineClassifier
from site_agent.models.config import ConvViTConfig
from site_agent.models.lora import HEAD_POLICIES, DualLoRAConfig
from site_agent.models.monai_config import MonaiViTConfig
from tests.support import adapters

SMALL = ConvViTConfig(
    image_size=(32, 32, 2), enc_conv_chans=(4, 8), enc_conv_n_blocks=1, enc_embed_dim=12, enc_depth=2, enc_n_heads=2
)
MONAI = MonaiViTConfig(
    in_channels=2, img_size=(32, 32, 2), patch_size=(16, 16, 1), hidden_size=12, mlp_dim=24, num_layers=2, num_heads=2
)
A = "base_model.model.encoder.blocks.1.attn.q.lora_A.weight"
B = A.replace("lora_A", "lora_B")
OWN_B = "local.global.encoder.blocks.1.attn.q.lora_B.weight"
POLICY = Ownership("global+local-bias")
OWNERSHIPS = [Ownership(head, frozenset(factors)) for head in HEAD_POLICIES for factors in ("", "B", "A", "AB")]
OWNERSHIPS += [Ownership(head, dense=("encoder.norm.",)) for head in HEAD_POLICIES]


def adapted(seed: int = 0, network=SMALL, **changes) -> CineClassifier:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        backbone = networks.build(network).eval()
    model = CineClassifier(backbone, "stacked", 2, generator)
    lora.attach(model, DualLoRAConfig(rank_global=3, rank_local=2, **changes), generator)
    for layer in lora.adapted_layers(model).values():
        for part in layer.scales:
            nn.init.normal_(layer.lora_B[part], std=0.3, generator=generator)
        for gate in layer.lora_gate.values():
            nn.init.normal_(gate, generator=generator)
        if "residual" in layer.scales:
            nn.init.normal_(layer.lora_A["residual"], generator=generator)
    for name, value in (*model.heads().items(), *model.private_heads().items()):
        if name.endswith("bias") or name in model.private_heads():
            nn.init.normal_(value, generator=generator)
    return model


def owned_model(owned: Ownership, seed: int = 0, network=SMALL) -> CineClassifier:
    """A model with all that an ownership can be about: gates, a residual, and weights of the last norm."""
    return adapted(seed, network, head=owned.head, gated=True, rank_residual=4, dense=owned.dense)


def test_global_names_and_shapes_follow_peft():
    tensors = adapter_tensors.global_tensors(adapted(targets=("kv",), blocks=(1,)), POLICY)
    assert {name: value.shape for name, value in tensors.items()} == {
        "base_model.model.encoder.blocks.1.attn.kv.lora_A.weight": (3, 12),
        "base_model.model.encoder.blocks.1.attn.kv.lora_B.weight": (24, 3),
        "base_model.model.pred_head_dict.cls.weight": (2, 12),
        "base_model.model.pred_head_dict.sax.weight": (2, 12),
    }
    assert list(tensors) == sorted(tensors)
    assert {value.dtype for value in tensors.values()} == {np.dtype(np.float32)}


def test_on_a_monai_vit_global_names_are_those_of_monais_own_layers():
    tensors = adapter_tensors.global_tensors(adapted(network=MONAI, blocks=(1,)), POLICY)
    assert {name: value.shape for name, value in tensors.items() if "head" not in name} == {
        "base_model.model.blocks.1.attn.out_proj.lora_A.weight": (3, 12),
        "base_model.model.blocks.1.attn.out_proj.lora_B.weight": (12, 3),
        "base_model.model.blocks.1.attn.qkv.lora_A.weight": (3, 12),
        "base_model.model.blocks.1.attn.qkv.lora_B.weight": (36, 3),
    }


@pytest.mark.parametrize(
    ("policy", "travels", "stays"),
    [
        ("global", {"weight", "bias"}, set()),
        ("local", set(), {"weight", "bias"}),
        ("global+local-bias", {"weight"}, {"bias"}),
        ("global+local", {"weight", "bias"}, {"weight", "bias"}),
    ],
)
def test_the_head_policy_decides_which_head_tensors_travel(policy, travels, stays):
    model = adapted(head=policy)
    shared = adapter_tensors.global_tensors(model, Ownership(policy))
    private = adapter_tensors.local_tensors(model, Ownership(policy))
    assert {name.rpartition(".")[2] for name in shared if "head" in name} == travels
    assert {name.rpartition(".")[2] for name in private if "head" in name} == stays


@pytest.mark.parametrize("owned", OWNERSHIPS)
def test_every_trainable_parameter_is_either_global_or_local(owned):
    """A residual, which is not trainable, is global besides."""
    model = owned_model(owned)
    groups = adapter_tensors.parameters(model, owned)
    shared, private = (
        (groups.global_lora, groups.dense, groups.head_shared),
        (groups.global_own, groups.local_lora, groups.gates, groups.head_private),
    )
    grouped = [value for group in (*shared, *private) for value in group]
    trainable = [value for value in model.parameters() if value.requires_grad]
    assert len(grouped) == len(trainable)
    assert {id(value) for value in grouped} == {id(value) for value in trainable}
    residual = [value for name, value in model.named_parameters() if name.endswith(".residual")]
    assert len(residual) == 2 * len(lora.adapted_layers(model))
    for tensors, parameters in (
        (adapter_tensors.global_tensors(model, owned), (*shared, residual)),
        (adapter_tensors.local_tensors(model, owned), private),
    ):
        expected = sorted(value.detach().numpy().tobytes() for group in parameters for value in group)
        assert sorted(value.tobytes() for value in tensors.values()) == expected


@pytest.mark.parametrize("owned", OWNERSHIPS)
def test_no_local_value_is_in_a_global_tensor_and_no_local_name_passes_for_a_global_one(owned):
    model = owned_model(owned)
    shared, private = adapter_tensors.global_tensors(model, owned), adapter_tensors.local_tensors(model, owned)
    assert not set(shared) & set(private)
    assert all(name.startswith("local.") for name in private)
    travelling = b"".join(value.tobytes() for value in shared.values())
    assert not any(value.tobytes() in travelling for value in private.values())


@pytest.mark.parametrize("network", [SMALL, MONAI], ids=lambda network: network.network)
@pytest.mark.parametrize("owned", [owned for owned in OWNERSHIPS if not owned.dense])
def test_both_files_together_carry_a_model_over_to_another(owned, network):
    image = torch.rand(2, 2, 32, 32, 2, generator=torch.Generator().manual_seed(3))
    source, target = owned_model(owned, 1, network), owned_model(owned, 2, network)
    assert not torch.allclose(source(image), target(image))
    both = adapter_tensors.global_tensors(source, owned) | adapter_tensors.local_tensors(source, owned)
    adapter_tensors.load_both(target, owned, both)
    assert torch.equal(source(image), target(image))


@pytest.mark.parametrize("head", HEAD_POLICIES)
def test_a_version_and_a_local_file_together_carry_a_model_over_to_another(head):
    image = torch.rand(2, 2, 32, 32, 2, generator=torch.Generator().manual_seed(3))
    owned = Ownership(head, dense=("encoder.norm.",))
    source, target = owned_model(owned, 1), owned_model(owned, 2)
    adapter_tensors.load_global(target, owned, adapter_tensors.global_tensors(source, owned))
    adapter_tensors.load_local(target, owned, adapter_tensors.local_tensors(source, owned))
    assert torch.equal(source(image), target(image))


@pytest.mark.parametrize("name", INSTALLED)
def test_a_site_owns_what_its_recipe_trains_and_never_shares(name):
    received, parameters = adapters.fitting(name)
    owned = Ownership.of(received.manifest.metadata, make(name, parameters))
    head = "global+local" if name == "ditto-lora" else "global+local-bias"
    dense = received.manifest.metadata.dense if name == "full" else ()
    assert owned == Ownership(head, frozenset("B" if name == "fedsa-lora" else ""), dense)


def test_a_factor_of_the_sites_own_has_a_private_name_and_no_global_one():
    owned = Ownership("global+local-bias", frozenset("B"))
    model = adapted()
    shared, private = adapter_tensors.global_tensors(model, owned), adapter_tensors.local_tensors(model, owned)
    assert A in shared
    assert not any("lora_B" in name for name in shared)
    assert np.array_equal(private[OWN_B], adapter_tensors.global_tensors(model, POLICY)[B])


def test_a_version_says_what_is_in_force_of_a_factor_until_the_sites_own_is_loaded():
    owned = Ownership("global+local-bias", frozenset("B"))
    model = adapted()
    version = adapter_tensors.global_tensors(adapted(seed=1), POLICY)
    private = adapter_tensors.local_tensors(model, owned)
    adapter_tensors.load_global(model, owned, version)
    assert np.array_equal(adapter_tensors.local_tensors(model, owned)[OWN_B], version[B])
    adapter_tensors.load_local(model, owned, private)
    assert np.array_equal(adapter_tensors.local_tensors(model, owned)[OWN_B], private[OWN_B])
    with pytest.raises(InvalidAdapter, match=r"tensor .*lora_B\.weight is missing"):
        adapter_tensors.load_global(model, owned, adapter_tensors.global_tensors(model, owned))


def test_only_the_trained_factors_take_gradients_and_afterwards_all_do_again():
    image = torch.rand(2, 2, 32, 32, 2, generator=torch.Generator().manual_seed(3))
    model = adapted()
    model(image).sum().backward()
    factors = {name: value for name, value in model.named_parameters() if "lora_" in name}
    assert all(value.grad is not None for value in factors.values())
    with adapter_tensors.only_trained(model, {"B"}):
        model(image).sum().backward()
        without = {name for name, value in factors.items() if value.grad is None}
        assert without == {name for name in factors if "lora_A.global" in name}
    assert all(value.requires_grad for value in factors.values())


def test_tensors_are_copies_that_training_does_not_change():
    model = adapted()
    before = adapter_tensors.global_tensors(model, POLICY)
    kept = before[A].copy()
    lora.adapted_layers(model)["encoder.blocks.1.attn.q"].lora_A["global"].data.zero_()
    assert np.array_equal(before[A], kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(A), f"tensor {A} is missing"),
        (lambda t: t.update({"local.x": np.zeros(2, np.float32)}), "tensor local.x does not belong"),
        (
            lambda t: t.update({A: np.zeros((4, 12), np.float32)}),
            rf"{A} has shape \[4, 12\], this model needs \[3, 12\]",
        ),
        (lambda t: t.update({A: np.full((3, 12), np.nan, np.float32)}), f"tensor {A} holds values that are not finite"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_by_tensor_and_changes_nothing(change, message):
    model = adapted()
    before = adapter_tensors.global_tensors(model, POLICY)
    tensors = {name: value + 1 for name, value in before.items()}
    change(tensors)
    with pytest.raises(InvalidAdapter, match=message):
        adapter_tensors.load_global(model, POLICY, tensors)
    after = adapter_tensors.global_tensors(model, POLICY)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_local_file_is_refused_where_a_global_one_is_due():
    model = adapted()
    with pytest.raises(InvalidAdapter):
        adapter_tensors.load_global(model, POLICY, adapter_tensors.local_tensors(model, POLICY))


@pytest.mark.parametrize("network", [SMALL, MONAI], ids=lambda network: network.network)
def test_the_combined_adapter_is_the_sum_of_both_parts(network):
    """Logits of every policy and part: tests/unit/site_agent/test_head.py."""
    model = adapted(network=network, alpha_local=5.0)
    combined = adapter_tensors.combined_tensors(model)
    for path, layer in lora.adapted_layers(model).items():
        down = combined[f"base_model.model.{path}.lora_A.weight"]
        up = combined[f"base_model.model.{path}.lora_B.weight"]
        assert down.shape[0] == up.shape[1] == 5
        expected = layer.delta(("global", "local")).detach().numpy()
        np.testing.assert_allclose(up @ down, expected, atol=1e-5)
    assert sum("pred_head_dict" in name for name in combined) == 4
