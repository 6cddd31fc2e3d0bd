"""`verify-backbone`: reference folders pass, a changed number is found and named, and any size or rank is read."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from typer.testing import CliRunner

from shared.errors import InputError
from site_agent.cli import backbone
from site_agent.models import golden, lora, real_volumes
from site_agent.models.config import ConvViTConfig
from site_agent.models.convvit import ConvViT

OTHER = ConvViTConfig(
    image_size=(32, 96, 6),
    out_chans=3,
    enc_patch_size=(2, 4, 1),
    enc_scale_factor=(2, 2, 1),
    enc_conv_chans=(6, 10, 4),
    enc_conv_n_blocks=1,
    enc_embed_dim=20,
    enc_depth=3,
    enc_n_heads=5,
    qkv_bias=False,
)


def failures(folder, real=None):
    return [check for check in golden.verify(folder, real) if not check.passed]


def run(*arguments):
    app = typer.Typer()
    app.callback()(lambda: None)
    backbone.register(app)
    return CliRunner().invoke(app, ["verify-backbone", *map(str, arguments)])


@pytest.fixture
def mini(shared_data, tmp_path):
    """A writable copy of the recorded small classifier."""
    for name in ("mini", "dual_lora_mini"):
        shutil.copytree(shared_data / "golden/cinema" / name, tmp_path / name, copy_function=shutil.copyfile)
        (tmp_path / name).chmod(0o755)
    return tmp_path / "mini"


def rewrite(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("name", ["tiny", "mini", "mae_mini", "dual_lora_mini", "pos_embed.safetensors"])
def test_every_recorded_value_of_the_reference_folder_is_reproduced(shared_data, name):
    checks = list(golden.verify(shared_data / "golden/cinema" / name))
    assert [check for check in checks if not check.passed] == []
    assert [check for check in checks if check.tolerance is None] == []


def test_every_tensor_file_of_the_reference_folders_is_compared(shared_data):
    compared = {check.where for check in golden.verify(shared_data / "golden/cinema/mini")}
    assert compared == {"mini/model.safetensors", "mini/io.safetensors", "mini/io_size_128x64x12.safetensors"}
    loading = [
        check for check in golden.verify(shared_data / "golden/cinema/mae_mini") if check.kind == "loading rules"
    ]
    assert len(loading) == 7


@pytest.mark.parametrize(
    ("tensor", "by"),
    [
        ("logits_cls", 3e-5),
        ("logits_all_f64", 2e-6),
        ("block_out_1", 1e-2),
        ("skip_1", 1e-2),
        ("fused_skip", 1e-2),
        ("x_dict.sax", 1e-2),
        ("grad.encoder.cls_token", 1e-2),
        ("loss_label_smoothing_0.1", 1e-4),
    ],
)
def test_one_changed_value_is_found_and_named(mini, tensor, by):
    rewrite(mini / "io.safetensors", lambda t: t[tensor].view(-1)[-1].add_(by))
    assert [check.tensor for check in failures(mini)] == [tensor]


def test_changed_weights_are_found(mini):
    rewrite(mini / "model.safetensors", lambda t: t["encoder.blocks.3.mlp.fc2.weight"].mul_(1.01))
    named = {check.tensor for check in failures(mini)}
    assert {"logits_all", "x_dict.sax"} <= named
    assert "block_out_1" not in named


def test_a_changed_adapter_gradient_or_logit_is_found(mini):
    folder = mini.parent / "dual_lora_mini"
    gradient = "grad.local.encoder.blocks.2.attn.q.lora_A"
    rewrite(folder / "io.safetensors", lambda t: (t[gradient].add_(1e-2), t["logits_all.global"].add_(1e-3)))
    assert {check.tensor for check in failures(folder)} == {gradient, "logits_all.global"}


def test_loading_rules_that_differ_are_found(shared_data, tmp_path):
    folder = tmp_path / "mae"
    shutil.copytree(shared_data / "golden/cinema/mae_mini", folder, copy_function=shutil.copyfile)
    described = json.loads((folder / "config.json").read_text())
    described["loaded_keys"].remove("encoder.norm.bias")
    folder.chmod(0o755)
    (folder / "config.json").write_text(json.dumps(described))
    assert [check.tensor for check in failures(folder)] == ["loaded_keys"]


def test_a_value_of_another_shape_or_not_a_number_is_out_of_tolerance(mini):
    rewrite(mini / "io.safetensors", lambda t: t.update({"logits_cls": t["logits_cls"][:1]}))
    rewrite(mini / "io.safetensors", lambda t: t["x_dict.cls"].view(-1)[0].fill_(float("nan")))
    assert {check.tensor: check.deviation for check in failures(mini)} == {
        "logits_cls": float("inf"),
        "x_dict.cls": float("inf"),
    }


def test_values_and_files_without_a_counterpart_are_reported_not_passed_over(mini):
    rewrite(mini / "io.safetensors", lambda t: t.update({"attention_map": torch.zeros(2)}))
    save_file({"x": torch.zeros(1)}, mini / "extra.safetensors")
    unknown = [check.tensor for check in golden.verify(mini) if check.tolerance is None]
    assert unknown == ["attention_map", "all"]
    assert [check.tensor for check in failures(mini)] == unknown
    assert json.loads(run(mini, "--json").stdout)["not_compared"] == [
        "mini/io.safetensors: attention_map",
        "mini/extra.safetensors: all",
    ]


def test_an_unknown_name_is_a_failure_that_is_named(mini):
    rewrite(mini / "io.safetensors", lambda t: t.update({"logits_weird": torch.zeros(2)}))
    result = run(mini)
    assert result.exit_code == 1
    assert "logits_weird in mini/io.safetensors" in result.stderr


@pytest.mark.parametrize("keep", [(), ("image_u8",)])
def test_a_file_with_nothing_to_compare_is_a_failure(mini, keep):
    path = mini / "io_size_128x64x12.safetensors"
    rewrite(path, lambda t: [t.pop(name) for name in list(t) if name not in keep])
    assert [check.where for check in failures(mini)] == ["mini/io_size_128x64x12.safetensors"]
    save_file({}, mini.parent / "pos_embed.safetensors")
    assert [check.passed for check in golden.verify(mini.parent / "pos_embed.safetensors")] == [False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapters": [4, 4]}, r"adapters must be an object .*\[4, 4\]"),
        ({"adapters": {"global": 4}}, r"adapters\.global must have r"),
        ({"adapters": {"local": {"r": 0, "alpha": 8}}}, r"adapters\.local must have r"),
        ({"adapters": {"global": {"r": 3, "alpha": 8}}}, r"global\.\S+\.lora_A has shape .* adapters\.global\.r = 3"),
        ({"adapters": {"global": {"r": 1, "alpha": 8}}}, r"global\.\S+\.lora_A has shape .* adapters\.global\.r = 1"),
        ({"targets": "encoder"}, "targets must be a list"),
        ({"base_model": 3}, "do not fit together"),
    ],
)
def test_an_adapter_description_that_cannot_be_used_is_named(mini, change, message):
    path = mini.parent / "dual_lora_mini/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        failures(path.parent)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_u8", torch.zeros(3, dtype=torch.uint8)),
        ("image_u8", torch.zeros((1, 2, 5, 5, 5), dtype=torch.uint8)),
        ("label", torch.zeros(7, dtype=torch.int64)),
        ("loss_label_smoothing_x", torch.zeros(1)),
    ],
)
def test_recorded_inputs_that_do_not_fit_are_refused(mini, name, value):
    rewrite(mini / "io.safetensors", lambda t: t.pop("loss_label_smoothing_0.1") if name[:4] == "loss" else None)
    rewrite(mini / "io.safetensors", lambda t: t.update({name: value}))
    with pytest.raises(InputError):
        failures(mini)


def other_folder(root):
    """A reference folder of another size with three stages, and an adapter of unequal ranks on other layers."""
    generator = torch.Generator().manual_seed(21)
    model = ConvViT(OTHER, generator=generator).eval().double()
    root.mkdir()
    classifier, adapter = root / "other", root / "dual"
    image = torch.randint(0, 256, (1, 2, 32, 96, 6), generator=generator, dtype=torch.uint8)
    label = torch.tensor([2])
    precise = image.double() / 255
    classifier.mkdir()
    adapter.mkdir()
    OTHER.to_json(classifier / "config.json")
    save_file({name: value.float() for name, value in model.state_dict().items()}, classifier / "model.safetensors")
    model.float().double()  # what the file holds
    values = {f"logits_{reduce}": model(precise, reduce).detach().float() for reduce in ("all", "patch", "cls")}
    values["block_out_0"] = model.prefix(precise, 1).tokens.detach().float()
    save_file({**values, "image_u8": image, "label": label}, classifier / "io.safetensors")

    targets = ["encoder.blocks.0.mlp.fc1", "encoder.blocks.2.attn.proj"]
    ranks, scales = {"global": 2, "local": 5}, {"global": 1.5, "local": 0.2}
    recorded = {}
    layers = {path: lora.wrap(model, path, scales, ranks) for path in targets}
    for path, layer in layers.items():
        for part in ranks:
            for matrix, held in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
                held[part].data.normal_(generator=generator)
                held[part].data = held[part].data.float().double()
                recorded[f"{part}.{path}.{matrix}"] = held[part].detach().float()
    loss = F.cross_entropy(model(precise), label, label_smoothing=0.05)
    recorded["loss_label_smoothing_0.05"] = loss.detach().float().reshape(1)
    recorded["logits_all.both"] = model(precise).detach().float()
    loss.backward()
    for path, layer in layers.items():
        recorded[f"grad.local.{path}.lora_B"] = layer.lora_B["local"].grad.float()
    save_file(recorded, adapter / "io.safetensors")
    described = {
        "base_model": "../other/model.safetensors",
        "input": "../other/io.safetensors: image_u8, label",
        "adapters": {part: {"r": ranks[part], "alpha": scales[part] * ranks[part]} for part in ranks},
        "targets": targets,
    }
    (adapter / "config.json").write_text(json.dumps(described))
    return root


def test_sizes_stages_and_ranks_come_from_the_folder(tmp_path):
    root = other_folder(tmp_path / "set")
    checks = list(golden.verify(root))
    assert [check for check in checks if not check.passed or check.tolerance is None] == []
    assert {"logits_all", "block_out_0", "logits_all.both", "loss_label_smoothing_0.05"} <= {c.tensor for c in checks}
    assert any(check.tensor == "grad.local.encoder.blocks.0.mlp.fc1.lora_B" for check in checks)


def test_the_command_prints_the_largest_deviation_per_check_and_exits_0(shared_data):
    result = run(shared_data / "golden/cinema/mini")
    assert result.exit_code == 0
    for part in ("mini/io.safetensors", "gradients", "logits in float64", "position tables", "largest deviation"):
        assert part in result.stdout


def test_the_command_exits_1_naming_the_first_tensor_out_of_tolerance(mini):
    rewrite(mini / "io.safetensors", lambda t: (t["encoder_in"].add_(1e-2), t["x_dict.cls"].add_(1)))
    result = run(mini, "--json")
    assert result.exit_code == 1
    assert "out of tolerance: encoder_in in mini/io.safetensors: deviates by 0.01" in result.stderr
    printed = json.loads(result.stdout)
    assert printed["passed"] is False
    assert printed["first_failure"]["tensor"] == "encoder_in"
    assert "FAIL" in run(mini).stdout


def test_a_folder_that_cannot_be_checked_is_refused(tmp_path, mini):
    with pytest.raises(InputError, match="no folder of reference vectors"):
        failures(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"neither a config\.json"):
        failures(tmp_path / "empty")
    (mini / "io.safetensors").unlink()
    (mini / "io_size_128x64x12.safetensors").unlink()
    with pytest.raises(InputError, match="nothing to compare with"):
        failures(mini)
    (mini / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        failures(mini)
    (mini.parent / "dual_lora_mini/config.json").write_text('{"adapters": {}}')
    with pytest.raises(InputError, match="lack the entry 'base_model'"):
        failures(mini.parent / "dual_lora_mini")


def test_missing_real_volumes_are_named_and_can_be_given(shared_data, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    folder = tmp_path / "tiny"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "io_real.safetensors"):
        shutil.copyfile(shared_data / "golden/cinema/tiny" / name, folder / name)
    with pytest.raises(InputError, match=r"no volumes acdc/sax_ed\.nii\.gz .* give it with --real"):
        failures(folder)
    assert failures(folder, shared_data / "real") == []


@pytest.mark.parametrize(
    ("shape", "fill", "message"),
    [((8, 8, 2), 0, "one value only"), ((40, 8, 2), None, r"more than the model's size"), (None, None, "cannot read")],
)
def test_real_volumes_that_cannot_be_the_input_are_refused(tmp_path, shape, fill, message):
    for name in (real_volumes.ED, real_volumes.ES):
        voxels = np.arange(np.prod(shape or (1,)), dtype=np.uint8).reshape(shape or (1,))
        if shape is None:
            (tmp_path / name).write_bytes(b"not an image")
        else:
            nib.save(nib.Nifti1Image(voxels * 0 + fill if fill is not None else voxels, np.eye(4)), tmp_path / name)
    with pytest.raises(InputError, match=message):
        real_volumes.model_input(tmp_path, (32, 32, 4))
