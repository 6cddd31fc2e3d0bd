"""Reading a page back: whether its tags close, what it says, and what it would load."""

from html.parser import HTMLParser

VOID = {"meta", "br", "img", "link", "input", "hr"}
ACTIVE = {"script", "link", "img", "iframe", "object"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed in the wrong place; collects text and what would be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()

    @property
    def text(self) -> str:
        """Return all that is said, on one line."""
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [
            f"{name}={value}" for name, value in attrs if name in ("src", "href", "data", "srcset", "action")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parsed(page: str) -> Balanced:
    """Return a page that was read to its end."""
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def check_stands_alone(page: str) -> Balanced:
    """Return a page that has no script and loads nothing."""
    found = parsed(page)
    assert found.loads == []
    assert not found.tags & ACTIVE
    assert "@import" not in page
    assert "url(" not in page
    return found
