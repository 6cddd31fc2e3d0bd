"""The table of accuracy over epsilon, and the noise its cells are run with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner

from experiments.privacy import __main__ as command
from experiments.privacy import cells, table
from experiments.privacy.cells import Choices
from shared.errors import InputError

CHOICES = Choices(weights=Path("weights"), rounds=4, batch_size=8)
PATIENTS = {"siemens": 200, "ge": 40}


def arm(auc, accuracy):
    return {"auc": auc, "at_validation": {"balanced_accuracy": accuracy}}


def cell(run, budget, shift=0.0):
    sites = {
        "ge": {"global": arm(0.5 + shift, 0.6), "dual": arm(0.7, 0.8)},
        "siemens": {"global": arm(0.7 + shift, 0.6), "dual": arm(0.9, 0.6)},
    }
    spent = (
        {}
        if budget is None
        else {"ge": {"pld": budget - 0.01, "rdp": budget + 0.5}, "siemens": {"pld": 0.4, "rdp": 0.5}}
    )
    facts = {"run": run, "budget": budget, "sigma": 0.0 if budget is None else 3.0 / budget, "seconds": 2.0}
    return {**facts, "sites": sites, "spent": spent, "choices": CHOICES.settled()}


def test_rows_are_means_over_sites_then_runs_with_the_budget_that_was_spent():
    rows = table.rows([cell(0, None), cell(0, 8.0), cell(0, 1.0), cell(1, 1.0, shift=0.2)])
    assert [row["budget"] for row in rows] == [1.0, 8.0, None]
    first = rows[0]
    assert (first["runs"], first["spent_pld"], first["spent_rdp"]) == (2, 0.99, 1.5)
    assert first["global_auc"] == {"mean": pytest.approx(0.7), "deviation": pytest.approx(0.2 / 2**0.5)}
    assert first["dual_at_validation"]["mean"] == pytest.approx(0.7)
    assert rows[2]["spent_pld"] is None
    text = table.markdown(rows, CHOICES.settled())
    assert "| 1 | 3 | 0.990 (1.500) | 0.700 (0.141) | 0.600 (0.000) | 0.800 (0.000) | 0.700 (0.000) |" in text
    assert "| inf | 0 | unbounded | 0.600 | 0.600 | 0.800 | 0.700 |" in text


def test_the_noise_keeps_every_site_to_the_budget_and_the_smallest_spends_most():
    sigma = cells.sigma_of(CHOICES, PATIENTS, 3.0)
    spent = cells.spent(CHOICES, PATIENTS, sigma)
    assert spent["siemens"].pld < spent["ge"].pld <= 3.0
    assert spent["ge"].pld > 2.98


def test_a_cell_of_other_choices_is_not_taken_for_this_ones(tmp_path):
    cells.write(tmp_path, cell(0, 1.0))
    assert cells.read(tmp_path, CHOICES, 0, 1.0) == json.loads(json.dumps(cell(0, 1.0)))
    assert cells.read(tmp_path, CHOICES, 0, None) is None
    with pytest.raises(InputError, match="was run with rounds 4, now it is 5; choose another --out"):
        cells.read(tmp_path, replace(CHOICES, rounds=5), 0, 1.0)


@pytest.mark.parametrize(("epsilon", "q", "steps"), [(1.0, 0.2, 80), (3.0, 0.2, 80), (8.0, 0.1, 40)])
def test_sigma_for_an_epsilon_is_the_least_that_keeps_to_it(epsilon, q, steps):
    sigma = cells.sigma_for(q, steps, epsilon, 1e-5)
    assert cells._epsilon(q, sigma, steps, 1e-5) <= epsilon
    assert cells._epsilon(q, sigma * 0.998, steps, 1e-5) > epsilon


def test_the_recipes_differ_in_privacy_alone():
    private, without = CHOICES.private(3.0, 2.0), CHOICES.recipe()
    assert replace(private, dp_noise=0.0, dp_epsilon=0.0, dp_clip=1.0) == without
    assert (private.dp_noise, private.dp_epsilon, private.dp_delta) == (2.0, 3.0, 1e-5)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "much"])
def test_an_epsilon_is_a_number_above_0_or_inf(text):
    with pytest.raises(InputError, match="a number above 0, or inf"):
        command._budget(text)
    assert command._budget("inf") is None


@pytest.fixture
def _logs_as_before():
    """The command lets its process log warnings alone."""
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("_logs_as_before")
def test_finished_cells_are_not_run_again_and_the_table_is_written(tmp_path, capsys):
    choices = Choices(weights=Path("weights"))
    for budget in (1.0, 3.0, 8.0, None):
        cells.write(tmp_path, {**cell(0, budget), "choices": choices.settled()})
    import typer

    app = typer.Typer()
    app.command()(command.main)
    result = CliRunner().invoke(app, ["--out", str(tmp_path), "--seeds", "1"])
    assert result.exit_code == 0
    assert json.loads((tmp_path / "privacy.json").read_bytes())["rows"][0]["budget"] == 1.0
    assert "| inf | 0 | unbounded |" in (tmp_path / "privacy.md").read_text()
