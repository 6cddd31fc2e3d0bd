"""The accounts as one HTML page: nothing to load, no scripts, readable on a dark screen and a narrow one."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from aggregator.accounts.tables import DIRECTIONS, probed, size
from shared.page import parts

Facts = Mapping[str, Any]

STYLE = Path(__file__).with_name("page.css")
MAX_LISTED = 50
NAMES = {
    "payload_bytes": "tensor bytes",
    "goodput_bytes": "goodput",
    "repeated_bytes": "repeated",
    "messages_bytes": "messages",
    "overhead_bytes": "added",
    "wire_bytes": "on the wire",
    "times_less_than_full": "times less than full",
}


def page(report: Facts) -> str:
    """Return the page of what `report.report` returned."""
    sections = (_head, _purposes, _comparison, _full_model, _wire, _reconciliation, _malformed, _rows)
    return parts.document("Communication of a federation", [section(report) for section in sections], STYLE)


def _head(report: Facts) -> str:
    total, wire = report["total"], report["wire_model"]
    both = total["bytes_up"] + total["bytes_down"]
    useful = total["goodput_bytes_up"] + total["goodput_bytes_down"]
    tiles = [
        (size(total["bytes_up"]), "of messages up, towards the aggregator"),
        (size(total["bytes_down"]), "of messages down"),
        (f"{useful / both:.1%}" if both else "-", "goodput: bytes that were sent once and arrived"),
        (size(wire["wire_up"] + wire["wire_down"]), "on the wire both ways, modelled"),
        (f"{total['calls']:,}", f"calls, {report['retried_calls']:,} of them retries"),
    ]
    about = "Measured: exact sizes of serialised messages, from one log line per call and side. Up is towards the aggregator."
    return f"<h1>Communication of a federation</h1>\n{parts.quiet(about)}\n{parts.tiles(tiles)}"


def _purposes(report: Facts) -> str:
    rows = [*report["by_purpose"], {"purpose": "all", **report["total"]}]
    about = (
        "Goodput is what was sent once and was needed; repeated is what failed calls and second sendings took. They add up to the "
        "bytes."
    )
    beside = parts.quiet(probed(report["probes"])) if report["probes"] else ""
    return f"<h2>By purpose</h2>\n{parts.quiet(about)}\n{_table(_by_direction(rows), totals=len(DIRECTIONS))}{beside}"


def _rows(report: Facts) -> str:
    rows = report["rows"]
    if not rows:
        return ""
    first = next(iter(rows[0]))
    if first == "purpose":
        return ""  # the first table has them
    if "direction" in rows[0]:
        return f"<h2>By site, round, direction and purpose</h2>\n{_table(rows)}"
    return f"<h2>By {first}</h2>\n{_table(_by_direction(rows))}"


def _by_direction(rows: Sequence[Facts]) -> list[Facts]:
    """Return each row of both directions as two rows, which are narrow enough for a page."""
    result: list[Facts] = []
    for row in rows:
        for direction in DIRECTIONS:
            own = {
                name.removesuffix(f"_{direction}"): value
                for name, value in row.items()
                if name.endswith(f"_{direction}")
            }
            key, value = next(iter(row.items()))
            result.append({key: value, "direction": direction, "calls": row["calls"], **own})
    return result


def _comparison(report: Facts) -> str:
    if not report["comparison"]:
        return ""
    about = (
        "Bytes for one site and round. Computed rows follow from tensor shapes alone, as float32, for the same base model; nothing "
        "of them was run. Measured rows are this run's."
    )
    return f"<h2>Beside other methods</h2>\n{parts.quiet(about)}\n{_table(report['comparison'])}"


def _full_model(report: Facts) -> str:
    full = report["full_model"]
    if not full:
        return ""
    return (
        f"<p>Full fine-tuning with a model of {full['full_model_bytes']:,} bytes would send "
        f"{full['full_model_bytes_each_way']:,} bytes each way for {full['updates']:,} updates "
        f'(<span class="computed">computed</span>): {full["reduction_up"] or 0:,.0f} times more up, '
        f"{full['reduction_down'] or 0:,.0f} times more down.</p>"
    )


def _wire(report: Facts) -> str:
    wire = report["wire_model"]
    rows = [
        {"direction": way, **{f"{what}_bytes": wire[f"{what}_{way}"] for what in ("messages", "overhead", "wire")}}
        for way in DIRECTIONS
    ]
    counted = "" if wire["connections_counted"] else "at least "
    return (
        "<h2>On the wire</h2>\n"
        f"<p>Modelled {'with' if wire['tls'] else 'without'} TLS{'' if wire['tls_known'] else ' (assumed: no log says)'} and "
        f"{counted}{wire['connections']:,} connections. Bound: {escape(wire['bound'])}.</p>\n"
        + _table(rows)
        + parts.quiet(f"Not in it: {wire['unaccounted']}.")
    )


def _reconciliation(report: Facts) -> str:
    both = report["reconciliation"]
    if both is None:
        return (
            "<h2>Both sides</h2>\n<p>Only one side's log was given: nothing to compare. Give the logs of the aggregator and of the "
            "agents.</p>"
        )
    lists = (
        ("calls whose bytes differ", both["differing"]),
        ("calls that ended badly on a side, not compared", both["ended_badly"]),
        ("calls in one side's log only", both["one_sided"]),
        ("sites without an agent's log", both["sites_without_agent_log"]),
    )
    return (
        f"<h2>Both sides</h2>\n<p>{both['agreed']:,} of {both['compared']:,} calls that ended well agree to the byte.</p>\n"
        + "\n".join(_list(title, lines) for title, lines in lists if lines)
    )


def _malformed(report: Facts) -> str:
    lines = report["malformed_lines"]
    return f"<h2>Lines passed over</h2>\n{_list('malformed lines', lines)}" if lines else ""


def _list(title: str, lines: Sequence[str]) -> str:
    items = "".join(f"<li><code>{escape(line)}</code></li>" for line in lines[:MAX_LISTED])
    more = parts.quiet(f"and {len(lines) - MAX_LISTED:,} more") if len(lines) > MAX_LISTED else ""
    return parts.folded(f"{title}: {len(lines):,}", f"<ul>{items}</ul>{more}")


def _table(rows: Sequence[Facts], totals: int = 0) -> str:
    """Return a table; the last `totals` rows are sums."""
    columns = list(rows[0])
    words = [at for at, name in enumerate(columns) if any(isinstance(row[name], str) for row in rows)]
    shown = [
        parts.row([_cell(name, row[name]) for name in columns], "total" if left <= totals else "", words)
        for left, row in zip(range(len(rows), 0, -1), rows, strict=True)
    ]
    return parts.table([_title(name) for name in columns], shown, style="lined", text=words)


def _title(name: str) -> str:
    for direction in DIRECTIONS:
        stem = name.removesuffix(f"_{direction}")
        if stem != name:
            return f"{_title(stem)} {direction}"
    return NAMES.get(name, name.replace("_", " "))


def _cell(name: str, value: Any) -> str | parts.Marked:
    if value is None:
        return ""
    if name == "source":
        return parts.Marked(value, f"tag {value}")
    if isinstance(value, float):
        return f"{value:,.1f}"
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return parts.Marked(text, "repeated") if name.startswith("repeated") and value else text
