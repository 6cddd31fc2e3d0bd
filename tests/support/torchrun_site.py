"""What a process of a site does in tests/integration/test_torchrun.py, or one process alone: rounds of every kind on a tiny site.

`torchrun ... -m tests.support.torchrun_site FOLDER`: the folder has the pickled `cases`; every process writes what it ended with.
"""

import json
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from structlog.testing import capture_logs

from shared.errors import InputError
from shared.recipe import Recipe
from site_agent.damage import Infirmary
from site_agent.data.cases import Case
from site_agent.models import adapter_tensors
from site_agent.models.adapter_tensors import Ownership
from site_agent.training import evaluate, filled, local
from site_agent.training.checkpoint import Binding, Checkpoints
from site_agent.training.launch import Launch
from site_agent.training.local import Hooks
from site_agent.training.micro_batch import MicroBatch
from site_agent.training.parallel import Ended, Failed, Group
from site_agent.training.processes import Processes
from site_agent.training.schedule import Position
from tests.support import tiny_site

CASES = 11
BATCH = 5
"""11 cases make two steps of 5 and one of 1, in which one of two processes has nothing to do."""
RECIPE = Recipe(rank_local=2, augmentation="none", local_epochs=2, batch_size=BATCH, weight_decay=0.01)
RECIPES = {
    "med-duallora": RECIPE,
    "alternating": replace(RECIPE, mode="alternating"),
    "unbalanced": replace(RECIPE, class_balanced=False),
    "fedsa-lora": replace(RECIPE, name="fedsa-lora"),
    "rolora": replace(RECIPE, name="rolora"),
    "ditto-lora": replace(RECIPE, name="ditto-lora"),
    "fdlora": replace(RECIPE, name="fdlora"),
    # the gradient of a key's bias is zero but for rounding, and AdamW makes whole steps of it: small ones here
    "full": replace(RECIPE, name="full", rank_local=0, lr_global=2e-5),
    "penalised": replace(
        RECIPE,
        proximal=0.1,
        orthogonality=0.5,
        shrinkage_patients=3.0,
        local_norm_cap=0.1,
        gate=True,
        logit_adjustment=True,
    ),
}
ONCE = ("ditto-lora", "fdlora", "full", "penalised")
ROUNDS = [(name, number, size) for name in RECIPES for number in (1, 2)[: 1 if name in ONCE else 2] for size in (0, 2)]
BINDING = Binding(contract="c", round=1, base_version=0, received="r", local="l", cases="k", seed=7)
Tensors = dict[str, np.ndarray]


def owned_by(recipe: Recipe) -> Ownership:
    return Ownership.of(tiny_site.metadata(recipe), recipe)


def train(cases: tuple[Case, ...], recipe: Recipe, number: int, group: Group, **options: Any) -> tuple[Any, float]:
    """Return a new model after one round, and the loss."""
    model = options.pop("model", None) or tiny_site.classifier(recipe=recipe)
    activations = tiny_site.activations(model)
    owned, position = owned_by(recipe), Position(number, 4, 7)
    return model, local.train_round(model, activations, cases, recipe, owned, position, group=group, **options)


def tensors_of(model: Any, recipe: Recipe) -> Tensors:
    owned = owned_by(recipe)
    return adapter_tensors.global_tensors(model, owned) | adapter_tensors.local_tensors(model, owned)


def rounds(cases: tuple[Case, ...], group: Group) -> Tensors:
    """Return what a round of each kind ends with, and its loss."""
    found: Tensors = {}
    for name, number, size in ROUNDS:
        model, loss = train(cases, RECIPES[name], number, group, micro_batch=MicroBatch(size))
        here = tensors_of(model, RECIPES[name]) | {"loss": np.array(loss)}
        found |= {f"{name} {number} {size} {tensor}": value for tensor, value in here.items()}
    return found


def stopped_and_resumed(cases: tuple[Case, ...], group: Group, folder: Path) -> Tensors:
    """Return what a round ends with that rank 0 is asked to stop after its third step, and that goes on in new models."""
    checkpoints = Checkpoints(folder / "training", 3600.0, Infirmary(folder, print))
    steps: list[int] = []
    for last in (3, 99):
        hooks = Hooks(lambda step, *_: steps.append(step), lambda last=last: len(steps) >= last)  # type: ignore[misc]
        keeper = checkpoints.keeper(BINDING) if group.rank == 0 else None
        asked = hooks if group.rank == 0 else Hooks(lambda step, *_: steps.append(step))
        try:
            model, _ = train(cases, RECIPE, 1, group, hooks=asked, keeper=keeper)
        except local.Stopped:
            assert steps == [1, 2, 3]
    assert steps == [1, 2, 3, 4, 5, 6]
    return {f"resumed {name}": value for name, value in tensors_of(model, RECIPE).items()}


def short_of_memory(cases: tuple[Case, ...], group: Group) -> Tensors:
    """Return what a round ends with in which only the last rank runs out of memory."""
    model, fitting = tiny_site.classifier(), MicroBatch()
    suffix = model.suffix

    def narrow(prefix: Any) -> torch.Tensor:
        if group.rank == group.size - 1 > 0 and len(prefix.tokens) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return suffix(prefix)

    model.suffix = narrow  # type: ignore[method-assign]
    with capture_logs() as logs:
        train(cases, RECIPE, 1, group, model=model, micro_batch=fitting)
    said = [event["samples"] for event in logs if event["event"] == "memory_ran_out"]
    assert said == ([3] if group.rank else []), said
    return {f"short {name}": value for name, value in tensors_of(model, RECIPE).items()}


def failures(cases: tuple[Case, ...], group: Group) -> list[str]:
    """Return what every process hears when one of them fails: rank 1 in a step, rank 0 in a step, rank 1 in scoring."""
    heard = []
    for rank in (1, 0):
        model = tiny_site.classifier()
        if group.rank == rank:
            model.suffix = _refuse  # type: ignore[assignment]
        heard.append(_what_is_raised(lambda model=model: train(cases, RECIPE, 1, group, model=model)))  # type: ignore[misc]
    model = tiny_site.classifier()
    if group.rank == 1:
        model.suffix = _refuse  # type: ignore[assignment]
    heard.append(_what_is_raised(lambda: evaluate.scores(model, tiny_site.activations(model), cases, group=group)))
    return heard


def _refuse(prefix: Any) -> torch.Tensor:
    raise InputError("case mnms/P003: cannot be read")


def _what_is_raised(work: Callable[[], object]) -> str:
    try:
        work()
    except (InputError, Failed) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def filling(cases: tuple[Case, ...], group: Group, folder: Path) -> list[int]:
    """Return how many were computed together, with the progress that rank 0 hears; of a few, and then of the rest."""
    cache = tiny_site.CacheFolder(folder / "cache", 100_000_000)
    activations = tiny_site.activations(tiny_site.classifier(), cache)
    views = [activations.windows(case)[0] for case in cases]
    seen: list[int] = []
    some = filled.fill(activations, views, group, lambda: len(seen) >= 2, lambda done, of: seen.append(done))
    rest = filled.fill(activations, views, group, lambda: False, lambda done, of: seen.append(done))
    return [some, rest, seen[-1], len(list(cache.path.rglob("*.safetensors")))]


def everything(group: Group, folder: Path) -> Tensors:
    """Return the numbers that are the same for one process and for several."""
    cases = pickle.loads((folder / "cases").read_bytes())
    model = tiny_site.classifier()
    (margins,) = evaluate.scores(model, tiny_site.activations(model), cases, group=group)
    found = rounds(cases, group) | stopped_and_resumed(cases, group, folder) | short_of_memory(cases, group)
    return found | {"margins": margins}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    launch = Launch.of(os.environ)
    assert launch is not None
    group = Processes(launch)
    np.savez(folder / f"rank-{group.rank}.npz", **everything(group, folder))
    cases = pickle.loads((folder / "cases").read_bytes())
    said = {"failures": failures(cases, group), "filling": filling(cases, group, folder)}
    (folder / f"rank-{group.rank}.json").write_text(json.dumps(said))
    group.end() if group.rank == 0 else _wait_for_the_end(group)


def _wait_for_the_end(group: Processes) -> None:
    try:
        group.told(None)
    except Ended:
        group.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
