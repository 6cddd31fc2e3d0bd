"""Lines of source that pages cite, with the text that stands there: `python -m tests.docs.citations` puts the numbers right."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from tests.docs.pages import ROOT, pages

CITATION = re.compile(
    r"\[(?P<file>[\w./-]+):(?P<line>\d+)\]\((?P<up>(?:\.\./)*)(?P=file)#L(?P=line)\)\s+`(?P<text>[^`]+)`"
)


@dataclass(frozen=True)
class Citation:
    """A page says that a line of a file holds a text."""

    page: str
    file: str
    line: int
    text: str

    @property
    def lines(self) -> list[int]:
        """Numbers of the lines that hold the text now."""
        path = ROOT / self.file
        found = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [number for number, line in enumerate(found, 1) if self.text in line]


def of_page(page: str, text: str) -> Iterator[Citation]:
    """Yield what a page's text cites."""
    for match in CITATION.finditer(text):
        yield Citation(page, match["file"], int(match["line"]), match["text"])


def mended(page: str, text: str) -> str:
    """Return a page's text with every number as it is now. Raises LookupError where the text is on no line, or on several."""

    def now(match: re.Match[str]) -> str:
        (cited,) = of_page(page, match[0])
        if len(cited.lines) != 1:
            raise LookupError(
                f"{page}: '{cited.text}' stands on {len(cited.lines)} lines of {cited.file}, expected one"
            )
        return (
            match[0]
            .replace(f":{cited.line}]", f":{cited.lines[0]}]")
            .replace(f"#L{cited.line})", f"#L{cited.lines[0]})")
        )

    return CITATION.sub(now, text)


if __name__ == "__main__":
    try:
        for one in pages():
            before = (ROOT / one).read_text(encoding="utf-8")
            if (after := mended(str(one), before)) != before:
                (ROOT / one).write_text(after, encoding="utf-8")
                print(f"wrote {one}")
    except LookupError as error:
        sys.exit(str(error))
