"""Everything that `aggregator comm-cost` says, as JSON values."""

from dataclasses import asdict
from typing import Any

from aggregator.accounts import comparison, goodput, logs, overhead, tables
from aggregator.accounts.comparison import Baseline
from aggregator.accounts.goodput import PROBE
from aggregator.accounts.logs import Log
from aggregator.accounts.reconciliation import reconcile


def report(
    log: Log,
    *,
    by: str | None = None,
    full_model_bytes: int | None = None,
    baseline: Baseline | None = None,
    tls: bool | None = None,
) -> dict[str, Any]:
    """Return the tables of a log. `tls` None: as the log says; as if with TLS where it does not say.

    `a_round`: medians over the rounds of a site, or of all of them (`tables.a_round`).
    Probes stand apart, under `probes` and in `rows` that tell purposes or methods apart; they are in nothing else.
    """
    everything = goodput.accounts(logs.distinct(log.calls))
    accounts = [one for one in everything if one.call.purpose != PROBE]
    probes = [one for one in everything if one.call.purpose == PROBE]
    calls = [one.call for one in accounts]
    logged = [call for call in log.calls if call.purpose != PROBE]
    reconciliation = reconcile(logged)
    said = log.tls if tls is None else tls
    return {
        "rows": tables.table(accounts if by in ("site", "round") else everything, by),
        "by_site": [
            row | {"a_round": tables.a_round([one for one in accounts if one.call.site == row["site"]])}
            for row in tables.table(accounts, "site")
        ],
        "by_method": tables.table(accounts, "method"),
        "by_purpose": tables.table(accounts, "purpose"),
        "a_round": tables.a_round(accounts),
        "total": tables.totals(accounts),
        "probes": tables.totals(probes) if probes else None,
        "retried_calls": sum(call.attempt > 0 for call in calls),
        "reconciliation": asdict(reconciliation) if reconciliation else None,
        "wire_model": overhead.model(logged, calls, said is not False) | {"tls_known": said is not None},
        "full_model": comparison.against_full_model(calls, full_model_bytes) if full_model_bytes else None,
        "comparison": comparison.table(accounts, baseline) if baseline else None,
        "malformed_lines": log.malformed,
    }
