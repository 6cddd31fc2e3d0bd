"""Metrics for Prometheus: what this process counted of its calls, and the federation's facts as gauges, read at each scrape.

Names and units as https://prometheus.io/docs/practices/naming/ has them. Labels have few values: enrolled sites, methods, statuses.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from aggregator.facts.calls import BOUNDS_S, Calls
from aggregator.facts.current import CurrentFacts
from aggregator.facts.facts import Facts
from aggregator.health import Health
from shared import certificates
from shared.errors import InputError, MedDualLoRAError
from shared.tls import TlsFiles

PREFIX = "med_duallora_"
PHASES = ("running", "paused", "finished")


class Metrics(Collector):
    """Everything of one process, in a registry of its own."""

    def __init__(self, calls: Calls, current: CurrentFacts, health: Health, tls: TlsFiles | None) -> None:
        self._calls, self._current, self._health, self._tls = calls, current, health, tls
        self._facts: Facts | None = None
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    async def scrape(self) -> tuple[bytes, str]:
        """Return the metrics and their content type. While the store is away there are those of the process alone."""
        try:
            self._facts = await self._current.get()
        except MedDualLoRAError:
            self._facts = None
        await self._health.ask()
        return await asyncio.to_thread(generate_latest, self._registry), CONTENT_TYPE_LATEST

    def describe(self) -> Sequence[Metric]:
        """Nothing: names are known when they are collected."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        yield _gauge(
            "ready",
            "Whether this process can take calls: the store answers and it is not on its way out.",
            not self._health.unready,
        )
        yield _gauge("store_up", "Whether the store answers.", self._facts is not None and not self._health.store_words)
        yield from self._ends()
        yield from _calls(self._calls)
        if self._facts is not None:
            yield from _federation(self._facts)
            yield from _round(self._facts)
            yield from _sites(self._facts)

    def _ends(self) -> Iterator[Metric]:
        if self._tls is None:
            return
        family = _labelled("certificate_expiry_timestamp_seconds", "When a certificate ends, by holder.", "holder")
        try:
            for holder, path in (("aggregator", self._tls.certificate), ("ca", self._tls.ca)):
                family.add_metric([holder], certificates.holder_in(path).expires_at)
        except InputError:
            return  # it is being replaced
        yield family


def _calls(calls: Calls) -> Iterator[Metric]:
    handled = CounterMetricFamily(
        f"{PREFIX}rpc_handled", "Calls that are over, by status.", labels=["rpc", "site", "code"]
    )
    retried = CounterMetricFamily(
        f"{PREFIX}rpc_retried", "Calls of them that were another try.", labels=["rpc", "site"]
    )
    sizes = CounterMetricFamily(
        f"{PREFIX}rpc_message_bytes",
        "Bytes of messages; up is towards the aggregator.",
        labels=["rpc", "site", "direction"],
    )
    payload = CounterMetricFamily(
        f"{PREFIX}rpc_payload_bytes", "Bytes of tensors in those messages.", labels=["rpc", "site", "direction"]
    )
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * 5)
    for (caller, rpc, code), tally in sorted(calls.by_kind.copy().items()):
        handled.add_metric([rpc, caller, code], tally.calls)
        figures = (tally.retries, tally.bytes_up, tally.bytes_down, tally.payload_up, tally.payload_down)
        sums[rpc, caller] = [a + b for a, b in zip(sums[rpc, caller], figures, strict=True)]
    for key, (retries, up, down, payload_up, payload_down) in sums.items():
        retried.add_metric(key, retries)
        for direction, all_, tensors in (("up", up, payload_up), ("down", down, payload_down)):
            sizes.add_metric([*key, direction], all_)
            payload.add_metric([*key, direction], tensors)
    seconds = HistogramMetricFamily(
        f"{PREFIX}rpc_duration_seconds", "How long calls took; AwaitRound is held on purpose.", labels=["rpc"]
    )
    for rpc, durations in sorted(calls.durations.copy().items()):
        counts = list(accumulate(durations.counts))
        bounds = [*map(str, BOUNDS_S), "+Inf"]
        seconds.add_metric([rpc], buckets=list(zip(bounds, counts, strict=True)), sum_value=durations.sum_s)
    yield from (handled, retried, sizes, payload, seconds)


def _federation(facts: Facts) -> Iterator[Metric]:
    info = _labelled("federation_info", "What is served.", "federation", "recipe", "contract_sha256")
    info.add_metric([facts["federation"], facts["recipe"], facts["contract_sha256"]], 1)
    yield info
    phase = _labelled("federation_phase", "1 for the phase the federation is in.", "phase")
    for name in PHASES:
        phase.add_metric([name], facts["phase"] == name)
    yield phase
    yield CounterMetricFamily(f"{PREFIX}rounds_closed", "Rounds that are closed.", value=facts["rounds_closed"])
    yield _gauge("rounds_planned", "Rounds after which the federation is finished.", facts["rounds"])
    yield _gauge("adapter_version", "The current version of the global adapter.", facts["version"])


def _round(facts: Facts) -> Iterator[Metric]:
    yield _gauge("round_number", "The open round, or the last one.", facts["round"])
    yield _gauge("round_opened_timestamp_seconds", "When it was opened.", facts["round_opened_at"])
    if facts["deadline_at"] is not None:
        yield _gauge("round_deadline_timestamp_seconds", "When it closes if its quorum is met.", facts["deadline_at"])
    yield _gauge("round_overdue", "Whether its deadline has passed without quorum.", facts["overdue"])
    yield _gauge("round_updates", "Updates that count so far.", facts["accepted"])
    yield _gauge("round_updates_quarantined", "Updates that are set aside for their size.", len(facts["quarantined"]))
    yield _gauge("round_quorum", "Updates it needs.", facts["quorum"])
    yield _gauge("round_invited", "Sites that are asked.", facts["invited"])
    errors = [one["aggregation_error"] for one in facts["model"]["rounds"] if one["aggregation_error"] is not None]
    if errors:
        yield _gauge("aggregation_error_ratio", "What averaging factors cost in the last closed round.", errors[-1])


def _sites(facts: Facts) -> Iterator[Metric]:
    seen = _labelled("site_last_contact_timestamp_seconds", "When a site was heard from last.", "site")
    progress = _labelled("site_progress_ratio", "Share of the round's training that a site has done.", "site")
    standing = _labelled("site_standing", "1 for where a site stands in the round.", "site", "standing")
    ends = _labelled(
        "site_certificate_expiry_timestamp_seconds", "When the certificate ends that a site showed last.", "site"
    )
    revoked = _labelled(
        "site_certificate_revoked", "Whether the certificate that a site showed last is revoked.", "site"
    )
    for site in facts["sites"]:
        name = [site["site"]]
        revoked.add_metric(name, site["certificate_revoked"])
        standing.add_metric([*name, site["standing"].replace(" ", "_")], 1)
        progress.add_metric(name, 1.0 if site["accepted"] else site["progress"])
        if site["last_seen"]:
            seen.add_metric(name, site["last_seen"])
        if site["certificate_expires_at"]:
            ends.add_metric(name, site["certificate_expires_at"])
    updates = CounterMetricFamily(
        f"{PREFIX}site_update_bytes", "Bytes of a site's updates that count.", labels=["site"]
    )
    for site in facts["communication"]["sites"]:
        updates.add_metric([site["site"]], site["updates_bytes"])
    figures = _labelled("site_figure", "The last figure that a site reported of the model.", "site", "figure")
    for curve in facts["model"]["curves"]:
        for name, points in curve["sites"].items():
            figures.add_metric([name, curve["metric"]], points[-1][1])
    compared = _labelled(
        "site_arm_figure", "What a site found of a model of its comparison at the end.", "site", "arm", "figure"
    )
    for one in facts["model"]["arms"]:
        for arm, told in one["figures"].items():
            for figure, value in told.items():
                compared.add_metric([one["site"], arm, figure], value)
    yield from (seen, progress, standing, ends, revoked, updates, figures, compared)


def _gauge(name: str, help_: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}{name}", help_, value=float(value))


def _labelled(name: str, help_: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}{name}", help_, labels=labels)
