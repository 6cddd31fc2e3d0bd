"""The researcher's worked example: the lines of the page make a method that two sites train, as the page says."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from experiments import simulation
from shared import methods, recipe
from shared.recipe import Recipe, factor_of
from tests.docs.pages import ROOT
from tests.support import tiny_site

PAGE = ROOT / "docs" / "researcher.md"
ROUNDS = 4
NAME = "b-then-both"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Add the entry that stands on the page, as a release would have it."""
    (code,) = re.findall(r"^```python\n(METHODS.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    before = dict(methods.METHODS)
    exec(code, vars(methods))  # lines of our own page, in the module they are for
    monkeypatch.setattr(recipe, "INSTALLED", (*recipe.INSTALLED, NAME))
    yield
    methods.METHODS.clear()
    methods.METHODS.update(before)


@pytest.mark.usefixtures("installed")
def test_the_entry_of_the_page_is_a_method_that_trains_as_it_says(tmp_path: Path) -> None:
    backbone = tiny_site.write_backbone(tmp_path / "backbone")
    chosen = Recipe(name=NAME, augmentation="none", local_epochs=4, batch_size=4, lr_global=1e-2, lr_local=1e-2)
    contract, initial = tiny_site.contract(backbone, chosen, ROUNDS)
    trainers = {
        site: tiny_site.trainer(tmp_path / site, backbone, contract, site, cases)
        for site, cases in (("ge", 12), ("canon", 18))
    }
    rounds = list(simulation.federate(contract, initial, trainers))
    versions = [initial, *(one.version for one in rounds)]
    for number, (before, after) in enumerate(itertools.pairwise(versions), 1):
        moved = {
            factor_of(name)
            for name in after.tensors
            if factor_of(name) and not np.array_equal(before.tensors[name], after.tensors[name])
        }
        assert moved == ({"B"} if number % 2 else {"A", "B"}), f"round {number}"
    assert rounds[-1].train_loss < rounds[0].train_loss
    sizes = [contract.recipe.upload_layout(contract.manifest, number, 2).size for number in (1, 2)]
    assert sizes[0] < sizes[1]
