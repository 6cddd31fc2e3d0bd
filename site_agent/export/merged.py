"""One file with all weights, the adapters added into them: what CineMA's own code loads, and what a bundle is made of.

W0 x + s_g B_g A_g x + s_l B_l A_l x is one product with W0 + s_g B_g A_g + s_l B_l A_l (Hu et al. 2021, section 4.1).
"""

from dataclasses import replace
from pathlib import Path

import torch

from shared.errors import InputError
from site_agent.export import folders
from site_agent.models.classifier import CineClassifier
from site_agent.models.config import ConvViTConfig
from site_agent.models.lora import adapted_layers
from site_agent.models.weights import save_backbone
from site_agent.predict import Model

USE = """`model.safetensors` has the tensor names of CineMA's classifier:

```python
from cinema import ConvViT
from safetensors.torch import load_file

model = ConvViT(...)  # the numbers in config.json, views ["sax"]
model.load_state_dict(load_file("model.safetensors"))
```

`site-agent predict --weights FOLDER` reads it too, without `--state`."""


def write(out: Path, model: Model) -> None:
    """Write `out`, a new folder with config.json and model.safetensors. Raises InputError for what CineMA's code cannot be."""
    classifier = model.classifier
    if classifier.frames != "stacked":
        raise InputError(
            f"this federation sees frames {classifier.frames}: its heads take two frames' features, which CineMA's classifier does "
            "not have, so no merged file can give its logits; use --format bundle"
        )
    config = classifier.backbone.config
    if not isinstance(config, ConvViTConfig):
        raise InputError(
            f"this federation's backbone is a {config.network}, which CineMA's code does not have; use --format bundle or peft"
        )
    folders.make(out, model.private)
    tensors = backbone_tensors(classifier) | head_tensors(classifier)
    save_backbone(out, replace(config, out_chans=classifier.n_classes), tensors, folders.header(model.private))
    folders.write_note(out / folders.README, model, "Merged weights", USE)


def backbone_tensors(classifier: CineClassifier) -> dict[str, torch.Tensor]:
    """The backbone by its origin's names, with the parts that are switched on added to the weights they adapt; float32."""
    state = {name: value for name, value in classifier.backbone.state_dict().items() if ".lora_" not in name}
    for path, layer in adapted_layers(classifier).items():
        if layer.active:
            down, up = (factor.detach().double() for factor in layer.factors(layer.active))
            state[f"{path}.weight"] = (layer.weight.double() + up @ down).float()
    return {name: value.detach().cpu() for name, value in state.items()}


def head_tensors(classifier: CineClassifier) -> dict[str, torch.Tensor]:
    """`pred_head_dict.{sax,cls}.{weight,bias}` of the one head that gives what the parts switched on give."""
    return {name: value.detach().cpu().clone() for name, value in classifier.heads_in_force().items()}
