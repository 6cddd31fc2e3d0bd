"""The doors that every durable step of a process goes through, watched from outside: nothing of what ships knows of this.

An aggregator's steps are transactions, named by the function that is one. An agent's are syncs and renames of its files, named by
the file; the calls it makes; and the steps of its optimiser.
"""

import asyncio
import functools
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from tests.chaos.points import STEP, Points

TEMPORARY = re.compile(r"^\.(?P<name>.+?)\.[\d-]+\.tmp$")
STREAMS = ("FetchAdapter",)


# --- aggregator: transactions ---------------------------------------------------------------------------------------


def watch_store(points: Points) -> None:
    """Pass `WORK:before`, `WORK:uncommitted` (done, inside the transaction) and `WORK:committed` (nobody heard of it yet)."""
    from aggregator.store.engine import Store

    for name in ("write", "change"):
        setattr(Store, name, _watched_transaction(getattr(Store, name), points))


def _watched_transaction(run: Callable[..., Any], points: Points) -> Callable[..., Any]:
    @functools.wraps(run)
    def watched(store: Any, *arguments: Any, **named: Any) -> Any:
        at = next(i for i, argument in enumerate(arguments) if callable(argument))
        work = arguments[at]
        name = work.__name__.lstrip("_")

        @functools.wraps(work)
        def seen(*values: Any, **more: Any) -> Any:
            result = work(*values, **more)
            points.passed(f"{name}:uncommitted")
            return result

        points.passed(f"{name}:before")
        result = run(store, *arguments[:at], seen, *arguments[at + 1 :], **named)
        points.passed(f"{name}:committed")
        return result

    return watched


# --- agent: files, calls, steps -------------------------------------------------------------------------------------


def watch_files(points: Points, state: Path) -> None:
    """Pass `sync FILE`, `rename FILE`, `make FOLDER` and `remove FILE`, each `:before` and `:after`, for what lies in the state
    folder; a file is renamed to the name that is passed."""
    state = state.resolve()

    def watch(verb: str, act: Callable[..., Any], subject: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(act)
        def watched(*arguments: Any, **named: Any) -> Any:
            name = None if "dir_fd" in named else file_role(Path(subject(*arguments)), state)
            if name is None:  # of another folder, or a part of one that is removed as a whole
                return act(*arguments, **named)
            points.passed(f"{verb} {name}:before")
            result = act(*arguments, **named)
            points.passed(f"{verb} {name}:after")
            return result

        return watched

    os.fsync = watch("sync", os.fsync, _path_of)
    for name in ("replace", "rename"):
        setattr(os, name, watch("rename", getattr(os, name), lambda source, target, *_: target))
    shutil.rmtree = watch("remove", shutil.rmtree, lambda path, *_: path)  # type: ignore[assignment]
    os.unlink = watch("remove", os.unlink, lambda path, *_: path)
    os.mkdir = watch("make", os.mkdir, lambda path, *_: path)


def _path_of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def file_role(path: Path, state: Path) -> str | None:
    """Return what a file of the state folder is for: its path in it, with N for numbers; None if it lies elsewhere."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow a link that is to be replaced)
    if not path.is_relative_to(state):
        return None
    temporary = TEMPORARY.match(path.name)
    named = path.with_name(temporary["name"]) if temporary else path
    return re.sub(r"\d+", "N", str(named.relative_to(state)))


def watch_calls(points: Points) -> None:
    """Pass `RPC:calling`, `RPC:sent` (handed to the transport) and `RPC:answered` (nothing was done with the reply yet)."""
    from med_duallora.v1.federation_pb2_grpc import FederationServiceStub

    make = FederationServiceStub.__init__

    def __init__(stub: Any, channel: Any) -> None:
        make(stub, channel)
        for method in [name for name in vars(stub) if name[0].isupper()]:
            watch = _watched_stream if method in STREAMS else _watched_call
            setattr(stub, method, watch(method, getattr(stub, method), points))

    FederationServiceStub.__init__ = __init__  # type: ignore[method-assign, assignment]


def _watched_call(method: str, call: Callable[..., Any], points: Points) -> Callable[..., Any]:
    async def watched(request: Any, **options: Any) -> Any:
        points.passed(f"{method}:calling")
        streamed = hasattr(request, "__aiter__")
        under_way = call(_watched_requests(method, request, points) if streamed else request, **options)
        await asyncio.sleep(0)  # the call is begun by a task of its own
        if not streamed:
            points.passed(f"{method}:sent")
        reply = await under_way
        points.passed(f"{method}:answered")
        return reply

    return watched


async def _watched_requests(method: str, requests: AsyncIterator[Any], points: Points) -> AsyncIterator[Any]:
    async for request in requests:
        yield request
        points.passed(f"{method}:message")
    points.passed(f"{method}:sent")


def _watched_stream(method: str, call: Callable[..., Any], points: Points) -> Callable[..., Any]:
    async def watched(request: Any, **options: Any) -> AsyncIterator[Any]:
        points.passed(f"{method}:calling")
        async for part in call(request, **options):
            points.passed(f"{method}:message")
            yield part
        points.passed(f"{method}:answered")

    return watched


def watch_steps(points: Points) -> None:
    """Pass `optimiser step` after each one of a round, and `comparison's step` after each one that the last report takes."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from site_agent.training import local

    train, in_a_round = local.train_round, [False]

    @functools.wraps(train)
    def watched(*arguments: Any, **named: Any) -> Any:
        in_a_round[:] = [named.get("keeper") is not None]
        try:
            return train(*arguments, **named)
        finally:
            in_a_round[:] = [False]

    local.train_round = watched
    register_optimizer_step_post_hook(lambda *_: points.passed(STEP if in_a_round[0] else "comparison's step"))


def send_in_pieces(chunk_bytes: int) -> None:
    """Make either side send chunks of this size: a tiny model's update would otherwise be one message."""
    from shared import chunks
    from site_agent import client

    chunks.split.__defaults__ = (0, chunk_bytes)
    for name in ("CHUNK_BYTES", "SMALLEST_CHUNK_BYTES"):
        setattr(client, name, chunk_bytes)
