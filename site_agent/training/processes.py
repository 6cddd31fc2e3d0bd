"""Several processes of one site, started by `torchrun`: a `parallel.Group` over torch.distributed.

Everything goes over gloo, between GPUs too. What is summed in a step is one adapter's gradient (356 kB for two blocks of
CineMA-base), which takes gloo a few ms beside a step of many; a process that dies is noticed by the others at once, where
NCCL leaves them to a watchdog; and what runs on GPUs is what the tests run on CPUs.
"""

import atexit
import contextlib
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import structlog
import torch
import torch.distributed as dist
from torch import nn

from shared.errors import MedDualLoRAError
from site_agent.training.launch import Launch
from site_agent.training.parallel import Ended, Failed, ProcessLost

log = structlog.get_logger()
T = TypeVar("T")

MEET_WITHIN = timedelta(minutes=10)
WAIT_FOR = timedelta(days=365)
"""For rank 0's next word, which comes with the federation's next round. One that died is noticed by its closed connection."""
PART_WITHIN = timedelta(seconds=5)
UNEXPECTED = 70
"""Exit code for a mistake in our own program."""


class Processes:
    """Meets the others when it is made. Raises ProcessLost from then on when one of them has died."""

    def __init__(self, launch: Launch) -> None:
        self.rank, self.size = launch.rank, launch.size
        self.gpu, self.local_size = launch.local_rank, launch.local_size
        with _in_touch():
            dist.init_process_group("gloo", rank=self.rank, world_size=self.size, timeout=MEET_WITHIN)
            self._group = dist.new_group(backend="gloo", timeout=WAIT_FOR)
        self._unheard = False

    def told(self, value: T) -> T:
        if self.rank == 0:
            self._say(value)
            return value
        said: T | _End = self._hear()
        if isinstance(said, _End):
            raise Ended
        return said

    def gathered(self, work: Callable[[], T]) -> list[T]:
        results, error = list[T](), None
        try:
            results.append(work())
        except Exception as failure:
            error = failure
        found: list[list[T]] = [[] for _ in range(self.size)]
        with _in_touch():
            dist.all_gather_object(found, results, group=self._group)
        if not all(found):
            self._fail(error)
        return [result for results in found for result in results]

    def summed(self, parameters: Sequence[nn.Parameter], work: Callable[[], float]) -> float:
        value, error = 0.0, None
        try:
            value = work()
        except Exception as failure:
            error = failure
            for parameter in parameters:
                parameter.grad = None
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        said = torch.tensor([value, float(error is not None)])
        flat = torch.cat([torch.cat([gradient.flatten() for gradient in gradients]).cpu(), said])
        with _in_touch():
            dist.all_reduce(flat, group=self._group)
        if flat[-1]:
            self._fail(error)
        at = 0
        for parameter in parameters:
            part = flat[at : at + parameter.numel()]
            parameter.grad = part.view_as(parameter).to(parameter.device, copy=True)
            at += parameter.numel()
        return float(flat[-2])

    def end(self) -> None:
        """Part from the others. Rank 0 lets them go; if it comes from the middle of their work, they hear it by its end."""
        if self.rank == 0:
            with contextlib.suppress(ProcessLost):
                self._say(_End(), PART_WITHIN)
        if self._unheard:  # gloo would have this process wait until it is heard, and the others wait for this process
            atexit.register(os._exit, UNEXPECTED)
        else:
            dist.destroy_process_group()

    def _fail(self, own: Exception | None) -> NoReturn:
        """Raise what any process failed with: its own where there is one, else the first. All know that there is one."""
        if own is not None:
            log.error("share_failed", process=self.rank, reason=type(own).__name__)
        errors: list[Exception | None] = [None] * self.size
        with _in_touch():
            dist.all_gather_object(errors, own and _portable(own), group=self._group)
        first = own or next(error for error in errors if error is not None)
        if self.rank == 0:
            raise first
        raise Failed from first

    def _say(self, value: object, patience: timedelta = WAIT_FOR) -> None:
        data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        self._broadcast(torch.tensor([len(data)]), patience)
        self._broadcast(data, patience)

    def _hear(self) -> Any:
        length = torch.zeros(1, dtype=torch.int64)
        self._broadcast(length, WAIT_FOR)
        data = torch.empty(int(length), dtype=torch.uint8)
        self._broadcast(data, WAIT_FOR)
        return pickle.loads(data.numpy().tobytes())

    def _broadcast(self, tensor: torch.Tensor, patience: timedelta) -> None:
        with _in_touch():
            work = dist.broadcast(tensor, src=0, group=self._group, async_op=True)
            assert work is not None
            try:
                work.wait(patience)
            finally:
                self._unheard = not work.is_completed()


class _End:
    """Rank 0's last word."""


@contextlib.contextmanager
def _in_touch() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(
            "another process of this site has ended, and they work together or not at all: what it wrote last says why; "
            "started again, all go on from the last checkpoint"
        ) from error


def _portable(error: Exception) -> Exception:
    """Return an error that another process can be given: this one, or what there is to say of it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return MedDualLoRAError(f"{type(error).__name__} in another process of this site; its log says more")
    return error
