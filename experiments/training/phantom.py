"""Federations in one process on the demo's SYNTHETIC phantom cohort, which the project's own commands make."""

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import site_agent.models
from experiments import simulation
from experiments.demo import commands
from experiments.demo.commands import SITES, DemoConfig
from experiments.simulation import Setting
from shared.adapter import Adapter
from site_agent.data.cohort import Cohort
from site_agent.training.site import SiteTrainer

WEIGHTS = Path(site_agent.models.__file__).parent / "demo"


def cohort(folder: Path, seed: int, scale: float) -> Path:
    """Return the folder of a prepared cohort below `folder`, made as the demo makes it unless it is there already."""
    config = DemoConfig(out=folder / f"cohort-seed{seed}-scale{scale:g}", weights=WEIGHTS, seed=seed, scale=scale)
    prepared = config.out / "prepared"
    if not (prepared / "done").exists():
        config.out.mkdir(parents=True, exist_ok=True)
        for command in (commands.phantom(config), commands.prepare(config)):
            subprocess.run(command.words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (prepared / "done").touch()
    return prepared


@dataclass(frozen=True)
class Federated:
    """What a federation ended with."""

    trainers: dict[str, SiteTrainer]
    version: Adapter
    private: dict[str, dict[str, np.ndarray]]
    seconds: float
    """From the first round's start to the last one's end."""


def federate(setting: Setting) -> Federated:
    """Run all rounds over the demo's sites."""
    contract, initial = setting.start(len(SITES))
    trainers = {site: setting.trainer(site, contract, Cohort.load(setting.cohort / site)) for site in SITES}
    began = time.perf_counter()
    *_, last = simulation.federate(contract, initial, trainers)
    private = {site: dict(tensors) for site, tensors in last.private.items()}
    return Federated(trainers, last.version, private, time.perf_counter() - began)
