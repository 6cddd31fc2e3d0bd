"""What a check of `site-agent doctor` found, and what it found it in."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shared.contract import Contract
from site_agent.config import SiteConfig

if TYPE_CHECKING:
    from cryptography import x509
    from med_duallora.v1 import federation_pb2 as pb

    from site_agent.data.cohort import Cohort

Status = Literal["PASS", "WARN", "FAIL", "SKIP"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's outcome: what was seen, in a sentence, and for a person who must act, what to do.

    `facts`: the same as values, for --json. `private`: what may name a patient's file; it is shown on the screen alone. `blocks`:
    checks that need this one have nothing to stand on.
    """

    status: Status
    words: str
    remedy: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    private: str = ""
    blocks: bool = False

    def __post_init__(self) -> None:
        if self.status in ("WARN", "FAIL") and not self.remedy:
            raise ValueError(f"a {self.status} says what to do about it: {self.words}")


def passed(words: str, **facts: Any) -> Finding:
    """All is well."""
    return Finding("PASS", words, facts=facts)


def warned(words: str, remedy: str, **facts: Any) -> Finding:
    """The agent can take part, but somebody should know."""
    return Finding("WARN", words, remedy, facts)


def failed(words: str, remedy: str, private: str = "", /, **facts: Any) -> Finding:
    """The agent cannot take part like this."""
    return Finding("FAIL", words, remedy, facts, private, blocks=True)


def skipped(words: str) -> Finding:
    """It could not be looked at, or was not to be."""
    return Finding("SKIP", words, blocks=True)


def absent(words: str) -> Finding:
    """There is nothing to look at, and nothing is missing."""
    return Finding("SKIP", words)


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy that gRPC goes through. `authorization`: "user:password", or empty; never shown."""

    host: str
    port: int
    variable: str
    authorization: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Peer:
    """What answered a TLS handshake in which nothing was verified."""

    certificate: "x509.Certificate"
    alpn: str
    version: str


@dataclass(frozen=True, slots=True)
class Told:
    """The aggregator's answer to a Probe: its clock, and what it would answer to Join. Times in seconds since 1970.

    `joined` is None for an aggregator whose protocol cannot tell it yet.
    """

    server_time: float
    sent_at: float
    received_at: float
    joined: "pb.JoinResponse | None"


@dataclass
class Examined:
    """One site, and what earlier checks have found of it. Nothing of it is ever written.

    `asked`: an aggregator was named, so the network is looked at. `environ`: for variables of proxies and GPUs. `contract_file`: a
    contract that was handed over, in place of the one in the state folder. `clock`: seconds since 1970. `patience_s`: longest wait
    for a connection or for the next answer on it. `nvidia`: what an NVIDIA driver shows of itself. `not_enrolled`: why there is no
    certificate to look at. `origin`: in words, of one that is not in place yet. `ends_at`: when the check under way is given up, by
    time.monotonic().
    """

    config: SiteConfig
    asked: bool = True
    environ: Mapping[str, str] = field(default_factory=dict)
    contract_file: Path | None = None
    clock: Callable[[], float] = time.time
    patience_s: float = 4.0
    shared_memory: Path = Path("/dev/shm")
    nvidia: Path = Path("/proc/driver/nvidia/version")
    proxy: Proxy | None = None
    peer: Peer | None = None
    told: Told | None = None
    contract: Contract | None = None
    cohort: "Cohort | None" = None
    not_enrolled: Finding | None = None
    origin: str = ""
    ends_at: float = math.inf

    @property
    def host(self) -> str:
        """The name or address of the aggregator, without brackets."""
        return self.config.aggregator.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port of the aggregator."""
        return int(self.config.aggregator.rpartition(":")[2])
