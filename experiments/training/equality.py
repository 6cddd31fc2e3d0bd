"""What the cache may change of a result: nothing in float32, next to nothing in half precision.

losses       the same round of training at one phantom site, from a full cache and without one, step by step
federations  the demo's, each in one process, with and without a cache, and with half-precision ones, on several cohorts
first step   of a site on float16 entries and on float32 ones: the weight that comes out furthest apart, and why
logits       of CineMA-base with random weights, from entries rounded to float16 and to bfloat16
"""

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments import output
from experiments.demo.commands import SITES
from experiments.output import Target
from experiments.simulation import Setting
from experiments.training import phantom, quiet, synthetic, timing
from experiments.training.synthetic import BASE
from shared.recipe import Recipe
from site_agent.config import Stored
from site_agent.damage import Infirmary
from site_agent.data.cohort import Cohort
from site_agent.models.backbone import Prefix
from site_agent.training import checkpoint, local, metrics
from site_agent.training.checkpoint import Checkpoints

STEPS = 50
LOSS, PROBABILITY, AUC = 1e-4, 1e-4, 2e-3
SITE, BATCH = "siemens", 4
IMAGES = 4
"""For the errors of logits; each takes a pass through all of CineMA-base."""
HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A federation's probabilities of disease for every held-out case, and its AUC, by site."""

    probabilities: dict[str, list[float]]
    auc: dict[str, float]
    seconds: float


CACHE_MB = 4096
RUNS: Mapping[str, tuple[int, Stored]] = {
    "no cache": (0, "float32"),
    "float32": (CACHE_MB, "float32"),
    "float16": (CACHE_MB, "float16"),
    "bfloat16": (CACHE_MB, "bfloat16"),
}
"""Room for the cache, and what its entries are rounded to."""
REFERENCE = "float32"
Outcomes = Mapping[tuple[int, str], Outcome]
"""By seed of the cohort and name of the run."""


def run(seeds: Sequence[int], scale: float, rounds: int, jobs: int, out: Path) -> bool:
    """Measure, show, and return whether every target was met."""
    machine = timing.machine()
    prepared = {seed: phantom.cohort(out, seed, scale) for seed in seeds}
    with ProcessPoolExecutor(jobs) as pool:
        running = {
            (seed, name): pool.submit(_outcome, prepared[seed], out, seed, rounds, *how)
            for seed in seeds
            for name, how in RUNS.items()
        }
        outcomes = {which: one.result() for which, one in running.items()}
    first = seeds[0]
    with_cache, without = (_losses(prepared[first], out, first, cache_mb) for cache_mb in (CACHE_MB, 0))
    step, errors = _first_step(prepared[first], out, first, rounds), _logit_errors()
    what = f"equality: SYNTHETIC phantom cohorts, {rounds} rounds, {len(SITES)} sites"
    lines = [timing.heading(what, machine), *table(outcomes), "", step.line(), "", *logit_table(errors)]
    facts: dict[str, Any] = {"machine": machine, "synthetic": True, "losses": {"cached": with_cache, "not": without}}
    facts["outcomes"] = [{"seed": seed, "cache": name, **asdict(one)} for (seed, name), one in outcomes.items()]
    facts |= {"logits": errors, "first_step": asdict(step)}
    return output.show("equality", lines, judged(with_cache, without, outcomes), facts, out)


def _losses(prepared: Path, out: Path, seed: int, cache_mb: int) -> list[float]:
    """Train one round and return the losses of its first steps, which the last checkpoint holds.

    The cached one finds all it needs: what is missing in the end was computed in training, and is an error.
    """
    with tempfile.TemporaryDirectory(dir=out, prefix="losses-") as name:
        recipe = Recipe(batch_size=BATCH, local_epochs=1)
        cache = Path(name) / "activations"
        setting = Setting(prepared, phantom.WEIGHTS, seed, 1, recipe, cache=cache, cache_mb=cache_mb)
        contract, initial = setting.start(1)
        trainer = setting.trainer(SITE, contract, Cohort.load(prepared / SITE))
        trainer.fill_cache(1)
        checkpoints = Checkpoints(Path(name) / "training", 0.0, Infirmary(Path(name), print))
        trainer.train(1, initial, trainer.initial_local(), local.Hooks(), checkpoints)
        held = checkpoint.read(checkpoints.paths()[-1])
        assert held is not None
        return held[1].losses[:STEPS]


def _outcome(prepared: Path, out: Path, seed: int, rounds: int, cache_mb: int, stored: Stored) -> Outcome:
    """Run one federation, on one thread as the demo's agents have."""
    quiet.process()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=out, prefix="federation-") as folder:
        cache = Path(folder)
        setting = Setting(prepared, phantom.WEIGHTS, seed, rounds, cache=cache, cache_dtype=stored, cache_mb=cache_mb)
        made = phantom.federate(setting)
        scored = {
            site: trainer.score(made.version, made.private[site], trainer.cohort.test())
            for site, trainer in made.trainers.items()
        }
    return Outcome(
        {site: metrics.probability(one.scores).tolist() for site, one in scored.items()},
        {site: metrics.auc(one.scores, one.labels) for site, one in scored.items()},
        made.seconds,
    )


@dataclass(frozen=True, slots=True)
class FirstStep:
    """Where the first step of a round leads furthest apart: the weight, how far, and its gradient on either side."""

    weight: str
    apart: float
    gradients: tuple[float, float]
    rate: float

    def line(self) -> str:
        """Return it in words."""
        one, other = self.gradients
        return (
            f"first step at {SITE}, float32 and float16: furthest apart is {self.weight}, by {self.apart:.2g}, at a learning rate "
            f"of {self.rate:g}; its gradients are {one:.2g} and {other:.2g}"
        )


def _first_step(prepared: Path, out: Path, seed: int, rounds: int) -> FirstStep:
    """Train one step of the first round on entries of either kind."""
    one, other = (_after_a_step(prepared, out, seed, rounds, stored) for stored in ("float32", "float16"))
    apart = {name: (value - other.weights[name]).abs() for name, value in one.weights.items()}
    worst = max(apart, key=lambda name: float(apart[name].max()))
    at = int(apart[worst].argmax())
    gradients = float(one.gradients[worst].flatten()[at]), float(other.gradients[worst].flatten()[at])
    return FirstStep(f"{worst}[{at}]", float(apart[worst].max()), gradients, one.rates[worst])


@dataclass(frozen=True, slots=True)
class Stepped:
    """What is trained, after a step: weights, the gradients that led there, and learning rates, by name."""

    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)


def _after_a_step(prepared: Path, out: Path, seed: int, rounds: int, stored: Stored) -> Stepped:
    found = Stepped()
    with tempfile.TemporaryDirectory(dir=out, prefix="step-") as name:
        setting = Setting(prepared, phantom.WEIGHTS, seed, rounds, cache=Path(name), cache_dtype=stored)
        contract, initial = setting.start(len(SITES))
        trainer = setting.trainer(SITE, contract, Cohort.load(prepared / SITE))
        names = {id(value): name for name, value in trainer.model.named_parameters()}

        def note(step: int, of: int, optimiser: torch.optim.Optimizer) -> None:
            for group in optimiser.param_groups:
                for value in (value for value in group["params"] if value.grad is not None):
                    name = names[id(value)]
                    found.weights[name], found.gradients[name] = value.detach().clone(), value.grad.clone()
                    found.rates[name] = group["lr"]

        hooks = local.Hooks(on_step=note, should_stop=lambda: bool(found.weights))
        with contextlib.suppress(local.Stopped):
            trainer.train(1, initial, trainer.initial_local(), hooks)
    return found


def _logit_errors() -> dict[str, dict[str, float]]:
    """Return what rounding the entries of CineMA-base does to its logits, and how large their numbers are."""
    model, images = synthetic.dual(BASE), synthetic.images(IMAGES)
    with torch.no_grad():
        exact = [model.frozen(image[None]) for image in images]
        logits = torch.cat([model.suffix(prefix) for prefix in exact])
        found = {}
        for dtype in HALVES:
            rounded = [Prefix(*(value.to(dtype).float() for value in prefix)) for prefix in exact]
            errors = (torch.cat([model.suffix(prefix) for prefix in rounded]) - logits).abs()
            found[str(dtype).removeprefix("torch.")] = {
                "most": float(errors.max()),
                "mean": float(errors.mean()),
                "largest_logit": float(logits.abs().max()),
                "largest_number": max(float(value.abs().max()) for prefix in exact for value in prefix),
            }
    return found


def deviation(one: Outcome, other: Outcome) -> float:
    """Return the largest difference between two federations' probabilities, over all sites' cases."""
    return max(
        float(np.abs(np.subtract(one.probabilities[site], other.probabilities[site])).max())
        for site in one.probabilities
    )


def auc_deviation(one: Outcome, other: Outcome) -> float:
    """Return the largest difference between two federations' AUC at one site."""
    return max(abs(one.auc[site] - other.auc[site]) for site in one.auc)


def mean_auc_deviation(one: Outcome, other: Outcome) -> float:
    """Return the difference between the means over the sites."""
    return abs(mean_auc(one) - mean_auc(other))


def mean_auc(one: Outcome) -> float:
    """Return the mean over the sites."""
    return sum(one.auc.values()) / len(one.auc)


def table(outcomes: Outcomes) -> list[str]:
    """Return a row for each federation, held against the one of the same cohort with a cache in float32."""
    rows = [
        [
            f"{seed}, {name}",
            f"{mean_auc(one):.4f}",
            mean_auc_deviation(one, outcomes[seed, REFERENCE]),
            auc_deviation(one, outcomes[seed, REFERENCE]),
            deviation(one, outcomes[seed, REFERENCE]),
            one.seconds,
        ]
        for (seed, name), one in outcomes.items()
    ]
    head = ["seed, cache", "mean AUC", "mean AUC, apart", "AUC of a site, most", "probability, most", "training, s"]
    return output.table(head, rows)


def logit_table(errors: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return a row for each half precision."""
    rows = [
        [name, one["most"], one["mean"], one["largest_logit"], one["largest_number"]] for name, one in errors.items()
    ]
    head = ["entries of CineMA-base as", "logit error, most", "mean", "largest logit", "largest number"]
    return output.table(head, rows)


def judged(with_cache: Sequence[float], without: Sequence[float], outcomes: Outcomes) -> list[Target]:
    """Return what must hold, of the cohort where it is furthest from that."""
    steps = len(with_cache)
    apart = max(abs(a - b) for a, b in zip(with_cache, without, strict=True))

    def most(name: str, between: Callable[[Outcome, Outcome], float]) -> float:
        return max(between(one, outcomes[seed, REFERENCE]) for (seed, which), one in outcomes.items() if which == name)

    return [
        Target("steps whose losses were compared", steps, STEPS, least=True),
        Target(f"losses of {steps} steps, with and without the cache", apart, LOSS),
        Target("probabilities, with and without the cache, float32", most("no cache", deviation), PROBABILITY),
        Target("mean AUC, float16 and float32", most("float16", mean_auc_deviation), AUC),
        Target("AUC of the site that differs most, float16 and float32", most("float16", auc_deviation), AUC),
    ]
