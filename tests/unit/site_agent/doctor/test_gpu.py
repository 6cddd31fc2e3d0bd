"""GPUs as torch and the driver tell of them, and a CPU's memory as the kernel tells of it. Their answers are made up here."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from site_agent.doctor import gpu, memory
from site_agent.doctor.finding import Finding
from tests.support.doctored import examined

GB = 10**9
MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
BUSY = torch.AcceleratorError(
    "CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCUDA kernel errors might ..."
)
FULL = torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might ...")

Memory = tuple[int, int] | RuntimeError


@dataclass(frozen=True)
class Machine:
    """One whose GPUs and driver a test chooses."""

    folder: Path
    patch: pytest.MonkeyPatch

    def gpus(self, *memories: Memory) -> None:
        """Let torch see so many GPUs: free and whole memory of each, or what CUDA says against it."""

        def free_and_whole(number: int) -> tuple[int, int]:
            answer = memories[number]
            if isinstance(answer, RuntimeError):
                raise answer
            return answer

        self.patch.setattr(torch.cuda, "is_available", lambda: bool(memories))
        self.patch.setattr(torch.cuda, "device_count", lambda: len(memories))
        self.patch.setattr(torch.cuda, "get_device_name", lambda number: f"NVIDIA L{number}")
        self.patch.setattr(torch.cuda, "mem_get_info", free_and_whole)

    def driver(self, cuda: str | None = None) -> None:
        """Install a driver, and a torch that was built for this version of CUDA, or without it."""
        (self.folder / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01\n")
        self.patch.setattr(torch.version, "cuda", cuda)

    def looked_at(self, device: str, **environ: str) -> Finding:
        site = examined(self.folder, None, device=device, environ=environ, nvidia=self.folder / "version")
        return gpu.computing(site)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path, monkeypatch)
    made.gpus()
    return made


# --- GPUs -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_whose_memory_is_free_passes(machine: Machine, device: str) -> None:
    machine.gpus((23 * GB, 24 * GB))
    found = machine.looked_at(device)
    assert (found.status, found.words) == ("PASS", "GPU 0 (NVIDIA L0): 23.0 of 24.0 GB free")


def test_a_gpu_of_which_others_have_most_is_warned_of(machine: Machine) -> None:
    machine.gpus((3 * GB, 24 * GB))
    found = machine.looked_at("auto")
    assert (found.status, found.words) == (
        "WARN",
        "GPU 0 (NVIDIA L0): 3.0 of 24.0 GB free: other programs use it",
    )
    assert found.remedy == (
        "end what else runs on GPU 0 (nvidia-smi names it); with less memory the agent takes fewer samples at a time"
    )


def test_of_several_gpus_all_are_told_and_those_that_are_short_named(machine: Machine) -> None:
    machine.gpus((23 * GB, 24 * GB), (2 * GB, 24 * GB), BUSY)
    found = machine.looked_at("auto")
    assert found.status == "WARN"  # an agent without torchrun uses the first one, which is free
    assert (
        "GPU 0 (NVIDIA L0): 23.0 of 24.0 GB free; GPU 1 (NVIDIA L1): 2.0 of 24.0 GB free; GPU 2 (NVIDIA L2): cannot"
        in found.words
    )
    assert (
        "GPU 1 and 2 (nvidia-smi names it), or name in CUDA_VISIBLE_DEVICES those that the agent shall use"
        in found.remedy
    )
    assert [one["free_bytes"] for one in found.facts["gpus"]] == [23 * GB, 2 * GB, 0]


@pytest.mark.parametrize("error", [FULL, BUSY])
def test_a_gpu_that_has_not_even_room_to_be_asked_fails_in_cudas_words(machine: Machine, error: RuntimeError) -> None:
    machine.gpus(error)
    found = machine.looked_at("auto")
    assert found.status == "FAIL"
    assert found.words == f"GPU 0 (NVIDIA L0): cannot be used ({str(error).splitlines()[0]})"
    assert found.remedy == "end what else runs on GPU 0 (nvidia-smi names it); or set device = 'cpu' in site.toml"


def test_a_gpu_that_is_not_wanted_is_not_looked_at(machine: Machine) -> None:
    machine.gpus(FULL)
    machine.driver()
    assert machine.looked_at("cpu").status == "PASS"


# --- no GPU ---------------------------------------------------------------------------------------------------------------

TOO_OLD = RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update")


def never(error: Exception) -> Callable[[], None]:
    def init() -> None:
        raise error

    return init


def test_a_gpu_that_is_asked_for_on_a_machine_without_a_driver_fails(machine: Machine) -> None:
    found = machine.looked_at("cuda")
    assert (found.status, found.words) == (
        "FAIL",
        "device is 'cuda', and torch sees no GPU: there is no NVIDIA driver here",
    )
    assert found.remedy.startswith("install the driver (nvidia-smi shows whether it works); or set device = 'cpu'")


@pytest.mark.parametrize(("device", "status"), [("auto", "WARN"), ("cuda", "FAIL")])
@pytest.mark.parametrize(
    ("cuda", "environ", "why", "remedy"),
    [
        (None, {}, f"{torch.__version__} is a build without CUDA", "pip install --force-reinstall torch=="),
        ("13.0", {"CUDA_VISIBLE_DEVICES": "-1"}, "CUDA_VISIBLE_DEVICES is '-1'", "unset CUDA_VISIBLE_DEVICES, or name"),
        ("13.0", {}, str(TOO_OLD).splitlines()[0], "the driver must be one for CUDA 13.0 or later"),
    ],
    ids=["a build without CUDA", "hidden", "too old a driver"],
)
def test_a_driver_that_torch_does_not_see_is_told_of_with_why(
    machine: Machine, device: str, status: str, cuda: str | None, environ: dict[str, str], why: str, remedy: str
) -> None:
    machine.driver(cuda)
    machine.patch.setattr(torch.cuda, "init", never(TOO_OLD))
    found = machine.looked_at(device, **environ)
    assert found.status == status
    assert f"torch sees no GPU: {why}" in found.words
    assert remedy in found.remedy
    assert found.remedy.endswith("or set device = 'cpu' in site.toml, if no GPU is meant for this")


# --- memory ---------------------------------------------------------------------------------------------------------------


def test_a_cpu_tells_its_memory(machine: Machine) -> None:
    found = machine.looked_at("cpu")
    assert found.facts["device"] == "cpu"
    assert 0 < found.facts["free_bytes"] <= found.facts["total_bytes"]


def test_of_a_group_only_what_its_members_leave_is_free(tmp_path: Path) -> None:
    """A container of 4 GB, of which a neighbour holds 3, half a gigabyte of it cached files."""
    for version, line, folder, files in (
        (2, "0::/site", tmp_path / "2", ("memory.max", "memory.current", "inactive_file")),
        (
            1,
            "9:memory:/site",
            tmp_path / "1",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ):
        group = folder / ("site" if version == 2 else "memory/site")
        group.mkdir(parents=True)
        (folder / "own").write_text(f"{line}\n")
        (folder / "meminfo").write_text(f"MemAvailable: {64 << 20} kB\n")
        limit, used, cached = files
        (group / limit).write_text(f"{4 * GB}\n")
        (group / used).write_text(f"{3 * GB}\n")
        (group / "memory.stat").write_text(f"anon 1\n{cached} {GB // 2}\nsock 0\n")
        assert memory.free_bytes(folder / "meminfo", folder, folder / "own") == 3 * GB // 2


def test_a_group_that_is_full_leaves_nothing_and_one_without_a_limit_all(tmp_path: Path) -> None:
    own, meminfo = tmp_path / "own", tmp_path / "meminfo"
    own.write_text("0::/\n")
    meminfo.write_text("MemAvailable: 1000 kB\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(meminfo, tmp_path, own) == 1000 << 10
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("5000\n")
    assert memory.free_bytes(meminfo, tmp_path, own) == 0


def test_without_the_kernels_files_what_no_page_holds_is_free(tmp_path: Path) -> None:
    assert 0 < memory.free_bytes(tmp_path / "none", tmp_path, tmp_path / "none") <= MACHINE
