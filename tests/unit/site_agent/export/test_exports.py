"""What is exported has the logits of the site's own model, as other programs read it, and says whose it is."""

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, verify_net_in_out
from monai.networks.nets.vit import ViT
from peft import PeftModel
from safetensors.torch import load_file

from shared.errors import InputError
from shared.recipe import Recipe
from site_agent import predict
from site_agent.data.pairs import Geometry
from site_agent.export import bundle, folders, merged, peft, serving
from site_agent.models import lora, weights
from site_agent.models.classifier import CineClassifier
from site_agent.models.convvit import ConvViT
from site_agent.predict import Model, ModelPart
from tests.support import site_state, tiny_site

CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 0}
IMAGES = torch.rand(3, 2, *tiny_site.SIZE, generator=torch.Generator().manual_seed(0))
PARTS: tuple[ModelPart, ...] = ("dual", "global", "local")
KINDS: dict[str, tuple[Recipe, dict[str, Any]]] = {
    "plain": (Recipe(rank_local=2), {}),
    "gates and two heads": (Recipe(rank_local=2, gate=True), {"head_policy": "global+local"}),
    "private head": (Recipe(rank_local=2), {"head_policy": "local"}),
    "residual": (Recipe(name="fedex-lora", rank_local=2), {"residual_rank": 3}),
    "own factors": (Recipe(name="fedsa-lora", rank_local=0), {}),
}
NO_LORA: dict[str, dict[str, Any]] = {"full": {}, "head-only": {"rank": 0}}
"""Recipes, with choices of an adapter, in which nothing is low-rank: PEFT has none."""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_site.write_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return site_state.write_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def one_frame(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone that siamese frames can be seen with."""
    folder, config = tmp_path_factory.mktemp("one-frame"), tiny_site.CONFIG.for_frames("siamese")
    network = ConvViT(config, heads=False, generator=torch.Generator().manual_seed(1))
    weights.save_backbone(folder, config, network.state_dict())
    return folder


def model_of(folder: Path, source: Path, part: ModelPart, kind: str = "plain", **choices: Any) -> Model:
    recipe, own = KINDS[kind]
    site_state.write(folder, source, recipe, **{**own, **choices})
    return predict.site_model(source, "", folder, part)


def logits(model: Any, images: torch.Tensor = IMAGES) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(images)
        return found


def combinations() -> list[tuple[str, ModelPart]]:
    """Every kind with every part it has."""
    return [(kind, part) for kind in KINDS for part in PARTS if not (kind == "own factors" and part == "local")]


# --- parts ----------------------------------------------------------------------------------------------------------


def test_parts_are_different_models_and_only_what_is_private_says_so(backbone, tmp_path):
    recipe, choices = KINDS["plain"]
    site_state.write(tmp_path, backbone, recipe, **choices)
    models = {part: predict.site_model(backbone, "", tmp_path, part) for part in PARTS}
    found = {part: logits(model.classifier) for part, model in models.items()}
    assert not torch.allclose(found["dual"], found["global"], atol=1e-3)
    assert not torch.allclose(found["dual"], found["local"], atol=1e-3)
    assert {part: model.private for part, model in models.items()} == {"dual": True, "global": False, "local": True}


@pytest.mark.parametrize("kind", ["plain", "gates and two heads", "own factors"])
def test_the_global_part_is_what_a_site_without_anything_of_its_own_has(backbone, tmp_path, kind):
    before = logits(model_of(tmp_path, backbone, "global", kind).classifier)
    (tmp_path / "rounds/0000/local.safetensors").unlink()
    assert torch.equal(logits(predict.site_model(backbone, "", tmp_path, "global").classifier), before)
    with pytest.raises(InputError, match=r"holds no local adapter.*--part global"):
        predict.site_model(backbone, "", tmp_path, "dual")


def test_a_global_part_that_judges_by_the_sites_own_head_is_private(backbone, tmp_path):
    assert model_of(tmp_path, backbone, "global", "private head").private


def test_a_recipe_without_a_local_part_has_none_to_export(backbone, tmp_path):
    with pytest.raises(InputError, match=r"no local low-rank part \(rank_local 0\)"):
        model_of(tmp_path, backbone, "local", "own factors")


# --- peft -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "part"), combinations())
def test_peft_loads_every_part_with_the_same_logits(backbone, tmp_path, kind, part):
    model = model_of(tmp_path / "state", backbone, part, kind)
    metadata = predict.state.read_contract(tmp_path / "state").manifest.metadata
    peft.write(tmp_path / "peft", model, metadata)
    base = ConvViT(tiny_site.CONFIG, heads=True)
    base.load_state_dict(weights.read_tensors(backbone / "model.safetensors"), strict=False)
    if kind == "private head" and part == "global":  # the federation has no head, so the folder has none
        assert not [name for name in load_file(tmp_path / "peft/adapter_model.safetensors") if "pred_head" in name]
        base.load_state_dict(model.classifier.heads(), strict=False)
    loaded = PeftModel.from_pretrained(base.eval(), str(tmp_path / "peft"))
    torch.testing.assert_close(logits(loaded), logits(model.classifier), **CLOSE)


def test_peft_gives_a_monai_vit_the_features_of_the_site(vit, tmp_path):
    """MONAI's own class has no place for our heads: they are put on its tokens here."""
    model = model_of(tmp_path / "state", vit, "dual", frames="stacked")
    peft.write(tmp_path / "peft", model, predict.state.read_contract(tmp_path / "state").manifest.metadata)
    config = replace(site_state.VIT, in_channels=2)
    base = ViT(
        in_channels=2,
        img_size=config.img_size,
        patch_size=config.patch_size,
        hidden_size=config.hidden_size,
        mlp_dim=config.mlp_dim,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
    )
    base.load_state_dict(weights.load_backbone(vit, None, "stacked").model.state_dict(), strict=False)
    (tmp_path / "peft/adapter_config.json").write_text(
        json.dumps({**json.loads((tmp_path / "peft/adapter_config.json").read_text()), "modules_to_save": None})
    )
    loaded = PeftModel.from_pretrained(base.eval(), str(tmp_path / "peft"))
    with torch.no_grad():
        tokens, _ = loaded(IMAGES)
        pooled = tokens.mean(dim=1)
        found = model.classifier.head(torch.stack([pooled, pooled], dim=1))
    torch.testing.assert_close(found, logits(model.classifier), **CLOSE)


# --- merged ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "part"), combinations())
def test_merged_weights_are_a_plain_network_with_the_same_logits(backbone, tmp_path, kind, part):
    model = model_of(tmp_path / "state", backbone, part, kind)
    merged.write(tmp_path / "merged", model)
    plain = ConvViT(tiny_site.CONFIG, heads=True)
    plain.load_state_dict(load_file(tmp_path / "merged/model.safetensors"), strict=True)
    torch.testing.assert_close(logits(plain.eval()), logits(model.classifier), **CLOSE)
    read = predict.base_model(tmp_path / "merged", "", "stacked")
    torch.testing.assert_close(logits(read.classifier), logits(model.classifier), **CLOSE)


@pytest.mark.parametrize("name", list(NO_LORA))
def test_what_is_no_lora_is_merged_and_no_peft_folder(backbone, tmp_path, name):
    contract, _ = site_state.write(tmp_path / "state", backbone, Recipe(name=name, rank_local=0), **NO_LORA[name])
    model = predict.site_model(backbone, "", tmp_path / "state")
    merged.write(tmp_path / "merged", model)
    read = predict.base_model(tmp_path / "merged", "", "stacked")
    torch.testing.assert_close(logits(read.classifier), logits(model.classifier), **CLOSE)
    with pytest.raises(InputError, match=r"base model itself|rank 0"):
        peft.write(tmp_path / "peft", model, contract.manifest.metadata)
    assert not (tmp_path / "peft").exists()


def test_a_merged_golden_network_has_exactly_cinemas_tensors_and_its_recorded_logits(shared_data, tmp_path):
    """The golden dual adapters were made with peft on CineMA's own network; nothing of ours made the expected logits."""
    mini, golden = shared_data / "golden/cinema/mini", shared_data / "golden/cinema/dual_lora_mini"
    recorded, config = load_file(golden / "io.safetensors"), json.loads((golden / "config.json").read_text())
    classifier = CineClassifier.from_loaded(weights.load_backbone(mini))
    _attach_golden(classifier, recorded, config)
    model = predict.Model(
        classifier.eval(), (96, 96, 8), ("normal", "disease"), "dual", True, predict.Compute(torch.device("cpu")), None
    )
    merged.write(tmp_path / "merged", model)
    written, cinemas = load_file(tmp_path / "merged/model.safetensors"), load_file(mini / "model.safetensors")
    assert {n: v.shape for n, v in written.items()} == {n: v.shape for n, v in cinemas.items()}
    plain = ConvViT(classifier.backbone.config, heads=True)  # type: ignore[arg-type]
    plain.load_state_dict(written, strict=True)
    images = load_file(mini / "io.safetensors")["image_u8"].float() / 255
    torch.testing.assert_close(logits(plain.eval(), images), recorded["logits_all.both"], atol=2e-5, rtol=0)


def _attach_golden(classifier: CineClassifier, recorded: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    scales = {part: config["adapters"][part]["scaling"] for part in lora.PARTS}
    for path in config["targets"]:
        factors = {part: (recorded[f"{part}.{path}.lora_A"], recorded[f"{part}.{path}.lora_B"]) for part in lora.PARTS}
        ranks = {part: len(down) for part, (down, _) in factors.items()}
        layer = lora.wrap(classifier.backbone_module(), path, scales, ranks)
        with torch.no_grad():
            for part, (down, up) in factors.items():
                layer.lora_A[part].copy_(down)
                layer.lora_B[part].copy_(up)


def test_siamese_frames_and_other_networks_are_refused_by_name(one_frame, vit, tmp_path):
    for folder, source, frames, words in (
        ("a", one_frame, "siamese", "sees frames siamese.*--format bundle"),
        ("b", vit, "stacked", "backbone is a monai-vit, which CineMA's code does not have"),
    ):
        model = model_of(tmp_path / folder, source, "dual", frames=frames)
        with pytest.raises(InputError, match=words):
            merged.write(tmp_path / "merged", model)
    assert not (tmp_path / "merged").exists()


# --- bundle ---------------------------------------------------------------------------------------------------------

FORM = {
    "type": "object",
    "required": [
        *("schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"),
        *("task", "description", "authors", "copyright", "network_data_format"),
    ],
    "properties": {
        **{name: {"type": "string"} for name in ("schema", "task", "description", "authors", "copyright")},
        "version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
        "changelog": {"type": "object", "additionalProperties": {"type": "string"}},
        **{name: {"type": "string", "pattern": r"^\d+\.\d+"} for name in ("monai_version", "pytorch_version")},
        "required_packages_version": {"type": "object", "additionalProperties": {"type": "string"}},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "additionalProperties": {"type": "object", "additionalProperties": {"$ref": "#/$defs/tensor"}},
        },
    },
    "$defs": {
        "tensor": {
            "type": "object",
            "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data"],
            "properties": {
                "num_channels": {"type": "integer"},
                "spatial_shape": {"type": "array"},
                "value_range": {"type": "array"},
                "is_patch_data": {"type": "boolean"},
                "channel_def": {"type": "object", "additionalProperties": {"type": "string"}},
            },
        }
    },
}
"""What MONAI's bundle specification says a metadata.json must have (docs.monai.io, mb_specification), in our words: MONAI's own
schema is fetched from the network."""


@pytest.mark.parametrize("frames", ["stacked", "siamese"])
@pytest.mark.parametrize("network", ["convvit", "monai-vit"])
def test_a_bundle_of_any_network_is_whole_and_has_the_same_logits(one_frame, vit, tmp_path, network, frames):
    model = model_of(tmp_path / "state", one_frame if network == "convvit" else vit, "dual", frames=frames)
    bundle.write(tmp_path / "bundle", model)
    configs = tmp_path / "bundle/configs"
    jsonschema.validate(json.loads((configs / "metadata.json").read_text()), FORM)
    meta, config = str(configs / "metadata.json"), str(configs / "inference.json")
    root = {"bundle_root": str(tmp_path / "bundle")}
    verify_net_in_out(net_id="network_def", meta_file=meta, config_file=config, device="cpu", **root)
    parser = ConfigParser(json.loads(Path(config).read_text()))
    parser["bundle_root"] = root["bundle_root"]
    torch.testing.assert_close(logits(parser.get_parsed_content("network_def")), logits(model.classifier), **CLOSE)


def test_a_larger_image_is_seen_in_windows_as_predict_sees_it(backbone, tmp_path):
    model = model_of(tmp_path / "state", backbone, "dual")
    image = np.random.default_rng(1).random((2, 40, 32, 7)).astype(np.float32)
    found = serving.WindowInferer(tiny_site.SIZE)(torch.from_numpy(image)[None], model.classifier)
    np.testing.assert_allclose(found[0].numpy(), model.judge(image).logits, **CLOSE)


def test_a_bundle_says_how_raw_images_are_prepared_in_it(backbone, tmp_path):
    model = replace(model_of(tmp_path / "state", backbone, "dual"), geometry=Geometry((1.0, 1.0, 10.0), (192, 192)))
    load = bundle.inference(model)["preprocessing"]["transforms"][0]
    assert (load["spacing_mm"], load["size"]) == ([1.0, 1.0, 10.0], [192, 192])


# --- whose it is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "word", "mode"), [("dual", "PRIVATE", 0o700), ("global", "nothing of this site", None)]
)
def test_every_folder_says_whose_it_is_and_a_private_one_is_closed(backbone, tmp_path, part, word, mode):
    model = model_of(tmp_path / "state", backbone, part)
    merged.write(tmp_path / "merged", model)
    bundle.write(tmp_path / "bundle", model)
    peft.write(tmp_path / "peft", model, predict.state.read_contract(tmp_path / "state").manifest.metadata)
    for note in ("merged/README.md", "bundle/docs/README.md", "peft/README.md", "bundle/configs/metadata.json"):
        assert word in (tmp_path / note).read_text(), note
    for name in ("merged", "bundle", "peft"):
        assert mode is None or stat.S_IMODE((tmp_path / name).stat().st_mode) == mode


def test_a_folder_with_something_in_it_is_not_written_over(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InputError, match="is not an empty folder"):
        folders.make(tmp_path, private=False)
