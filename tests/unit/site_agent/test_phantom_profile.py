"""Counts, shares and the list of cases of a synthetic cohort."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from shared.errors import InputError
from site_agent.data.phantom import profile
from site_agent.data.phantom.profile import PhantomConfig


def test_the_default_cohort_has_the_real_vendor_profile() -> None:
    """273/125/77/50 cases with 20/52/27/28 % healthy (M&Ms and ACDC together), 100 test cases with 50 healthy."""
    config = PhantomConfig()
    train = {
        vendor: Counter(case.diagnosis for case in profile.plan(config, "train", vendor)) for vendor in profile.VENDORS
    }
    assert [sum(count.values()) for count in train.values()] == [273, 125, 77, 50]
    assert [count["NOR"] for count in train.values()] == [55, 65, 21, 14]
    # 273 - 55 = 218 diseased Siemens cases at 27/30/25/18 % are 58.86, 65.4, 54.5 and 39.24
    assert [train["siemens"][disease] for disease in profile.DISEASES] == [59, 65, 55, 39]
    for vendor in profile.VENDORS:
        test = [case.diagnosis for case in profile.plan(config, "test", vendor)]
        assert (len(test), test.count("NOR")) == (100, 50)


def test_apportioning_gives_the_largest_remainders_one_more() -> None:
    assert profile.apportion(7, (0.5, 0.3, 0.2)) == [4, 2, 1]  # 3.5, 2.1, 1.4
    assert profile.apportion(10, (0.33, 0.33, 0.34)) == [3, 3, 4]
    assert profile.apportion(0, (0.3, 0.7)) == [0, 0]


def test_without_label_and_mix_shift_all_vendors_share_one_profile() -> None:
    config = PhantomConfig(label_shift=0.0, mix_shift=0.0)
    pooled = (0.20 * 273 + 0.52 * 125 + 0.27 * 77 + 0.28 * 50) / 525
    for vendor in profile.VENDORS:
        assert profile.healthy_share(config, vendor) == pytest.approx(pooled)
        assert profile.disease_mix(config, vendor) == pytest.approx((0.30, 0.33, 0.20, 0.17))


def test_scale_changes_the_training_part_only_and_keeps_both_labels() -> None:
    config = PhantomConfig(scale=0.01)
    for vendor in profile.VENDORS:
        labels = [case.diagnosis == "NOR" for case in profile.plan(config, "train", vendor)]
        assert len(labels) >= 4
        assert any(labels)
        assert not all(labels)
        assert len(profile.plan(config, "test", vendor)) == 100


def test_the_label_convention_calls_mild_disease_by_two_names() -> None:
    config = PhantomConfig(label_convention=True)
    siemens = profile.plan(config, "train", "siemens")
    mild = [case for case in siemens if case.severity < config.severity]
    assert len(mild) == (273 - 55) // 2
    assert all(case.diagnosis == case.condition != "NOR" for case in mild)
    philips = profile.plan(config, "train", "philips")
    hidden = [case for case in philips if case.condition != case.diagnosis]
    assert len(hidden) == 65 // 2
    assert all(case.diagnosis == "NOR" and case.severity == pytest.approx(0.4 * 1.6) for case in hidden)


def test_the_plan_depends_on_the_seed_and_not_on_the_look_of_the_images() -> None:
    config = PhantomConfig()
    order = [case.diagnosis for case in profile.plan(config, "train", "ge")]
    assert order == [case.diagnosis for case in profile.plan(replace(config, style=0.0, noise=2.0), "train", "ge")]
    assert order != [case.diagnosis for case in profile.plan(replace(config, seed=1), "train", "ge")]
    assert order != sorted(order)


def test_every_case_has_a_generator_of_its_own() -> None:
    first = {
        profile.generator(seed, split, vendor, index).integers(2**62)
        for seed in (0, 1)
        for split in ("train", "test")
        for vendor in profile.VENDORS
        for index in range(1, 6)
    }
    assert len(first) == 2 * 2 * 4 * 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"style": 1.5}, "style must lie between 0 and 1, got 1.5"),
        ({"severity": float("nan")}, "severity must lie between 0 and 10, got nan"),
        ({"shape": (64, 0, 8)}, r"shape must be three sizes between 1 and 1024, got \(64, 0, 8\)"),
        ({"spacing": (2.0, 2.0, -10.0)}, "spacing must be three lengths"),
        ({"n_frames": 1}, "n_frames must lie between 2 and 99, got 1"),
        ({"scale": 0.0}, "scale must lie above 0"),
        ({"test_cases": -2}, "test_cases must lie between 0 and 10000, got -2"),
        ({"vendors": ("siemens", "acme")}, r"vendors must be some of siemens, philips, ge, canon.*acme"),
        ({"vendors": ()}, "vendors must be some of"),
        ({"layout": "dicom"}, "layout must be one of acdc, mnms, both, got 'dicom'"),
        ({"layout": "acdc"}, "ACDC holds Siemens scans only: use --vendors siemens"),
    ],
)
def test_a_wrong_knob_is_refused_with_its_name_and_value(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PhantomConfig(**change)
