"""A table says the same in Markdown, LaTeX and CSV, and no sign of its text is taken for markup."""

import csv
import io
import re

import pytest

from experiments.comparison.report import latex, tables
from experiments.comparison.report.tables import Adjusted, Column, Spread, Table
from experiments.comparison.statistics import Interval

DIFFERENCE = Interval(value=-0.0123, low=-0.05, high=0.02, sd=0.01)
COLUMNS = (
    Column("key", "key", "text", machine=True),
    Column("method", "method", "text"),
    Column("formula", "formula", "words"),
    Column("accuracy", "mean", group="accuracy"),
    Column("difference", "difference", "signed"),
    Column("p", "p", "p"),
    Column("sent", "sent", "bytes"),
)
ROW = {
    "key": "ours_1",
    "method": "A_g & 5 % ~ #1 $x$ {y} ^2 \\z",
    "formula": "|| dW ||^2 < 1 > 0",
    "accuracy": Spread(0.81249, 0.0213),
    "difference": DIFFERENCE,
    "p": Adjusted(0.001953, 0.0234),
    "sent": 12_300,
}


def made(*rows: dict[str, tables.Value], dependent: bool = False) -> Table:
    return Table(name="a_table", caption="Figures & more", columns=COLUMNS, rows=rows, note="n_1", dependent=dependent)


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (0.8124, "share", "0.812"),
        (0.8124, "signed", "+0.812"),
        (-0.0001, "signed", "0.000"),
        (float("nan"), "share", "-"),
        (None, "p", "-"),
        (Spread(0.5, None), "share", "0.500"),
        (Spread(float("nan"), None), "share", "-"),
        (Spread(20.04, 1.26), "seconds", "20.0 ± 1.3"),
        (DIFFERENCE, "signed", "-0.012 [-0.050, +0.020]"),
        (0.001953, "p", "0.0020"),
        (0.04, "p", "0.040"),
        (0.00001, "p", "<0.0001"),
        (Adjusted(0.001953, 0.0234), "p", "0.0020 (Holm 0.023)"),
        (1234567, "bytes", "1.23 MB"),
        (999, "bytes", "999 B"),
        (16000, "count", "16,000"),
    ],
)
def test_a_value_as_a_person_reads_it(value: tables.Value, kind: tables.Kind, text: str) -> None:
    column = Column("x", "x", kind)
    assert tables.shown(made(), column, {"x": value}) == text


def test_every_p_value_of_folds_is_called_dependent() -> None:
    texts = [tables.markdown(made(ROW, dependent=True)), latex.latex(made(ROW, dependent=True))]
    for text in texts:
        assert "0.0020 (Holm 0.023) DEPENDENT" in text
        assert text.count("DEPENDENT") == 1
    assert "DEPENDENT" not in tables.markdown(made(ROW))
    assert "DEPENDENT" not in tables.markdown(made({"method": "a"}, dependent=True))


def test_latex_has_no_bare_sign_and_as_many_cells_as_columns() -> None:
    text = latex.latex(made(ROW, {"method": "empty"}))
    lines = text.splitlines()
    rows = [line for line in lines if line.endswith(r"\\")]
    assert rows.pop(0) == r"& & \multicolumn{1}{c}{accuracy} & & & \\"
    assert len(rows) == 3
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == len(COLUMNS) - 2
    body = "\n".join(rows)
    assert not re.search(r"(?<!\\)[%#_]", body)
    assert not re.search(r"[~^<>|]", re.sub(r"\\text\w+\{\}", "", body))
    assert r"A\_g \& 5 \% \textasciitilde{} \#1 \$x\$ \{y\} \textasciicircum{}2 \textbackslash{}z" in body
    assert r"$-$0.012 [$-$0.050, +0.020]" in body
    assert r"0.812 $\pm$ 0.021" in body
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")
    assert r"\label{tab:comparison-a-table}" in text
    assert r"\caption{Figures \& more. n\_1}" in text


def test_markdown_has_one_cell_for_each_column() -> None:
    lines = tables.markdown(made(ROW)).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 3
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {len(COLUMNS)}
    assert "accuracy: mean" in table[0]
    assert r"\|\| dW \|\|^2 &lt; 1 > 0" in table[2]


def test_csv_has_all_digits_and_a_column_for_each_part() -> None:
    rows = list(csv.DictReader(io.StringIO(tables.comma_separated(made(ROW, {"method": "empty"})))))
    assert list(rows[0]) == [
        *("key", "method", "formula", "accuracy", "accuracy_sd"),
        *("difference", "difference_low", "difference_high", "p", "p_holm", "sent"),
    ]
    assert float(rows[0]["accuracy"]) == 0.81249
    assert float(rows[0]["difference_high"]) == 0.02
    assert float(rows[0]["p_holm"]) == 0.0234
    assert rows[0]["method"] == ROW["method"]
    assert set(rows[1].values()) == {"", "empty"}


def test_csv_leaves_empty_what_is_not_a_number() -> None:
    text = tables.comma_separated(made({"method": "a", "accuracy": Spread(float("nan"), None)}))
    assert "nan" not in text
