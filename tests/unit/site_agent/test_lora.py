"""Dual LoRA: the formula, each part alone, merging, and refusals."""

import pytest
import torch
from torch import nn

from shared.errors import InputError
from site_agent.models import lora, networks
from site_agent.models.classifier import CineClassifier
from site_agent.models.config import ConvViTConfig
from site_agent.models.convvit import ConvViT
from site_agent.models.lora import DualLoRAConfig, DualLoRALinear
from site_agent.models.monai_config import MonaiViTConfig

SMALL = ConvViTConfig(
    image_size=(32, 32, 2), enc_conv_chans=(4, 8), enc_conv_n_blocks=1, enc_embed_dim=12, enc_depth=4, enc_n_heads=2
)
MONAI = MonaiViTConfig(
    in_channels=2, img_size=(32, 32, 2), patch_size=(16, 16, 1), hidden_size=12, mlp_dim=24, num_layers=4, num_heads=2
)
EITHER_NETWORK = pytest.mark.parametrize("network", [SMALL, MONAI], ids=lambda network: network.network)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def classifier(network=SMALL) -> CineClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        backbone = networks.build(network)
    return CineClassifier(backbone, "stacked", 2, seeded(2))


def trained(config: DualLoRAConfig, network=SMALL) -> CineClassifier:
    """Adapted, with B filled as training would."""
    model = classifier(network)
    lora.attach(model, config, seeded(3))
    for layer in lora.adapted_layers(model).values():
        for part in layer.scales:
            nn.init.normal_(layer.lora_B[part], std=0.2, generator=seeded(4 if part == "global" else 5))
    return model


def hand_worked() -> DualLoRALinear:
    """y = W x + b + 2 B_g A_g x + 3 B_l A_l x with rank 1 each, in two dimensions."""
    linear = nn.Linear(2, 2)
    linear.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    linear.bias.data = torch.tensor([0.5, -0.5])
    layer = DualLoRALinear(linear, {"global": 2.0, "local": 3.0}, {"global": 1, "local": 1})
    for name, down, up in (("global", [[1.0, 0.0]], [[1.0], [2.0]]), ("local", [[0.0, 1.0]], [[-1.0], [1.0]])):
        layer.lora_A[name].data = torch.tensor(down)
        layer.lora_B[name].data = torch.tensor(up)
    return layer


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(2, 2, 32, 32, 2, generator=seeded(9))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        # x = (1, 1): W x + b = (3.5, 6.5); 2 B_g A_g x = (2, 4); 3 B_l A_l x = (-3, 3).
        (("global", "local"), [2.5, 13.5]),
        (("global",), [5.5, 10.5]),
        (("local",), [0.5, 9.5]),
        ((), [3.5, 6.5]),
    ],
)
def test_the_formula_by_hand_with_either_part_on_and_off(parts, expected):
    layer = hand_worked()
    layer.switch(parts)
    x = torch.ones(1, 2)
    assert layer(x)[0].tolist() == expected
    layer.merge()
    assert layer(x)[0].tolist() == expected
    assert torch.equal(layer.weight @ torch.ones(2) + layer.bias, torch.tensor(expected))


def test_a_part_that_is_switched_off_gets_no_gradient_and_the_base_never_does():
    layer = hand_worked()
    layer.switch(("local",))
    layer(torch.ones(1, 2)).sum().backward()
    assert layer.lora_A["global"].grad is None
    assert layer.lora_B["local"].grad is not None
    assert layer.weight.grad is None
    assert layer.bias is not None
    assert layer.bias.grad is None


@EITHER_NETWORK
def test_an_untrained_adapter_leaves_the_base_model_unchanged(image, network):
    base = classifier(network).requires_grad_(False)
    adapted = classifier(network)
    lora.attach(adapted, DualLoRAConfig(), seeded(3))
    torch.testing.assert_close(adapted(image), base(image), atol=0, rtol=0)


@EITHER_NETWORK
def test_merging_gives_the_same_logits_and_unmerging_the_same_weights(image, network):
    model = trained(DualLoRAConfig(rank_global=4, rank_local=2, alpha_local=2.0), network)
    base = {path: layer.weight.clone() for path, layer in lora.adapted_layers(model).items()}
    expected = model(image)
    lora.merge(model)
    lora.merge(model)  # a second merge must not add the update twice
    torch.testing.assert_close(model(image), expected, atol=1e-5, rtol=0)
    lora.unmerge(model)
    lora.unmerge(model)
    for path, layer in lora.adapted_layers(model).items():
        torch.testing.assert_close(layer.weight, base[path], atol=1e-5, rtol=0)
    torch.testing.assert_close(model(image), expected, atol=1e-5, rtol=0)


def test_both_parts_add_up_in_the_logits_of_a_linear_readout(image):
    model = trained(DualLoRAConfig(rank_global=3, rank_local=5))
    seen = {}
    for parts in (("global", "local"), ("global",), ("local",), ()):
        lora.switch(model, parts)
        seen[parts] = model(image)
    assert not torch.allclose(seen[("global",)], seen[("local",)])
    torch.testing.assert_close(seen[()], classifier()(image), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("network", "blocks", "names"),
    [(SMALL, "encoder.blocks", ("kv", "proj", "q")), (MONAI, "blocks", ("out_proj", "qkv"))],
)
def test_the_attention_of_the_last_two_blocks_is_adapted_unless_told_otherwise(network, blocks, names):
    model = classifier(network)
    lora.attach(model, DualLoRAConfig(), seeded(0))
    assert list(lora.adapted_layers(model)) == [f"{blocks}.{block}.attn.{name}" for block in (2, 3) for name in names]
    assert model.first_block == 2


@pytest.mark.parametrize(
    ("network", "targets", "blocks", "layers"),
    [
        (SMALL, ("fc1", "q"), "encoder.blocks", ("mlp.fc1", "attn.q")),
        (MONAI, ("fc1", "qkv"), "blocks", ("mlp.linear1", "attn.qkv")),
    ],
)
def test_chosen_blocks_and_targets_move_the_cut_to_the_first_adapted_block(image, network, targets, blocks, layers):
    model = trained(DualLoRAConfig(blocks=(3, 1), targets=targets), network)
    assert model.first_block == 1
    assert set(lora.adapted_layers(model)) == {f"{blocks}.{block}.{path}" for block in (1, 3) for path in layers}
    assert not model.prefix(image).tokens.requires_grad
    assert model(image).requires_grad


@pytest.mark.parametrize(("network", "targets"), [(SMALL, 3), (MONAI, 2)])
def test_only_adapters_and_heads_train_and_gradients_reach_all_of_them(image, network, targets):
    model = trained(DualLoRAConfig(), network)
    trainable = {name for name, value in model.named_parameters() if value.requires_grad}
    assert all(".lora_" in name or name.startswith("pred_head_dict.") for name in trainable)
    assert len(trainable) == 2 * targets * 4 + 4
    model(image).square().sum().backward()
    reached = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    assert reached == trainable


def test_a_comes_from_the_generator_with_the_kaiming_bound_and_b_is_zero():
    first, again, other = classifier(), classifier(), classifier()
    for model, seed in ((first, 7), (again, 7), (other, 8)):
        lora.attach(model, DualLoRAConfig(), seeded(seed))
    path = "encoder.blocks.3.attn.kv"
    layers = [lora.adapted_layers(model)[path] for model in (first, again, other)]
    assert torch.equal(layers[0].lora_A["global"], layers[1].lora_A["global"])
    assert not torch.equal(layers[0].lora_A["global"], layers[2].lora_A["global"])
    assert not torch.equal(layers[0].lora_A["global"], layers[0].lora_A["local"])
    # Kaiming-uniform with a = sqrt(5): bound = 1 / sqrt(fan_in).
    assert 0.8 * 12**-0.5 < layers[0].lora_A["global"].abs().max() <= 12**-0.5
    assert not layers[0].lora_B["global"].any()


def test_global_starting_values_do_not_depend_on_the_local_part():
    with_local, without = classifier(), classifier()
    lora.attach(with_local, DualLoRAConfig(rank_local=3), seeded(7))
    lora.attach(without, DualLoRAConfig(rank_local=0), seeded(7))
    for path, layer in lora.adapted_layers(without).items():
        assert torch.equal(layer.lora_A["global"], lora.adapted_layers(with_local)[path].lora_A["global"])
        assert list(layer.scales) == ["global"]


def test_scale_is_alpha_over_rank_for_each_part():
    config = DualLoRAConfig(rank_global=4, alpha_global=8, rank_local=2, alpha_local=1, rank_residual=7)
    assert config.scales() == {"global": 2.0, "local": 0.5, "residual": 2.0}
    assert config.ranks() == {"global": 4, "local": 2, "residual": 7}
    assert DualLoRAConfig(rank_global=0, rank_local=0).scales() == {}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"targets": ("q", "qkv")}, "no layer called 'qkv' to adapt; a block has q, kv, proj, fc1, fc2"),
        ({"targets": ()}, "at least one target"),
        ({"blocks": ()}, "at least one target layer and one block"),
        ({"blocks": (3, 4)}, "block 4 does not exist; the backbone has blocks 0 to 3"),
        ({"blocks": (-1,)}, "block -1 does not exist"),
        ({"rank_global": -1}, "ranks must not be negative, got global -1, local 8, residual 0"),
        ({"rank_local": -2}, "local -2"),
        ({"rank_residual": -1}, "residual -1"),
        ({"rank_global": 0, "rank_residual": 3}, "a residual goes with a global part"),
        ({"dense": ("encoder.blocks.9",)}, "no weight of the base model begins with 'encoder.blocks.9'; it has: "),
        ({"alpha_global": 0.0}, "alphas must be positive"),
        ({"head": "shared"}, "unknown head policy 'shared'"),
    ],
)
def test_an_adapter_that_cannot_be_is_refused_by_name(config, message):
    with pytest.raises(InputError, match=message):
        lora.attach(classifier(), DualLoRAConfig(**config), seeded(0))


def test_a_second_adapter_on_the_same_layers_is_refused():
    model = classifier()
    lora.attach(model, DualLoRAConfig(), seeded(0))
    with pytest.raises(InputError, match="it is a DualLoRALinear, not a plain linear layer"):
        lora.attach(model, DualLoRAConfig(), seeded(0))


def test_a_path_without_a_layer_is_refused():
    with pytest.raises(InputError, match=r"no layer at 'encoder\.blocks\.9\.attn\.q'"):
        lora.wrap(ConvViT(SMALL), "encoder.blocks.9.attn.q", {"global": 1.0}, {"global": 2})
