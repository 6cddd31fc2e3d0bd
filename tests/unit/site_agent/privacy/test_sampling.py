"""Poisson sampling: who is in a step, how many steps there are, and that only the private pass is drawn so."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from shared.methods import GLOBAL_ALONE
from site_agent.privacy import sampling
from site_agent.training import schedule, views
from site_agent.training.schedule import Position
from tests.support import tiny_site
from tests.support.private_site import RECIPE, STEPS, stream

POSITION = Position(2, 4, 7)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return tiny_site.write_cases(tmp_path_factory.mktemp("cases"), 9)


def rounds(cases, count, recipe=RECIPE):
    """Return the patients of every private step of so many rounds with keys of their own."""
    return [
        {view.case.key for view in batch.views}
        for number in range(count)
        for batch in sampling.batches(cases, recipe, POSITION, stream(number))
        if batch.phase == GLOBAL_ALONE
    ]


def test_every_patient_is_in_a_step_with_probability_q_whoever_else_is(cases):
    steps = rounds(cases, 250)
    drawn = np.array([[case.key in one for case in cases] for one in steps], dtype=float)
    q = RECIPE.batch_size / len(cases)
    assert drawn.mean(axis=0) == pytest.approx(q, abs=4 * (q * (1 - q) / len(drawn)) ** 0.5)
    sizes = drawn.sum(axis=1)
    assert set(sizes) >= {1, 2, 3, 4, 5, 6, 7}  # as many as are drawn, not a batch of one size
    assert sizes.var() == pytest.approx(9 * q * (1 - q), rel=0.15)
    together = np.corrcoef(drawn.T) - np.eye(9)
    assert np.abs(together).max() < 5 / len(drawn) ** 0.5
    expected = stats.binom.pmf(range(10), 9, q) * len(drawn)
    assert stats.chisquare(np.bincount(sizes.astype(int), minlength=10), expected).pvalue > 1e-3


def test_a_patient_more_or_less_moves_nobody_else(cases):
    """What neighbours means: the same key draws the same of the others."""
    at_q = [set(np.flatnonzero(stream(0).uniforms(0, step, n) <= 0.5)) for n in (9, 8) for step in range(20)]
    assert all(one - {8} == other for one, other in zip(at_q[:20], at_q[20:], strict=True))


def test_how_many_steps_there_are_the_contract_says_and_not_who_was_drawn(cases):
    for number in range(5):
        batches = list(sampling.batches(cases, RECIPE, POSITION, stream(number)))
        assert len(batches) == schedule.steps_of(9, RECIPE) == 2 * STEPS
        assert sampling.release(9, RECIPE).steps == STEPS


def test_the_local_pass_keeps_its_batches(cases):
    planned = list(schedule.batches(cases, RECIPE, POSITION))
    found = list(sampling.batches(cases, RECIPE, POSITION, stream()))
    for before, after in zip(planned, found, strict=True):
        assert (before.at, before.epoch, before.phase) == (after.at, after.epoch, after.phase)
        same = before.views == after.views and np.array_equal(before.labels, after.labels)
        assert same == (before.phase != GLOBAL_ALONE)


def test_a_drawn_patient_is_there_with_all_its_views_side_by_side(cases):
    recipe = replace(RECIPE, views=2)
    for batch in sampling.batches(cases, recipe, POSITION, stream()):
        if batch.phase == GLOBAL_ALONE:
            groups = [batch.views[start : start + 3] for start in range(0, len(batch.views), 3)]
            epoch = recipe.local_epochs * (POSITION.round - 1) + batch.epoch
            assert groups == [views.at_a_time(one[0].case, recipe, POSITION.seed, epoch) for one in groups]
            assert [view.case.label for view in batch.views] == batch.labels.tolist()


@pytest.mark.parametrize(
    ("changes", "count"), [({"augmentation": "none"}, 1), ({"views": 0}, 1), ({"views": 1}, 2), ({"views": 5}, 6)]
)
def test_every_patient_has_as_many_views(cases, changes, count):
    recipe = replace(RECIPE, **changes)
    assert {len(views.at_a_time(case, recipe, 7, epoch)) for case in cases for epoch in range(4)} == {count}


def test_a_batch_larger_than_the_site_is_everybody_every_time(cases):
    recipe = replace(RECIPE, batch_size=32)
    release = sampling.release(9, recipe)
    assert (release.q, release.steps, sampling.expected(9, recipe)) == (1.0, 2, 9.0)
    drawn = [b for b in sampling.batches(cases, recipe, POSITION, stream()) if b.phase == GLOBAL_ALONE]
    assert all(len(batch.views) == 9 * 2 for batch in drawn)
