"""A MONAI bundle: configs, weights with the adapters in them, and a note. `python -m monai.bundle run` executes it.

The configs name classes of `site_agent.export.serving`, so med-duallora[site] must be installed where it runs.
Source: MONAI bundle specification, MONAI 1.5 (docs.monai.io, mb_specification).
"""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from site_agent.export import folders, merged, serving
from site_agent.predict import Model

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
"""Where MONAI's `verify_metadata` fetches what a metadata.json must have; nothing here does."""
VERSION = "1.0.0"
"""Of the bundle's form: raised when its configs change."""
SERVING = "site_agent.export.serving"
USE = """In this folder, where `med-duallora[site]` is installed:

```
python -m monai.bundle run --config_file configs/inference.json --images "['ed.nii.gz','es.nii.gz']" --output result.json
```

The two images are end-diastole and end-systole, in this order{raw}."""


def write(out: Path, model: Model) -> None:
    """Write `out`, a new folder. Raises InputError if it cannot be written."""
    folders.make(out, model.private)
    for name in ("configs", "models", "docs"):
        (out / name).mkdir()
    classifier = model.classifier
    backbone, heads = merged.backbone_tensors(classifier), merged.head_tensors(classifier)
    serving.save_network(out / "models", classifier, backbone, heads, folders.header(model.private))
    for name, config in (("metadata", metadata(model)), ("inference", inference(model))):
        (out / "configs" / f"{name}.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    raw = "; raw ones are prepared" if model.geometry else ", as `site-agent prepare` writes them"
    folders.write_note(out / "docs" / folders.README, model, "MONAI bundle", USE.format(raw=raw))


def metadata(model: Model) -> dict[str, Any]:
    """configs/metadata.json."""
    versions = {
        name: importlib.metadata.version(name) for name in ("monai", "torch", "numpy", "nibabel", "med-duallora")
    }
    plain = {name: version.partition("+")[0] for name, version in versions.items()}
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "changelog": {VERSION: "first form"},
        "monai_version": plain["monai"],
        "pytorch_version": plain["torch"],
        "numpy_version": plain["numpy"],
        "required_packages_version": {name: plain[name] for name in ("nibabel", "med-duallora")},
        "name": "Med-DualLoRA cine classifier",
        "task": "Disease detection in short-axis cine cardiac MRI",
        "description": f"{folders.whose(model.private)} Probability of disease from an ED and an ES volume, part {model.part}.",
        "authors": "a site of a Med-DualLoRA federation",
        "copyright": "Configuration: Apache-2.0. Weights: those of the base model, whose terms stay, changed by the federation",
        "data_type": "nibabel",
        "intended_use": folders.NOT_FOR,
        "private": model.private,
        "eval_metrics": {},
        "references": ["Med-DualLoRA, arXiv:2603.10967", "Fu et al. 2025, CineMA, arXiv:2506.00679"],
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": "MR",
                    "num_channels": 2,
                    "spatial_shape": list(model.image_size),
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": False,
                    "channel_def": {"0": "end-diastole", "1": "end-systole"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "logits",
                    "format": "classes",
                    "num_channels": len(model.class_names),
                    "spatial_shape": [],
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": {str(index): name for index, name in enumerate(model.class_names)},
                }
            },
        },
    }


def inference(model: Model) -> dict[str, Any]:
    """configs/inference.json: two images in, their probabilities in a JSON file."""
    geometry, size = model.geometry, list(model.image_size)
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "dataset_dir": ".",
        "images": ["$@dataset_dir + '/ed.nii.gz'", "$@dataset_dir + '/es.nii.gz'"],
        "output": "probabilities.json",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "class_names": list(model.class_names),
        "threshold": model.threshold.probability if model.threshold else None,
        "network_def": {"_target_": f"{SERVING}.load_network", "folder": "$@bundle_root + '/models'"},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": f"{SERVING}.LoadPaird",
                    "keys": "image",
                    "spacing_mm": list(geometry.spacing_mm) if geometry else None,
                    "size": list(geometry.size) if geometry else None,
                },
                {"_target_": "SpatialPadd", "keys": "image", "spatial_size": size, "method": "end"},
            ],
        },
        "dataset": {"_target_": "Dataset", "data": [{"image": "@images"}], "transform": "@preprocessing"},
        "inferer": {"_target_": f"{SERVING}.WindowInferer", "window": size},
        "postprocessing": {"_target_": "Activations", "softmax": True},
        "logits": "$@inferer(@dataset[0]['image'][None].to(@device), @network)[0]",
        "result": {
            "_target_": f"{SERVING}.write_result",
            "path": "@output",
            "logits": "@logits",
            "probabilities": "$@postprocessing(@logits)",
            "class_names": "@class_names",
            "threshold": "@threshold",
        },
        "run": ["$@result"],
    }
