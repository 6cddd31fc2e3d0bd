"""The demo's phases: the project's own commands as real processes, from a synthetic cohort to checked accounts."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.demo import commands, summaries
from experiments.demo.commands import SITES, DemoConfig
from experiments.demo.processes import Child, Processes
from experiments.demo.progress import FederationProgress
from experiments.demo.summaries import Findings
from experiments.demo.view import View

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Figures repeat bit for bit at the same number of threads."""
COUNTING_S = 1.0
"""Between two looks at how many files a command has written."""
RAW_CASES = ("database/*/*", "OpenDataset/Testing/*", "OpenDataset/Training/Labeled/*")
PREPARED_CASES = ("*/*/*/*",)
"""A folder for each case: listing those that hold them is quick, however slow the disk."""
LISTENING = "aggregator listening on "


@dataclass
class Phase:
    """A part of the run: the processes it is made of, when it began (seconds since the start), how long it took."""

    name: str
    began: float
    wall: float = 0.0
    ended: bool = False
    children: list[Child] = field(default_factory=list)
    count: Callable[[], int] = lambda: 0
    """How many of `total` things it has written."""
    total: int = 0
    counted: float = 0.0

    @property
    def cpu(self) -> float:
        """CPU seconds of all its processes that have ended."""
        return sum(child.cpu_s for child in self.children)


@dataclass
class Demo:
    """One run. `run` does all phases; `seconds` says what each took."""

    config: DemoConfig
    processes: Processes
    view: View
    started: float
    """time.monotonic() when the person pressed enter."""
    phases: list[Phase] = field(default_factory=list)

    def run(self) -> Findings:
        """Run everything. Raises ChildFailed, Interrupted, or InputError."""
        config, busy_before = self.config, _busy_s()
        full_model = summaries.full_model_bytes(config.weights)
        phantom = self._begin("phantom", "SYNTHETIC raw scans in the file layouts of ACDC and M&Ms")
        self._start(phantom, commands.phantom(config))
        certificates = self._begin("certificates", "an authority, the aggregator, and one for each site")
        self._start(certificates, commands.certificates(config))
        adapter = self._begin("adapter", "version 0 of the global adapter, from the seed")
        initial = self._start(adapter, commands.init_adapter(config))
        phantom.total = cases = commands.planned_cases(config)
        phantom.count = lambda: _count(config.out / "raw", RAW_CASES)
        for phase in (certificates, phantom, adapter):
            self._finish(phase)
        prepare = self._begin("prepare", "scaled and cropped around the heart; one cohort for each scanner vendor")
        prepare.total, prepare.count = cases, lambda: _count(config.out / "prepared", PREPARED_CASES)
        prepared = self._start(prepare, commands.prepare(config))
        self._finish(prepare)
        init = self._begin("init", "the store of the federation: contract, sites and their patients")
        contract = self._start(init, commands.init(config, _json(prepared)))
        self._finish(init)
        clearing = self._clear()
        reports = self._federate()
        reference = self._reference() if config.centralised else None
        accounts = self._begin("accounts", "every round recomputed from its updates; both sides' bytes compared")
        verified = self._start(accounts, commands.verify(config))
        costs = self._start(accounts, commands.comm_cost(config, full_model))
        for phase in (accounts, *clearing):
            self._finish(phase)
        return Findings(
            seed=config.seed,
            settings=config.settings(),
            prepared=_json(prepared),
            initial=_json(initial),
            contract=_json(contract),
            recipe=json.loads((config.state(SITES[0]) / "contract.json").read_text())["recipe"],
            reports=reports,
            verified=_json(verified),
            costs=_json(costs),
            others_cpu_s=None if busy_before is None else (_busy_s() or 0.0) - busy_before - self._own_cpu(),
            reference=reference,
        )

    def seconds(self, reports: Any) -> dict[str, Any]:
        """Wall and CPU seconds so far, by phase, and the agents' own phases."""
        return {
            "total": round(time.monotonic() - self.started, 3),
            "cpu": round(self._own_cpu(), 3),
            "phases": {
                phase.name: {"began": round(phase.began, 3), "wall": round(phase.wall, 3), "cpu": round(phase.cpu, 3)}
                for phase in self.phases
            },
            "aggregator": self._process("aggregator"),
            "sites": {name: {**self._process(name), **report["phases_s"]} for name, report in reports.items()},
        }

    def _own_cpu(self) -> float:
        return sum(phase.cpu for phase in self.phases) + time.process_time()

    def _process(self, name: str) -> dict[str, float]:
        """What the one process of this name took, from its start to its end."""
        (child,) = (child for phase in self.phases for child in phase.children if child.name == name)
        return {"cpu": round(child.cpu_s, 3), "wall": round(child.wall_s, 3)}

    def _clear(self) -> list[Phase]:
        """Take away what an earlier demo left, while the agents keep the cores busy and leave the disk alone."""
        if not (self.config.out / commands.REPLACED).exists():
            return []
        phase = self._begin("clearing", "what an earlier demo left in this folder")
        self._start(phase, commands.remove_replaced(self.config))
        return [phase]

    # --- the federation ------------------------------------------------------------------------------------------------

    def _federate(self) -> dict[str, Any]:
        config = self.config
        text = f"an aggregator and {len(SITES)} agents, {config.rounds} rounds over gRPC with mutual TLS"
        phase = self._begin("federation", text)
        commands.write_site_toml(config)
        server = self._start(phase, commands.serve(config), goes_on=True)
        self.processes.until(
            lambda: bool(_address(server)), config.limit_s, "the aggregator did not listen", lambda: [server]
        )
        self.view.say(f"aggregator listening on {_address(server)}")
        agents = {site: self._start(phase, commands.agent(config, site, _address(server))) for site in SITES}
        progress = FederationProgress.of({site: config.log(site) for site in SITES}, config.rounds, time.monotonic())
        self.view.federation(progress)
        self._watch(agents, progress)
        self.processes.stop(server, config.limit_s)
        self._finish(phase)
        return {site: json.loads((config.state(site) / "report.json").read_text()) for site in SITES}

    def _watch(self, agents: dict[str, Child], progress: FederationProgress) -> None:
        """Wait until every agent has ended well, tell what happens meanwhile, and end it if no site comes forward."""

        def done() -> bool:
            ended = [child.look() for child in agents.values()]
            for line in progress.poll(time.monotonic()):
                self.view.say(line)
            self._tell()
            return all(ended)

        while not done():
            moved = progress.last_move()
            self.processes.until(
                lambda moved=moved: done() or progress.last_move() > moved,  # type: ignore[misc]
                self.config.limit_s,
                f"no site came forward ({progress.brief()})",
                lambda: [agents[name] for name in progress.busy()],
            )

    def _reference(self) -> dict[str, Any]:
        phase = self._begin("centralised", "for comparison: one model on all cases pooled, as no federation could")
        child = self._start(phase, commands.centralised(self.config))
        self._finish(phase)
        found: dict[str, Any] = _json(child)
        return found

    # --- phases --------------------------------------------------------------------------------------------------------

    def _begin(self, name: str, text: str) -> Phase:
        phase = Phase(name, time.monotonic() - self.started)
        self.phases.append(phase)
        self.view.begin(name, text)
        return phase

    def _start(self, phase: Phase, command: commands.Command, *, goes_on: bool = False) -> Child:
        child = self.processes.start(command.name, command.words, ONE_THREAD, goes_on=goes_on)
        phase.children.append(child)
        return child

    def _finish(self, phase: Phase) -> None:
        """Wait for all processes of a phase to end well; other phases that end meanwhile are told of too."""

        def done() -> bool:
            self._tell()
            return phase.ended

        self.processes.until(done, self.config.limit_s, f"{phase.name} did not end", lambda: phase.children)

    def _tell(self) -> None:
        """Tell how far the running phases are, and of those that have ended."""
        now = time.monotonic()
        for phase in self.phases:
            if phase.ended:
                continue
            if phase.children and all(child.look() for child in phase.children):
                phase.ended = True
                phase.wall = max(child.ended or now for child in phase.children) - self.started - phase.began
                self.view.end(phase.name, phase.wall, phase.cpu)
            elif phase.total and now - phase.counted >= COUNTING_S:
                self.view.advance(phase.name, min(phase.count(), phase.total), phase.total)
                phase.counted = now


def _busy_s() -> float | None:
    """CPU seconds that anything has used on this machine so far; None where the system does not say."""
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _, _, interrupts, soft_interrupts, stolen = map(int, words[1:9])
    return (user + nice + system + interrupts + soft_interrupts + stolen) / os.sysconf("SC_CLK_TCK")


def _address(server: Child) -> str:
    """host:port from the server's ready line; empty until it is there."""
    for line in server.out.read_text(encoding="utf-8").splitlines():
        if line.startswith(LISTENING) and " (" in line:
            return line.removeprefix(LISTENING).split(" (")[0]
    return ""


def _json(child: Child) -> Any:
    return json.loads(child.out.read_text(encoding="utf-8"))


def _count(folder: Path, patterns: Sequence[str]) -> int:
    return sum(1 for pattern in patterns for _ in folder.glob(pattern)) if folder.is_dir() else 0
