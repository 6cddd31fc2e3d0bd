"""Bytes to target, from courses made by hand."""

import pytest

from experiments.communication import target
from experiments.communication.target import Course


def course(seed: int, recipe: str, codec: str, auc: list[float], up: int, down: int) -> Course:
    """Four rounds that cost the same; as a whole, versions take 100 bytes a round."""
    return Course(seed, recipe, codec, auc, [up] * 4, [down] * 4, [100] * 4, 1.0)


RISING = [0.5, 0.8, 0.89, 0.9]
"""98 % of 0.9 is 0.882: reached in round 3."""
WANTED = [("fedavg-lora", "f32"), ("ffa-lora", "int4")]


@pytest.fixture(autouse=True)
def two_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "FEWEST_COHORTS", 2)


def test_too_few_cohorts_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "FEWEST_COHORTS", 3)
    same = [course(seed, *one, RISING, 10, 10) for seed in (0, 1) for one in WANTED]
    assert not any(row["is_good"] for row in rows(*same))


def rows(*courses: Course) -> list[dict[str, object]]:
    return target.judged(courses, WANTED)[2]["rows"]


def test_bytes_count_both_ways_until_the_first_round_that_is_good_enough() -> None:
    one = course(0, "fedavg-lora", "f32", RISING, 100, 60)
    assert one.bytes_to(0.882, plain=False) == 3 * 160
    assert one.bytes_to(0.882, plain=True) == 3 * 200
    assert one.bytes_to(0.95, plain=False) is None


def test_a_setting_is_held_against_the_plain_one_cohort_by_cohort() -> None:
    plain, as_sent, cheap = rows(
        *(course(seed, "fedavg-lora", "f32", RISING, 100, 60) for seed in (0, 1)),
        course(0, "ffa-lora", "int4", [0.5, 0.7, 0.8, 0.91], 10, 10),
        course(1, "ffa-lora", "int4", [0.5, 0.9, 0.9, 0.9], 10, 10),
    )
    assert (plain["fewer"], plain["a_round"]) == (1.0, 200.0)
    assert (as_sent["fewer"], as_sent["a_round"]) == (600 / 480, 160.0)
    assert cheap["to_target"] == [80, 40]
    assert cheap["fewer"] == pytest.approx((600 / 80 + 600 / 40) / 2)
    assert cheap["gap"] == pytest.approx(0.005)
    assert cheap["is_good"]


def test_a_setting_that_never_gets_there_or_loses_is_not_good_however_few_bytes_it_takes() -> None:
    first = [course(seed, "fedavg-lora", "f32", RISING, 100, 60) for seed in (0, 1)]
    never = rows(*first, *(course(seed, "ffa-lora", "int4", [0.5] * 4, 1, 1) for seed in (0, 1)))[2]
    assert (never["reached"], never["is_good"]) == (0, False)
    worse = [0.5, 0.885, 0.885, 0.885]
    loses = rows(
        *first,
        course(0, "ffa-lora", "int4", worse, 1, 1),
        course(1, "ffa-lora", "int4", [*worse[:3], 0.8851], 1, 1),
    )[2]
    assert loses["reached"] == 2
    assert not loses["is_good"]
    found = target.judged([*first, *(course(s, "ffa-lora", "int4", worse, 1, 1) for s in (0, 1))], WANTED)[1]
    assert [one.found for one in found] == [600 / 480]


def test_the_interval_is_students() -> None:
    """Mean 0.02, s = 0.01, n = 3, t(0.975, 2) = 4.3027: 0.02 +- 0.02484."""
    low, high = target._interval([0.01, 0.02, 0.03])
    assert (low, high) == (pytest.approx(0.02 - 0.024841, abs=1e-5), pytest.approx(0.02 + 0.024841, abs=1e-5))
