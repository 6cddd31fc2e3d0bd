"""The commands that a demo runs, and the folder it runs them in."""

import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared import recipe as recipes
from shared.errors import InputError

SITES = ("siemens", "philips", "ge", "canon")
FEDERATION = "demo"
HOST = "127.0.0.1"
LOCK, REPLACED = ".lock", ".replaced"
VALIDATION_FOLD = 0
OUTAGE_S = 60.0
"""Longest an agent goes on without the aggregator, which here is never away."""
AGGREGATOR, CERTIFICATES = "aggregator", "certificates"
FOLDERS = ("raw", "prepared", CERTIFICATES, AGGREGATOR, "sites", "activations", "logs")
FILES = ("summary.json", "report.html")

FRAMES = "stacked"
"""The demo's backbone was pre-trained on ED and ES as two channels with a kernel each, so its frozen stem sees motion."""
SIZE, SPACING_MM = (64, 64, 8), (2.0, 2.0, 10.0)
PHANTOM = {
    "severity": 1.6,
    "noise": 0.6,
    "jitter": 0.6,
    "style": 1.0,
    "label-shift": 1.0,
    "mix-shift": 1.0,
    "wall-bias": 0.0,
}
"""Fixed before the first federated run and never tuned for a method (docs/phantom.md)."""


@dataclass(frozen=True, slots=True)
class Command:
    """One process to start: what it is called in the demo, and its words."""

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What a demo can be told. Everything that is not here is the commands' own default."""

    out: Path
    weights: Path
    seed: int = 0
    rounds: int = 8
    scale: float = 1.0
    test_cases: int = 100
    recipe: tuple[str, ...] = ()
    """key=value, as `aggregator init --set` takes them."""
    device: str = "cpu"
    centralised: bool = False
    limit_s: float = 600.0
    """Longest one command may take, or a federation may go without any site coming forward."""

    @property
    def store(self) -> Path:
        """The aggregator's store."""
        return self.out / AGGREGATOR / "fed.db"

    @property
    def site_toml(self) -> Path:
        """What all sites of the demo say of themselves in a file."""
        return self.out / "sites" / "site.toml"

    @property
    def initial(self) -> Path:
        """Version 0 of the global adapter."""
        return self.out / AGGREGATOR / "v0.safetensors"

    def __post_init__(self) -> None:
        parameters = dict(text.partition("=")[::2] for text in self.recipe)
        recipes.make("med-duallora", parameters)  # a wrong one should not be found a minute later

    def state(self, site: str) -> Path:
        """An agent's private folder."""
        return self.out / "sites" / site

    def cache(self, site: str) -> Path:
        """An agent's frozen activations."""
        return self.out / "activations" / site

    def log(self, name: str) -> Path:
        """JSON log of an agent, or of the aggregator."""
        return self.out / "logs" / f"{name}.jsonl"

    def settings(self) -> dict[str, Any]:
        """What was asked for, without paths."""
        values = asdict(self)
        kept = ("rounds", "scale", "test_cases", "recipe", "device")
        return {name: values[name] for name in kept} | {
            "recipe": list(self.recipe),
            "frames": FRAMES,
            "size": list(SIZE),
            "spacing_mm": list(SPACING_MM),
            "phantom": dict(PHANTOM),
        }


def clear(out: Path) -> None:
    """Make `out` ready: put aside what an earlier demo wrote there. Raises InputError if anything else lies in it.

    Taking thousands of files away is slow; `remove_replaced` does it while the demo runs.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is not a folder; choose another --out")
    present = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if foreign := sorted(present - {*FOLDERS, *FILES, LOCK, REPLACED}):
        raise InputError(f"{out} holds {foreign[0]!r}, which no demo wrote; choose another --out")
    if old := [name for name in FOLDERS if name in present]:
        aside = Path(tempfile.mkdtemp(dir=_made(out / REPLACED)))
        for name in old:
            (out / name).rename(aside / name)
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    (out / AGGREGATOR).mkdir(parents=True)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def planned_cases(config: DemoConfig) -> int:
    """How many cases the phantom will have."""
    from site_agent.data.phantom import cohort, profile

    plan = profile.PhantomConfig(seed=config.seed, scale=config.scale, test_cases=config.test_cases)
    return len(cohort.assignments(plan))


def remove_replaced(config: DemoConfig) -> Command:
    program = "import shutil, sys; shutil.rmtree(sys.argv[1])"
    return Command("clearing", (sys.executable, "-c", program, str(config.out / REPLACED)))


def phantom(config: DemoConfig) -> Command:
    knobs = [word for name, value in PHANTOM.items() for word in (f"--{name}", value)]
    return _command(
        "phantom", "site-agent", "phantom", "--out", config.out / "raw", "--seed", config.seed, "--scale", config.scale,
        "--test-cases", config.test_cases, "--size", *SIZE, "--spacing", *SPACING_MM, *knobs, "--json",
    )  # fmt: skip


def prepare(config: DemoConfig) -> Command:
    return _command(
        "prepare", "site-agent", "prepare", config.out / "raw", "--out", config.out / "prepared",
        "--spacing", *SPACING_MM, "--size", *SIZE[:2], "--seed", config.seed, "--json",
    )  # fmt: skip


def init_adapter(config: DemoConfig) -> Command:
    return _command(
        "init-adapter", "site-agent", "init-adapter", "--weights", config.weights, "--out", config.initial,
        "--frames", FRAMES, "--seed", config.seed, "--json",
    )  # fmt: skip


def certificates(config: DemoConfig) -> Command:
    sites = [word for site in SITES for word in ("--site", site)]
    return _command(
        "certificates", "aggregator", "certificates", "--out", config.out / CERTIFICATES, "--host", HOST, *sites
    )


def init(config: DemoConfig, prepared: Mapping[str, Any]) -> Command:
    """`prepared`: what `prepare` printed; the coordinator approves each site with its number of training patients."""
    patients = {site: prepared["vendors"][site]["training_patients"][VALIDATION_FOLD] for site in SITES}
    sites = [word for site, number in patients.items() for word in ("--site", f"{site}={number}")]
    return _command(
        "init", "aggregator", "init", "--store", config.store, "--federation", FEDERATION,
        "--adapter", config.initial, *sites, "--rounds", config.rounds, *_recipe(config), "--json",
    )  # fmt: skip


def write_site_toml(config: DemoConfig) -> None:
    """Have the sites tell how the four models compare: nobody's patients are in this."""
    config.site_toml.parent.mkdir(parents=True, exist_ok=True)
    config.site_toml.write_text("[agreed]\narms = true\n")


def serve(config: DemoConfig) -> Command:
    return _command(
        "aggregator", "aggregator", "serve", "--store", config.store, "--listen", f"{HOST}:0",
        *_tls(config, "aggregator"), "--log", config.log("aggregator"),
    )  # fmt: skip


def agent(config: DemoConfig, site: str, address: str) -> Command:
    return _command(
        site, "site-agent", "--aggregator", address, "--config", config.site_toml, "--cohort", config.out / "prepared" / site,
        "--weights", config.weights, "--state", config.state(site), "--cache", config.cache(site),
        *_tls(config, site), "--seed", config.seed,
        "--validation-fold", VALIDATION_FOLD, "--device", config.device, "--threads", 1,
        "--give-up-after-s", OUTAGE_S, "--log", config.log(site), "--once",
    )  # fmt: skip


def centralised(config: DemoConfig) -> Command:
    sites = [word for site in SITES for word in ("--site", site)]
    words = (
        sys.executable, "-m", "experiments.reference", "--cohort", config.out / "prepared", "--weights", config.weights,
        "--rounds", config.rounds, "--seed", config.seed, *_recipe(config), *sites,
    )  # fmt: skip
    return Command("centralised", tuple(map(str, words)))


def verify(config: DemoConfig) -> Command:
    return _command("verify", "aggregator", "verify", "--store", config.store, "--all", "--json")


def comm_cost(config: DemoConfig, full_model_bytes: int) -> Command:
    logs = [config.log(name) for name in ("aggregator", *SITES)]
    return _command("comm-cost", "aggregator", "comm-cost", *logs, "--full-model-bytes", full_model_bytes, "--json")


def _tls(config: DemoConfig, name: str) -> Sequence[str | Path]:
    folder = config.out / CERTIFICATES
    return ("--tls-ca", folder / "ca.pem", "--tls-cert", folder / f"{name}.pem", "--tls-key", folder / f"{name}.key")


def _recipe(config: DemoConfig) -> list[str]:
    return [word for parameter in config.recipe for word in ("--set", parameter)]


def _command(name: str, program: str, *words: object) -> Command:
    return Command(name, (_installed(program), *map(str, words)))


def _installed(program: str) -> str:
    """The project's own command, beside the Python that runs this."""
    beside = Path(sys.executable).with_name(program)
    found = str(beside) if beside.is_file() else shutil.which(program)
    if not found:
        raise InputError(f"the command {program} is not installed beside {sys.executable}; run: make setup")
    return found
