"""One site's training as a process of its own: `python -m experiments.training.site_process FOLDER PRECISION`.

FOLDER holds weights/, cohort/, contract.json and v0.safetensors. Prints, as a line of JSON, the peak of the process's memory after
each part of its work. It imports what an agent imports, gRPC with it.
"""

import json
import sys
from pathlib import Path
from typing import cast

import torch

import site_agent.agent  # noqa: F401
from shared.adapter import Adapter
from shared.contract import Contract
from site_agent.config import Precision, SiteConfig
from site_agent.data.cohort import Cohort
from site_agent.training import local
from site_agent.training.site import SiteTrainer, load_base

SITE = "synthetic"


def peak_bytes() -> int:
    """Return the most memory that this process has had resident so far: VmHWM."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(line.split()[1])


def main(folder: Path, precision: Precision) -> None:
    """Load, fill the cache, train one round, and evaluate."""
    config = SiteConfig(
        aggregator="127.0.0.1:1",
        plain_site=SITE,
        cohort=folder / "cohort",
        weights=folder / "weights",
        state=folder / precision / "state",
        device="cpu",
        precision=precision,
        threads=torch.get_num_threads(),
    )
    peaks = {"imported": peak_bytes()}
    contract = Contract.from_bytes((folder / "contract.json").read_bytes())
    loaded = load_base(config.weights, "", "stacked", warn=False)
    trainer = SiteTrainer(config, SITE, contract, loaded, Cohort.load(config.cohort))
    peaks["loaded"] = peak_bytes()
    filled = trainer.fill_cache(1)
    peaks["filled"] = peak_bytes()
    initial = Adapter.read(folder / "v0.safetensors")
    trained = trainer.train(1, initial, trainer.initial_local(), local.Hooks())
    peaks["trained"] = peak_bytes()
    trainer.validate(initial, trained.local_tensors)
    trainer.compare_arms(initial, initial, trained.local_tensors, local.Hooks())
    peaks["evaluated"] = peak_bytes()
    print(json.dumps({"peaks": peaks, "entries": filled}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), cast(Precision, sys.argv[2]))
