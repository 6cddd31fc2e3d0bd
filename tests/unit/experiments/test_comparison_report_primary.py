"""The primary family of hand-made predictions is what arithmetic says; all intervals are those of the paired bootstrap."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.comparison import contenders, statistics
from experiments.comparison.metrics import FIGURES
from experiments.comparison.records import Prediction
from experiments.comparison.report import comparing, finished, primary, resampling
from experiments.comparison.report.finished import Comparison, Result
from experiments.comparison.report.primary import Primary
from experiments.comparison.report.resampling import DRAWN, MEAN, WORST, Draws
from tests.support import comparison_folder as made
from tests.support.bootstrap import bootstrap, paired_bootstrap
from tests.support.comparison_folder import predictions

LABELS = [1] * 20 + [0] * 20
RIGHT = [1.0] * 20 + [-1.0] * 20


def missing(found: int) -> list[float]:
    """Margins of 40 cases with so many of the 20 diseased not found: balanced accuracy 1 - found / 40."""
    return [-1.0] * found + [1.0] * (20 - found) + [-1.0] * 20


def result(scenario: str, method: str, margins: Mapping[int, list[float]]) -> Result:
    """Two sites of 40 cases, of which only the first has these margins by run; the second is called without error."""
    return Result(
        contender=contenders.find(method),
        scenario=scenario,
        cells={run: made.cell(scenario, method, run) for run in margins},
        predictions={
            run: [*predictions(run, own, LABELS, "a"), *predictions(run, RIGHT, LABELS, "b")]
            for run, own in margins.items()
        },
    )


def comparison(*results: Result, synthetic: bool = True) -> Comparison:
    places = ["homogeneous", *primary.SCENARIOS] if synthetic else ["real"]
    return Comparison(
        config={"synthetic": synthetic, "scenarios": dict.fromkeys(places, ""), "runs": {"core": 10, "other": 5}},
        tuned={},
        results={(one.scenario, one.method): one for one in results},
        unseen=(),
        unknown=(),
    )


def computed(*results: Result, synthetic: bool = True) -> Primary:
    of = comparison(*results, synthetic=synthetic)
    return primary.compute(of, resampling.draw(of, draws=200))


def winning(scenario: str, runs: int = 10) -> list[Result]:
    """Our recipe makes no error; both references miss 1, 2, 3, ... of the first site's 20 diseased cases in runs 0, 1, 2, ..."""
    ours = result(scenario, "ours", dict.fromkeys(range(runs), RIGHT))
    return [ours, *(result(scenario, one, {k: missing(k + 1) for k in range(runs)}) for one in primary.REFERENCES)]


def test_family_is_two_references_by_three_scenarios_by_mean_and_worst_site() -> None:
    family = list(primary.family(comparison()))
    assert len(family) == 12
    assert {one.scenario for one in family} == {"shifted", "convention", "wall-bias"}
    assert {one.reference for one in family} == {"fedit-r16", "med-duallora"}
    assert {one.figure for one in family} == {
        "balanced_accuracy_validation_site_mean",
        "balanced_accuracy_validation_worst_site",
    }


def test_differences_and_p_values_are_those_of_arithmetic() -> None:
    """Mean over sites: (k + 1) / 80 in run k, on average 5.5 / 80; worst site twice that. Ten of one sign: p = 2 / 2^10."""
    found = computed(*(one for scenario in primary.SCENARIOS for one in winning(scenario)))
    for one in found.tests:
        sites = 1 if one.planned.figure == WORST else 2
        assert one.ours == pytest.approx(1.0)
        assert one.theirs == pytest.approx(1 - 5.5 / 40 / sites)
        assert one.patients is not None
        assert one.over_runs is not None
        assert one.patients.value == one.over_runs.value == pytest.approx(5.5 / 40 / sites)
        reach = (
            2.2621572 * math.sqrt(110 / 12 / 10) / 40 / sites
        )  # t of 9 degrees of freedom; 1..10 have variance 110 / 12
        assert one.over_runs.low == pytest.approx(5.5 / 40 / sites - reach)
        assert one.wilcoxon is not None
        assert one.wilcoxon.p == one.wilcoxon.least_p == pytest.approx(2 / 2**10)
        assert one.holm == pytest.approx(12 * 2 / 2**10)
        assert one.verdict == "ours better"
        assert one.runs == 10
    assert primary.words(found)[0].startswith("Of 12 primary tests 12 find our recipe better and 0 find it worse")


def test_our_recipe_can_lose() -> None:
    ours, *references = winning("shifted")
    swapped = [result("shifted", "ours", {k: missing(k + 1) for k in range(10)})]
    swapped += [result("shifted", one.method, dict.fromkeys(range(10), RIGHT)) for one in references]
    assert ours.method == "ours"
    assert [one.verdict for one in computed(*swapped).tests[:4]] == ["ours worse"] * 4


def test_tests_that_are_not_run_count_in_the_adjustment_from_the_start() -> None:
    found = computed(*winning("shifted"))
    assert [one.verdict for one in found.tests] == ["ours better"] * 4 + ["not run yet"] * 8
    assert [one.holm for one in found.tests[:4]] == pytest.approx([12 * 2 / 2**10] * 4)
    assert not found.complete
    assert primary.words(found)[0] == "Preliminary: 8 of the 12 primary tests are not run yet."


def test_five_runs_cannot_decide_and_the_words_say_so() -> None:
    found = computed(*winning("shifted", runs=5))
    assert all(one.wilcoxon and one.wilcoxon.least_p == 2 / 2**5 for one in found.tests[:4])
    assert [one.verdict for one in found.tests[:4]] == ["undecided"] * 4
    assert any(
        "no p below 0.062 is attainable, and Holm multiplies the smallest by 12" in line
        for line in primary.words(found)
    )


def test_one_run_has_differences_and_no_p() -> None:
    found = computed(*winning("shifted", runs=1))
    for one in found.tests[:4]:
        assert one.patients is not None
        assert one.over_runs is None
        assert one.wilcoxon is None
        assert one.holm is None
        assert one.verdict == "no test"
    assert any("no p values there" in line for line in primary.words(found))


def test_only_runs_that_both_have_are_compared() -> None:
    ours, *references = winning("shifted")
    fewer = result("shifted", "fedit-r16", {k: missing(8) for k in (2, 7, 11)})
    found = computed(ours, fewer, references[1])
    assert found.tests[0].runs == 2
    assert found.tests[0].theirs == pytest.approx(1 - 8 / 80)


def test_nothing_is_lost_if_the_lower_bound_of_the_mean_is_above_the_margin() -> None:
    same = [result("homogeneous", one, dict.fromkeys(range(3), missing(4))) for one in ("ours", *primary.REFERENCES)]
    found = computed(*same).no_loss
    assert [one.held for one in found] == [True, True]
    assert found[0].mean is not None
    assert (found[0].mean.value, found[0].mean.low) == (0.0, 0.0)

    worse = [result("homogeneous", "ours", dict.fromkeys(range(3), missing(8))), *same[1:]]
    lost = computed(*worse)
    assert [one.held for one in lost.no_loss] == [False, False]
    assert lost.no_loss[0].mean is not None
    assert lost.no_loss[0].mean.value == pytest.approx(-4 / 80)
    assert any("may lose more than 0.02 against fedit-r16: -0.050" in line for line in primary.words(lost))


def test_the_lower_bound_over_runs_decides_whether_something_may_be_lost() -> None:
    """Differences 0 and -2 / 80: mean -1 / 80, t of one degree of freedom 12.706, so that the bound is far below -0.02."""
    ours = result("homogeneous", "ours", {0: missing(4), 1: missing(6)})
    one = computed(ours, result("homogeneous", "fedit-r16", dict.fromkeys(range(2), missing(4)))).no_loss[0]
    assert one.mean is not None
    assert one.mean.value == pytest.approx(-1 / 80)
    assert one.mean.low == pytest.approx(-1 / 80 - 12.7062047 / 80)
    assert one.held is False


def test_one_run_does_not_say_whether_something_is_lost() -> None:
    both = [result("homogeneous", one, {0: missing(4)}) for one in ("ours", "fedit-r16")]
    found = computed(*both)
    assert found.no_loss[0].held is None
    assert found.no_loss[0].patients is not None
    assert any("against fedit-r16 has one run, which gives no interval" in line for line in primary.words(found))


def test_fewer_runs_than_were_planned_are_preliminary() -> None:
    found = computed(*(one for scenario in primary.SCENARIOS for one in winning(scenario, runs=8)))
    assert primary.words(found)[0] == (
        "Preliminary: 12 of the 12 primary tests have fewer than the 10 runs that were planned."
    )
    assert not found.complete


def test_on_real_patients_there_are_four_tests_and_they_are_called_dependent() -> None:
    found = computed(*winning("real"), synthetic=False)
    assert len(found.tests) == 4
    assert found.no_loss == ()
    assert [one.holm for one in found.tests] == pytest.approx([4 * 2 / 2**10] * 4)
    assert "DEPENDENT" in primary.words(found)[0]


def drawn_results() -> tuple[Comparison, Draws]:
    cells = {
        (method, run): made.drawn("shifted", method, run) for method in ("fedit-r16", "ours", "ffa") for run in range(3)
    }
    results = [
        Result(
            contender=contenders.find(method),
            scenario="shifted",
            cells={run: made.cell("shifted", method, run) for run in runs},
            predictions={run: cells[method, run] for run in runs},
        )
        for method, runs in (("fedit-r16", range(3)), ("ours", range(3)), ("ffa", range(2)))
    ]
    of = comparison(*results)
    return of, resampling.draw(of, draws=300, seed=5)


@pytest.mark.parametrize("figure", DRAWN)
@pytest.mark.parametrize("second", ["fedit-r16", "ffa"])
def test_drawing_once_for_all_methods_gives_the_paired_bootstrap(figure: str, second: str) -> None:
    of, draws = drawn_results()
    first, other = of.results["shifted", "ours"], of.results["shifted", second]
    runs = resampling.common_runs(first, other)
    expected = paired_bootstrap(first.every(runs), other.every(runs), FIGURES[figure], draws=300, seed=5)
    found = draws.difference(first, other, figure)
    for name in ("value", "low", "high", "sd"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-12)


def test_interval_of_a_site_is_its_own_bootstrap_with_the_same_patients() -> None:
    of, draws = drawn_results()
    one = of.results["shifted", "ours"]
    here = [prediction for prediction in one.every() if prediction.site == "Canon"]
    found = draws.interval(one, resampling.at_site("Canon"))
    expected = bootstrap(here, FIGURES["balanced_accuracy_validation"], draws=2000, seed=5)
    assert found.value == pytest.approx(expected.value)
    assert found.sd == pytest.approx(expected.sd, rel=0.2)


def site_by_site(first: Result, second: Result) -> list[statistics.DeLong]:
    mine, theirs = first.cases[0], second.cases[0]
    here = [mine.sites == site for site in first.sites]
    return [statistics.delong(mine.margins[one], theirs.margins[one], mine.labels[one]) for one in here]


def test_areas_of_one_run_are_delongs_of_its_sites_averaged() -> None:
    of, _ = drawn_results()
    first, second = (of.results["shifted", one] for one in ("ours", "fedit-r16"))
    one_run = [
        Result(
            contender=one.contender, scenario="shifted", cells={0: one.cells[0]}, predictions={0: one.predictions[0]}
        )
        for one in (first, second)
    ]
    found, sites = comparing.areas(*one_run), site_by_site(*one_run)
    assert found is not None
    assert len(sites) == 4
    assert found.difference.value == pytest.approx(np.mean([one.difference for one in sites]))
    assert found.difference.sd == pytest.approx(math.sqrt(sum(one.variance for one in sites)) / 4)
    assert found.p == pytest.approx(math.erfc(abs(found.difference.value / found.difference.sd) / math.sqrt(2)))


def test_areas_of_two_equal_runs_have_half_the_variance() -> None:
    def twice(method: str) -> Result:
        own = made.drawn("shifted", method, 0)
        again = [Prediction(**{**_values(one), "run": 1}) for one in own]
        cells = {run: made.cell("shifted", method, run) for run in (0, 1)}
        return Result(
            contender=contenders.find(method), scenario="shifted", cells=cells, predictions={0: own, 1: again}
        )

    first, second = twice("ours"), twice("fedit-r16")
    found, sites = comparing.areas(first, second), site_by_site(first, second)
    assert found is not None
    assert found.difference.value == pytest.approx(np.mean([one.difference for one in sites]))
    assert found.difference.sd == pytest.approx(math.sqrt(sum(one.variance for one in sites) / 2) / 4)


def test_shifting_all_margins_of_one_site_moves_no_area() -> None:
    """Ranked together with the other sites' cases it would: a private head has a scale of its own."""
    of, _ = drawn_results()
    first, second = (of.results["shifted", one] for one in ("ours", "fedit-r16"))
    moved = [replace(one, margin=one.margin + 5 * (one.site == "GE")) for one in first.every()]
    by_run = {run: [one for one in moved if one.run == run] for run in first.predictions}
    assert comparing.areas(replace(first, predictions=by_run), second) == comparing.areas(first, second)


def _values(one: Prediction) -> dict[str, object]:
    return {name: getattr(one, name) for name in Prediction.__dataclass_fields__}


def test_exploratory_p_values_are_one_family() -> None:
    of, draws = drawn_results()
    pairs = comparing.compute(of, draws)
    assert [(one.first, one.second) for one in pairs] == [("ours", "fedit-r16"), ("ffa", "fedit-r16")]
    flat = [p for one in pairs for p in one.p_values.values()]
    assert len(flat) == 7  # the Wilcoxon of ours against FedIT is the primary family's
    assert [p for one in pairs for p in one.holm.values()] == pytest.approx(statistics.holm(flat))


def test_equal_methods_have_no_difference_of_areas() -> None:
    of, _ = drawn_results()
    one = of.results["shifted", "ours"]
    found = comparing.areas(one, one)
    assert found is not None
    assert (found.difference.value, found.p) == (0.0, 1.0)


def test_methods_on_different_cases_are_refused(tmp_path: Path) -> None:
    out = made.make(tmp_path, [("shifted", "ours", [0])])
    made.make(tmp_path, [("shifted", "fedit-r16", [0])], cases=19)
    with pytest.raises(finished.InputError, match="is not the same in shifted/ours/0 and shifted/fedit-r16/0"):
        finished.load(out)


def test_figures_of_a_result_are_of_each_run() -> None:
    one = winning("shifted")[1]
    assert [one.figures[MEAN][run] for run in range(10)] == pytest.approx([1 - (k + 1) / 80 for k in range(10)])
    assert np.all([value == 1 for value in one.figures["specificity_validation"].values()])
