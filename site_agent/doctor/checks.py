"""The checks of `site-agent doctor` in their order, and how they are run: each in its own time, and only on firm ground."""

import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from shared.errors import MedDualLoRAError
from site_agent.doctor import answer, certificates, contract, data, gpu, machine, network, proxy, rights, tls, uplink
from site_agent.doctor.finding import Examined, Finding, failed, skipped

TRACEBACK = "MED_DUALLORA_TRACEBACK"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is looked at. `needs`: checks that must not have failed. `asks`: it talks to the aggregator."""

    name: str
    title: str
    look: Callable[[Examined], Finding]
    limit_s: float
    overdue: str
    """What to do when it does not end in time."""
    needs: tuple[str, ...] = ()
    asks: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """A check, what it found, and how long it took."""

    check: Check
    finding: Finding
    duration_s: float


def _one_step(examined: Examined) -> Finding:
    from site_agent.doctor import training  # torch and the model

    return training.one_step(examined)


LINE = "the network between here and the aggregator loses data: ask whoever runs the hospital's"
DISK = "the disk it is on does not answer in time: look at it, or at the file server it comes from"
HERE = "the machine is busy or hangs: look at what else runs here, and run this again"

CHECKS = (
    Check("proxy", "proxy settings", proxy.settings, 2, HERE, asks=True),
    Check(
        "name",
        "name resolution",
        network.name,
        8,
        "this machine's DNS servers do not answer: see /etc/resolv.conf, and ask whoever runs the hospital's network",
        asks=True,
    ),
    Check("tcp", "TCP", network.tcp, 10, LINE, ("name",), asks=True),
    Check("certificates", "certificate files", certificates.files, 5, DISK),
    Check("tls", "TLS chain and names", tls.chain, 20, LINE, ("tcp", "certificates"), asks=True),
    Check("alpn", "ALPN", tls.alpn, 2, HERE, ("tcp", "certificates"), asks=True),
    Check("client_certificate", "site certificate", tls.client_certificate, 12, LINE, ("tls", "alpn"), asks=True),
    Check("expiry", "certificate expiry", certificates.expiry, 5, DISK, ("certificates",)),
    Check("answer", "aggregator answers", answer.knows_us, 20, LINE, ("tcp", "client_certificate"), asks=True),
    Check("clock", "clock skew", answer.clock, 2, HERE, ("answer",), asks=True),
    Check("protocol", "protocol version", answer.version, 2, HERE, ("answer",), asks=True),
    Check("contract", "contract", contract.hashes, 5, DISK),
    Check("uplink", "uplink", uplink.speed, 30, LINE, ("answer",), asks=True),
    Check("disk", "disk", machine.disk, 5, DISK),
    Check("shared_memory", "shared memory", machine.shared_memory, 15, HERE),
    Check("gpu", "GPU and memory", gpu.computing, 15, HERE),
    Check("weights", "base weights", data.base_weights, 20, DISK),
    Check("data", "data", data.cases, data.READ_S + 5, DISK),
    Check(
        "step",
        "training step",
        _one_step,
        45,
        "a step takes longer than this here: use a GPU, or more threads; the agent's log has the time of each round",
        ("contract", "gpu", "weights", "data"),
    ),
)


def examine(
    examined: Examined, begun: Callable[[Check], None] = lambda check: None, checks: Sequence[Check] = CHECKS
) -> Iterator[Result]:
    """Yield the result of every check as it ends. `begun` hears of each before."""
    titles, missing = {check.name: check.title for check in checks}, set[str]()
    for check in checks:
        began = time.monotonic()
        lacking = [titles[name] for name in check.needs if name in missing]
        if check.asks and not examined.asked:
            finding = skipped("not asked for: give --aggregator host:port")
        elif lacking:
            finding = skipped(f"not tried: needs {' and '.join(lacking)}")
        else:
            begun(check)
            finding = _within(check, examined)
        if finding.blocks:
            missing.add(check.name)
        yield Result(check, finding, time.monotonic() - began)


def _within(check: Check, examined: Examined) -> Finding:
    """Return a check's finding, or that it is overdue: its thread is left to itself then."""
    found: list[Finding] = []
    examined.ends_at = time.monotonic() + check.limit_s
    thread = threading.Thread(
        target=lambda: found.append(_looked(check, examined)), name=f"doctor-{check.name}", daemon=True
    )
    thread.start()
    thread.join(check.limit_s)
    return found[0] if found else failed(f"it did not end within {check.limit_s:g} s", check.overdue)


def _looked(check: Check, examined: Examined) -> Finding:
    try:
        return check.look(examined)
    except (MedDualLoRAError, OSError) as error:  # what is wrong with an input may name a patient's file
        remedy = rights.remedy(error) or "do what the line below says"
        return failed(f"it cannot be looked at ({type(error).__name__})", remedy, str(error))
    except Exception as error:
        if examined.environ.get(TRACEBACK):
            traceback.print_exc()
        return failed(
            f"unexpected {type(error).__name__}",
            f"a defect: {TRACEBACK}=1 shows where; please report it without patients' names",
        )
