"""Counted products, against closed forms, torch's own counter, and the shapes that are really multiplied."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from experiments.training import flops, synthetic
from experiments.training.flops import Attention, Product
from experiments.training.products import Attentions, Products
from site_agent.models.config import ConvViTConfig

CPU = torch.device("cpu")
SMALL = ConvViTConfig(
    image_size=(32, 32, 4), enc_conv_chans=(4, 8), enc_conv_n_blocks=1, enc_embed_dim=12, enc_depth=3, enc_n_heads=2
)
RANK = 16


def closed_form(network: ConvViTConfig, blocks: int, images: int, rank: int) -> int:
    """Every linear product forward and backward in all blocks, less what the first one is spared.

    q, kv, proj are 4DD, fc1 and fc2 2MDD, each once forward and once backward. A low-rank pair of in + out = (2, 3, 2) D takes
    2TR(in + out) forward and twice that backward. The first block is spared the input gradients of q and kv: 3DD and 2 RD.
    """
    rows, width = images * flops.tokens(network), network.enc_embed_dim
    linear = 2 * 2 * rows * (4 + 2 * network.mlp_ratio) * width * width
    low_rank = 3 * 2 * rows * rank * 7 * width
    spared = 2 * rows * 3 * width * width + 2 * rows * rank * 2 * width
    return blocks * (linear + low_rank) - spared


@pytest.mark.parametrize("blocks", [1, 2, 12])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("network", [ConvViTConfig.base(), SMALL])
def test_products_add_up_to_the_closed_form(network, images, blocks):
    counted = flops.total(flops.products(network, blocks, images, RANK))
    assert counted == closed_form(network, blocks, images, RANK)


def test_cinema_base_has_2304_patches_and_a_class_token():
    assert flops.tokens(ConvViTConfig.base()) == 12 * 12 * 16 + 1


def test_attention_is_two_products_forward_and_four_backward():
    (one,) = flops.attentions(ConvViTConfig.base(), 1, 2)
    assert one == Attention(images=2, heads=12, tokens=2305, head_dim=64)
    assert one.flops == 6 * 2 * 2 * 2305**2 * 768


def test_a_training_step_multiplies_what_is_counted():
    """Against torch's counter, which sees every product of the step; the heads are the only others there are."""
    images, blocks = 2, 2
    model = synthetic.dual(SMALL)
    prefix = model.prefix(synthetic.images(images, SMALL))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        F.cross_entropy(model.suffix(prefix), torch.tensor([0, 1])).backward()
    heads = 2 * 3 * 2 * images * SMALL.enc_embed_dim * 2  # two heads of two classes: output, input and weight gradient
    counted = flops.total(flops.products(SMALL, blocks, images, RANK)) + flops.total(
        flops.attentions(SMALL, blocks, images)
    )
    assert counter.get_total_flops() == counted + heads


def test_the_floor_multiplies_what_is_counted():
    products = flops.products(SMALL, 2, 2, RANK)
    alone = Products(products, CPU)
    with FlopCounterMode(display=False) as counter:
        alone()
    assert counter.get_total_flops() == flops.total(products)


def test_the_floor_s_attention_goes_forward_and_backward():
    attentions = flops.attentions(SMALL, 2, 3)
    alone = Attentions(attentions, CPU)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        alone()
    assert counter.get_total_flops() == flops.total(attentions)


def test_a_wider_mlp_and_a_product_count_as_they_are_shaped():
    wide = replace(SMALL, mlp_ratio=8)
    more = closed_form(wide, 2, 1, RANK) - closed_form(SMALL, 2, 1, RANK)
    assert more == 2 * 2 * 2 * flops.tokens(SMALL) * 2 * 4 * SMALL.enc_embed_dim**2
    assert Product(2, 3, 5).flops == 60
