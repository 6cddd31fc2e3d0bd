"""Every field in the source is one that logs may have, and no other is written."""

import ast
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from shared import log_fields, logs
from shared.log_fields import FIELDS, WITHHELD

ROOT = Path(__file__).parents[3]
LEVELS = {"debug", "info", "warning", "error", "exception"}
NO_FIELDS = {"exc_info", "terminal"}
"""Keywords that say how an event is written."""


def fields_in_source() -> Iterator[tuple[str, str]]:
    """Yield every keyword of a call of `log`, or of what is bound to all events, and where it is."""
    for package in ("shared", "aggregator", "site_agent"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and _logs(node.func):
                    yield from ((key.arg, f"{path.name}:{node.lineno}") for key in node.keywords if key.arg)


def _logs(called: ast.expr) -> bool:
    if not isinstance(called, ast.Attribute) or not isinstance(called.value, ast.Name | ast.Attribute):
        return False
    owner = called.value.id if isinstance(called.value, ast.Name) else called.value.attr
    if (owner, called.attr) == ("logs", "configure") or called.attr == "bind_contextvars":
        return True
    return owner == "log" and called.attr in LEVELS


def test_every_field_in_the_source_is_listed() -> None:
    found = dict(fields_in_source())
    assert len(found) > 50
    assert {name: place for name, place in found.items() if name not in FIELDS | NO_FIELDS} == {}


def test_a_field_that_is_not_listed_is_withheld(capsys: pytest.CaptureFixture[str]) -> None:
    del capsys
    out = io.StringIO()
    logs.configure(terminal=out, side="site")
    try:
        structlog.get_logger().info("case_read", patient="CANARY-1", round=3)
    finally:
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()
    line = json.loads(out.getvalue())
    assert line["patient"] == WITHHELD
    assert (line["event"], line["round"], line["side"]) == ("case_read", 3, "site")
    assert "CANARY" not in out.getvalue()


def test_metrics_that_may_leave_may_be_logged() -> None:
    assert {"auc", "specificity", "train_loss"} <= FIELDS
    assert log_fields.only_allowed(None, "info", {"auc": 0.5, "margin": 1.0}) == {"auc": 0.5, "margin": WITHHELD}
