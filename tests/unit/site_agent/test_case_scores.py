"""The table of scores is read as it was written, and anything else is refused by name."""

import numpy as np
import pytest

from shared.errors import InputError
from site_agent.training import case_scores, metrics
from site_agent.training.case_scores import CaseScores

MADE = CaseScores(
    keys=("mnms/A", 'acdc/B, "x"', "mnms/C"),
    sets=("validation", "validation", "test"),
    labels=np.array([1, 0, 1]),
    margins={"alone": np.array([0.1, -1e-17, 3.0]), "dual": np.array([1 / 3, -2.0, 1e300])},
)


def test_the_table_keeps_every_bit() -> None:
    again = CaseScores.from_csv(MADE.to_csv())
    assert (again.keys, again.sets) == (MADE.keys, MADE.sets)
    np.testing.assert_array_equal(again.labels, MADE.labels)
    assert list(again.margins) == ["alone", "dual"]
    for arm, values in MADE.margins.items():
        np.testing.assert_array_equal(again.margins[arm], values)


def test_an_empty_table_is_a_table() -> None:
    assert len(CaseScores.from_csv(CaseScores().to_csv())) == 0


def test_sets_are_told_apart_and_the_threshold_is_the_validation_cases() -> None:
    validation = MADE.of("validation")
    assert validation.keys == MADE.keys[:2]
    assert MADE.of("test").margins["dual"].tolist() == [1e300]
    expected = metrics.shrunk_threshold(MADE.margins["dual"][:2], MADE.labels[:2])
    assert case_scores.threshold(validation, "dual") == expected
    assert case_scores.threshold(CaseScores(), "dual") is None


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not enough values"),
        (b"patient,set,label\n", "its columns are patient"),
        (b"case,set,label,margin_dual\na,train,1,0.5\n", "'train' is no set"),
        (b"case,set,label,margin_dual\na,test,2,0.5\n", "not in tuple"),
        (b"case,set,label,margin_dual\na,test,1,many\n", "could not convert"),
        (b"case,set,label,margin_dual\na,test\n", "cannot reshape"),
        (b"\xff\xfe", "codec can't decode"),
    ],
)
def test_anything_else_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(InputError, match=why):
        CaseScores.from_csv(data)
