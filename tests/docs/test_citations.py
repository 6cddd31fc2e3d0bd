"""Lines that pages cite hold what the pages say, and the check can fail."""

import pytest

from tests.docs import citations, pages
from tests.docs.pages import ROOT

CITED = [
    one for page in pages.pages() for one in citations.of_page(str(page), (ROOT / page).read_text(encoding="utf-8"))
]
FEWEST = 15
"""Of the page of limits: fewer, and its form is not understood any more."""


@pytest.mark.parametrize("cited", CITED, ids=lambda one: f"{one.file}:{one.line}")
def test_the_line_holds_the_text(cited: citations.Citation) -> None:
    assert cited.line in cited.lines, (
        f"{cited.page} cites {cited.file}:{cited.line}; give: python -m tests.docs.citations"
    )


def test_the_page_of_limits_cites() -> None:
    assert len([one for one in CITED if one.page == "docs/limits.md"]) >= FEWEST


def test_a_line_that_moved_is_found_and_put_right() -> None:
    text = "[LICENSE:7](../LICENSE#L7) `Apache License, Version 2.0`"
    (wrong,) = citations.of_page("docs/x.md", text)
    assert wrong.lines
    assert wrong.line not in wrong.lines
    assert (
        citations.mended("docs/x.md", text)
        == f"[LICENSE:{wrong.lines[0]}](../LICENSE#L{wrong.lines[0]}) `Apache License, Version 2.0`"
    )
    with pytest.raises(LookupError, match="stands on 0 lines"):
        citations.mended("docs/x.md", text.replace("Apache License", "no such text"))
