"""`python -m experiments.startup`: how long the commands take to start, and the aggregator to answer. A benchmark, no test.

Wall seconds from starting the process to its end (`--help`) or to its ready line (`serve`); the figure to quote is the median.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import typer

from shared.adapter import Adapter, AdapterManifest, AdapterMetadata
from shared.layout import Layout

BIN = Path(sys.executable).parent
READY_LIMIT_S = 60.0


def help_of(*command: str) -> float:
    """Seconds until `command --help` has ended."""
    began = time.perf_counter()
    subprocess.run([BIN / command[0], *command[1:], "--help"], check=True, capture_output=True, timeout=READY_LIMIT_S)
    return time.perf_counter() - began


def serve(store: Path) -> float:
    """Seconds until `aggregator serve` says where it listens."""
    began = time.perf_counter()
    words = [str(BIN / "aggregator"), "serve", "--store", str(store), "--listen", "127.0.0.1:0", "--plain"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "listening on" in line:
                break
        took = time.perf_counter() - began
        process.terminate()
    return took


def make_store(folder: Path) -> Path:
    """A federation with an adapter of two small tensors."""
    tensors = {"base_model.model.x.lora_A.weight": np.zeros((2, 4), np.float32)}
    metadata = AdapterMetadata(
        base_model_sha256="0" * 64,
        rank=2,
        alpha=4.0,
        target_modules=("q",),
        blocks=(0,),
        head_policy="local",
        frames="stacked",
        task="benchmark",
        class_names=("normal", "disease"),
    )
    Adapter(AdapterManifest(Layout.of(tensors), metadata), 0, "", tensors).write(folder / "v0.safetensors")
    store = folder / "fed.db"
    words = ["init", "--store", str(store), "--federation", "start", "--adapter", str(folder / "v0.safetensors")]
    sites = [word for site in ("a", "b", "c") for word in ("--site", site)]
    subprocess.run([BIN / "aggregator", *words, *sites], check=True, capture_output=True, timeout=READY_LIMIT_S)
    return store


def main(runs: int = typer.Option(7, min=1, help="Counted runs of each, after one that is not.")) -> None:
    """Print minimum and median seconds of each start.

    Example: python -m experiments.startup --runs 7
    """
    with tempfile.TemporaryDirectory() as name:
        store = make_store(Path(name))
        starts: dict[str, Callable[[], float]] = {
            "aggregator --help": lambda: help_of("aggregator"),
            "aggregator serve, listening": lambda: serve(store),
            "site-agent --help": lambda: help_of("site-agent"),
            "site-agent prepare --help": lambda: help_of("site-agent", "prepare"),
        }
        for start in starts.values():
            start()
        times: dict[str, list[float]] = {name: [] for name in starts}
        for _ in range(runs):
            for label, start in starts.items():
                times[label].append(start())
    for label, taken in times.items():
        print(f"{label:<30} min {min(taken):.2f} s   median {statistics.median(taken):.2f} s   ({runs} runs)")


if __name__ == "__main__":
    typer.run(main)
