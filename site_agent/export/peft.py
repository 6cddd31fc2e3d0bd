"""A site's adapters as a folder that Hugging Face PEFT loads: the global part, the local one, or both as one."""

from pathlib import Path

from shared import peft
from shared.adapter import AdapterMetadata
from shared.errors import InputError
from site_agent.export import folders
from site_agent.models import adapter_tensors
from site_agent.predict import Model

USE = """```python
from peft import PeftModel

model = PeftModel.from_pretrained(base, "FOLDER")  # base: the network whose weights the federation froze
```"""


def write(out: Path, model: Model, metadata: AdapterMetadata) -> None:
    """Write `out`, a new folder. Raises InputError for what PEFT cannot hold (`shared.peft.write_folder`)."""
    if model.version is None:
        raise InputError("a classifier file has no adapter to export; name the agent's folder with --state")
    if model.part == "global":
        tensors, rank, alpha = model.version.tensors, metadata.rank, metadata.alpha
    else:
        tensors = adapter_tensors.combined_tensors(model.classifier)
        rank = next((v.shape[0] for name, v in tensors.items() if name.endswith(".lora_A.weight")), 0)
        alpha = float(rank)  # the scales are inside B
    peft.check(tensors, metadata)
    folders.make(out, model.private)
    peft.write_folder(out, tensors, metadata, rank, alpha, folders.header(model.private))
    folders.write_note(out / folders.README, model, "PEFT adapter", USE)
