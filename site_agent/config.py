"""The agent's settings: `site.toml`, overridden by command-line options. Read once, checked, passed down whole."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from shared import toml_text
from shared.errors import InputError
from shared.tls import TlsFiles, check_plain
from site_agent.consent import NO_PINS, Pins

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]
Stored = Literal["float16", "bfloat16", "float32"]
Egress = Literal["auto", "manual"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteConfig:
    """Everything an agent needs to know that the aggregator does not tell it."""

    aggregator: str
    """host:port the agent dials."""
    cohort: Path
    """Prepared cohort of this site: a folder with cases.csv."""
    weights: Path
    """Backbone folder or CineMA's safetensors file."""
    weights_size: str = ""
    """CineMA size (tiny, base) for a bare safetensors file without a config beside it."""
    state: Path = Path("state")
    """Private folder: local adapter, checkpoints, outbox, ledger, report. Back it up, never share it. Not set, it is `state` beside
    the file."""
    federation: str = ""
    """Federation to join; empty takes the one the aggregator serves."""
    tls: TlsFiles | None = None
    plain_site: str = ""
    """Site name for a plain loopback connection, where no certificate says it."""
    validation_fold: int = 0
    """Fold of the training cases kept for validation and for the decision threshold."""
    seed: int = 0
    """Of the local adapter and of the order of cases."""
    device: Device = "auto"
    """auto: CUDA where there is one, else the CPU."""
    threads: int = 1
    """CPU threads of torch; figures repeat bit for bit at the same number."""
    precision: Precision = "auto"
    """Of matrix products in training. auto: bfloat16 for a wide network on a GPU, or on a CPU that multiplies it natively."""
    cache: Path | None = None
    """Folder for frozen activations, which several federations may share: derived patient data, as private as the images. None:
    `activations` beside the state folder."""
    cache_mb: int = 16384
    """Disk space for them; what does not fit is computed again when needed. 0 keeps none."""
    cache_dtype: Stored = "float16"
    """How their numbers are kept."""
    micro_batch: int = 0
    """Samples that go through the trained part at a time, gradients accumulated to the recipe's batch; 0 finds out how many fit.
    With less memory than either takes, fewer do."""
    give_up_after_s: float = 7 * 24 * 3600.0
    """Longest outage the agent sits out before it exits with status 4."""
    call_timeout_s: float = 30.0
    """Longest silence of the aggregator in a call before it is made again."""
    checkpoint_s: float = 5.0
    """Seconds of training between two checkpoints: what a kill can cost. 0 makes one after every step."""
    egress: Egress = "auto"
    """manual: no update leaves before a person says so: `site-agent release`."""
    agreed: Pins = NO_PINS
    """What of a contract this site pins, and its own budgets: table [agreed]."""
    log: Path | None = None
    """File to which JSON lines are appended, one an event."""

    def __post_init__(self) -> None:
        host, _, port = self.aggregator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port[:9]) < 65536:
            raise InputError(f"aggregator must be host:port with a port from 1 to 65535, got '{self.aggregator}'")
        if self.tls is None:
            if not self.plain_site:
                raise InputError(
                    "no TLS files given: set [tls] ca, certificate and key in site.toml, "
                    'or plain_site = "NAME" for a loopback trial without TLS'
                )
            check_plain(self.aggregator)
        for name, choices in (
            ("device", Device),
            ("precision", Precision),
            ("cache_dtype", Stored),
            ("egress", Egress),
        ):
            if getattr(self, name) not in get_args(choices):
                raise InputError(f"{name} must be one of {', '.join(get_args(choices))}, got '{getattr(self, name)}'")
        if not 0 <= self.validation_fold <= 4:
            raise InputError(f"validation_fold must be 0 to 4, got {self.validation_fold}")
        for name, least in (("threads", 1), ("cache_mb", 0), ("micro_batch", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.give_up_after_s <= 0:
            raise InputError(f"give_up_after_s must be positive, got {self.give_up_after_s}")
        if not 0 < self.call_timeout_s < math.inf or not 0 <= self.checkpoint_s < math.inf:
            raise InputError(
                f"call_timeout_s must be positive and checkpoint_s not negative, got {self.call_timeout_s} and "
                f"{self.checkpoint_s}"
            )

    @property
    def cache_folder(self) -> Path:
        """Where frozen activations are kept."""
        return self.cache or self.state.parent / "activations"

    def to_toml(self) -> str:
        """Return a site.toml that says the same, defaults too; the keys of certificates stand by their paths."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        tls = values.pop("tls")
        if tls is not None:
            values["tls"] = {"ca": tls.ca, "certificate": tls.certificate, "key": tls.key}
        return toml_text.written({**values, "agreed": self.agreed.table()})


_PATHS = {"cohort", "weights", "state", "cache", "log"}


def load(path: Path | None, overrides: Mapping[str, Any], unless_set: Mapping[str, Any] | None = None) -> SiteConfig:
    """Read `site.toml` and apply options that are not None. Relative paths in the file are relative to the file.

    `unless_set`: what to take for settings that neither says.

    Raises InputError naming an unknown key, a value of the wrong type, or what is missing.
    """
    said = (_read(path) if path else {}) | {k: v for k, v in overrides.items() if v is not None}
    if said.get("tls") and (plain := said.get("plain_site")):
        raise InputError(
            f"plain_site (--plain-site) '{plain}' and TLS files ([tls], --tls-ca) are given together: with TLS the certificate "
            "says which site this is; leave one of them out"
        )
    beside = (
        {"state": path.parent / "state"} if path else {}
    )  # as every path in the file: not where the agent is started
    values = beside | dict(unless_set or {}) | said
    for name in ("aggregator", "cohort", "weights"):
        if name not in values:
            raise InputError(f"'{name}' is not set: give it in site.toml or as --{name}")
    return SiteConfig(**values)


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error
    types = {f.name: f.type for f in fields(SiteConfig)}
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key == "tls":
            values["tls"] = _tls(path, value)
        elif key == "agreed":
            values["agreed"] = Pins.parse(_typed(path, key, value, dict))
        elif key not in types:
            raise InputError(f"{path}: unknown key '{key}' (known: {', '.join(sorted(types))})")
        elif key in _PATHS:
            values[key] = path.parent / _typed(path, key, value, str)
        else:
            default = _default(key)
            values[key] = (
                _typed(path, key, value, type(default)) if default is not None else _typed(path, key, value, str)
            )
    return values


def _default(key: str) -> Any:
    field = next(f for f in fields(SiteConfig) if f.name == key)
    return field.default if isinstance(field.default, (str, int, float)) else None


def _typed(path: Path, key: str, value: Any, kind: type) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise InputError(f"{path}: '{key}' must be a {kind.__name__}, got {value!r}")
    return value


def _tls(path: Path, table: Any) -> TlsFiles:
    names = ("ca", "certificate", "key")
    if not isinstance(table, dict) or set(table) != set(names):
        raise InputError(f"{path}: [tls] needs exactly {', '.join(names)}")
    return TlsFiles(*(path.parent / _typed(path, f"tls.{n}", table[n], str) for n in names))
