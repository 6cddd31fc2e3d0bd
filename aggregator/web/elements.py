"""Small pieces of the status page: a word with a mark, and times, which page.js ticks and localises by their data attributes."""

from datetime import UTC, datetime

from aggregator.facts.sites import span
from aggregator.web.markup import Markup, tag


def none(text: str) -> Markup:
    """Return what stands where there is nothing to show."""
    return tag("p", text, class_="quiet")


def badge(text: str, kind: str) -> Markup:
    """Return a word with a mark before it; the word says all, the colour only repeats it."""
    return tag("span", text, class_=f"badge {kind}".strip())


def ago(at: float, now: float) -> Markup:
    """Return how long ago something was; page.js counts on."""
    return tag("time", f"{span(now - at)} ago", datetime=_iso(at), data_since=at)


def left(at: float, now: float) -> Markup:
    """Return how long it is until something; page.js counts down."""
    return tag("time", span(at - now) if at > now else "any moment", datetime=_iso(at), data_until=at)


def clock(at: float) -> Markup:
    """Return a time of day; page.js says it in the reader's own zone."""
    return tag("time", f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC", datetime=_iso(at), data_at=at)


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
