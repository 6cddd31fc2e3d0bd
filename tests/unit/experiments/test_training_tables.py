"""What the benchmarks of training print and judge, from figures made by hand."""

import math

import pytest
import torch

from experiments.training import equality, floor, memory, precision, steps, views_table, waits
from experiments.training.compiled import Compiled, verdict
from experiments.training.epoch import Course, judged, pieces, table
from experiments.training.equality import Outcome
from experiments.training.views_table import CHOICES, PLAIN, Cell, Choice


def test_steps_are_judged_in_cached_steps():
    taken = {name: [1000.0] for name in steps.AT_LEAST} | {steps.CACHED: [1.0, 2.0, 9.0], steps.UNCACHED: [5.0]}
    found = {target.what.partition(": ")[2]: target for target in steps.judged(taken)}
    assert (found[steps.UNCACHED].found, found[steps.UNCACHED].holds) == (2.5, False)
    assert found[steps.FULL].holds
    (row,) = [line for line in steps.table(taken) if line.startswith(steps.UNCACHED)]
    assert row.split()[-4:] == ["5,000", "5,000", "5,000", "2.5"]


def test_the_floor_is_held_against_the_step_turn_by_turn():
    taken = {
        floor.STEP: [1.2, 4.0, 1.4],
        floor.PRODUCTS: [0.6, 2.0, 0.6],
        floor.ATTENTION: [0.4, 2.0, 0.4],
        floor.FLOOR: [1.0, 4.0, 1.0],
    }
    (target,) = floor.judged(taken)
    assert (target.found, target.holds) == (1.2, True)
    assert len(floor.table(taken)) == 6


def course(steps_s: list[list[float]], views: list[list[str]]) -> Course:
    """Epochs made by hand; views are told apart by their names."""
    return Course(None, steps_s, views)  # type: ignore[arg-type]


def test_epochs_are_compared_one_by_one_and_so_far():
    ours = course([[3.0, 3.4], [1.0, 3.2]], [["a", "b"], ["a", "c"]])
    without = course([[3.0, 3.0], [3.0, 3.0]], [["a", "b"], ["a", "c"]])
    assert ours.by_novelty() == ([3.0, 3.4, 3.2], [1.0])
    assert pieces(ours, without).seen == 1.0
    assert [target.found for target in judged(ours, without)] == pytest.approx([4.2 / 6, 10.6 / 12])
    assert "2 of 2" in table(ours, without)[2]
    assert "1 of 2" in table(ours, without)[3]


def test_a_new_view_never_takes_less_than_a_step_without_a_cache():
    ours = course([[2.9], [1.0]], [["a"], ["a"]])
    without = course([[3.0], [3.0]], [["a"], ["a"]])
    assert pieces(ours, without).new == 3.0


def test_the_peak_of_a_process_is_that_of_its_last_part():
    peaks = {"float32": dict.fromkeys(memory.PARTS, 10**9) | {"evaluated": 1_600_000_000}}
    (target,) = memory.judged(peaks)
    assert (target.found, target.holds) == (1.6, False)
    assert memory.table(peaks)[-1].endswith("1.6")


def test_what_auto_picks_should_be_the_quicker_precision():
    taken = {"narrow": {"float32": [1.0], "bfloat16": [2.0]}, "wide": {"float32": [1.0], "bfloat16": [0.5]}}
    good = precision.judged(taken, {"narrow": "float32", "wide": "bfloat16"}, torch.device("cpu"))
    assert [target.found for target in good] == [0.5, 0.5]
    assert not precision.judged(taken, {"narrow": "bfloat16", "wide": "bfloat16"}, torch.device("cpu"))[0].holds


def outcome(probability: float, auc: float) -> Outcome:
    return Outcome({"ge": [0.5, probability]}, {"ge": auc, "canon": 0.9}, 1.0)


def test_federations_are_held_against_the_one_of_their_cohort_with_a_float32_cache():
    outcomes = {
        (0, "float32"): outcome(0.7, 0.9),
        (0, "no cache"): outcome(0.7, 0.9),
        (0, "float16"): outcome(0.72, 0.903),
        (1, "float32"): outcome(0.2, 0.8),
        (1, "no cache"): outcome(0.2, 0.8),
        (1, "float16"): outcome(0.21, 0.801),
    }
    assert equality.deviation(outcomes[0, "float16"], outcomes[0, "float32"]) == pytest.approx(0.02)
    found = equality.judged([0.1] * 50, [0.1] * 49 + [0.1002], outcomes)
    assert [target.holds for target in found] == [True, False, True, True, False]
    assert [round(target.found, 6) for target in found] == [50, 0.0002, 0, 0.0015, 0.003]
    assert len(equality.table(outcomes)) == 8


def test_waiting_for_data_is_held_against_a_batch_that_needs_nothing_done():
    taken = {("training", waits.FILES): [2.0, 6.0], ("training", waits.THERE): [1.0, 3.0]}
    (on_cpu,) = waits.judged(taken, torch.device("cpu"))
    assert (on_cpu.found, on_cpu.holds) == (2.0, False)
    assert len(waits.table(taken)) == 4
    (on_gpu,) = waits.judged({**taken, ("training", waits.STAY): [1.0, 3.0]}, torch.device("cuda"))
    assert (on_gpu.found, on_gpu.holds) == (1.0, True)


def test_compiling_is_won_back_after_its_start_over_its_gain():
    one = Compiled("base", start_s=21.0, eager_s=1.2, compiled_s=1.0)
    assert one.break_even == pytest.approx(100)
    assert math.isinf(Compiled("base", 21.0, 1.0, 1.1).break_even)
    assert "not worth it" in verdict([one])
    assert "won back" in verdict([one, Compiled("demo's", 1.4, 0.1, 0.05)])
    assert "nothing could be compiled" in verdict([])


def test_every_choice_of_views_has_a_file_and_a_recipe_of_its_own():
    assert len({choice.key for choice in CHOICES}) == len({choice.name for choice in CHOICES}) == len(CHOICES) == 15
    recipe = Choice("narrow", 4, 4).recipe()
    assert (recipe.augmentation, recipe.views, recipe.view_epochs) == ("narrow", 4, 4)


def cell(seed: int, choice: Choice, auc: float) -> Cell:
    return Cell(seed=seed, choice=choice, auc=auc, at_half=0.8, at_validation=0.8, passes=100, seconds=3.0)


def test_choices_of_views_are_held_against_plain_images_cohort_by_cohort():
    one = Choice("cinema", 2)
    plain = [cell(0, PLAIN, 0.90), cell(1, PLAIN, 0.94)]
    lines = views_table.lines([*plain, cell(0, one, 0.92), cell(1, one, 0.95)])
    assert lines[2].split()[:5] == ["plain", "images", "0.920", "0.028", "+0.000"]
    assert lines[3].split("  ")[0] == "cinema, 2 and the plain one"
    assert "+0.015" in lines[3]
