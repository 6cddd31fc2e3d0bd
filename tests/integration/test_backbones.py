"""Whole federations on a MONAI ViT, and two federations on one folder of frozen activations."""

import json
from dataclasses import replace

import pytest
import torch
from structlog.testing import capture_logs

from shared.contract import ARMS
from site_agent.agent import REPORT
from site_agent.models import networks, weights
from site_agent.models.monai_config import MonaiViTConfig
from tests.integration import federation
from tests.integration.federation import Materials
from tests.support.serving import serve

pytestmark = pytest.mark.integration

TWO = ("siemens", "philips")
VIT = MonaiViTConfig(
    in_channels=1, img_size=(32, 32, 4), patch_size=(8, 8, 2), hidden_size=16, mlp_dim=32, num_layers=3, num_heads=2
)


async def run(materials: Materials, folder) -> None:
    store = federation.create_store(folder, materials.adapter, TWO)
    async with serve(store) as running:
        await federation.finish(*federation.agents_of(materials, folder, running.address, TWO))
    federation.assert_finished(store)


@pytest.mark.parametrize(("frames", "blocks"), [("siamese", (1,)), ("stacked", None)])
async def test_a_federation_on_a_monai_vit_ends_with_every_arm_judged(materials, tmp_path, frames, blocks):
    torch.manual_seed(5)
    network = networks.build(VIT)
    weights.save_backbone(tmp_path / "vit", VIT, network.state_dict())
    adapter = federation.save_adapter(tmp_path / "vit", tmp_path / "v0.safetensors", frames=frames, blocks=blocks)
    await run(replace(materials, backbone=tmp_path / "vit", adapter=adapter), tmp_path / "fed")
    report = json.loads((tmp_path / "fed/state-siemens" / REPORT).read_text())
    assert set(report["arms"]) == set(ARMS)


async def test_a_second_federation_with_the_same_base_computes_no_activation_again(materials, tmp_path):
    """Its agents have other state folders beside the first one's, and so the same `activations`."""
    await run(materials, tmp_path / "fed")
    entries = {path: path.stat().st_mtime_ns for path in (tmp_path / "fed/activations").rglob("*.safetensors")}
    for state in (tmp_path / "fed").glob("state-*"):
        state.rename(state.with_name(f"earlier-{state.name}"))
    (tmp_path / "fed/fed.db").rename(tmp_path / "fed/earlier.db")
    with capture_logs() as logs:
        await run(materials, tmp_path / "fed")
    assert set((tmp_path / "fed/activations").rglob("*.safetensors")) == set(entries)
    assert not [line for line in logs if line["event"] == "activations_cached"]
