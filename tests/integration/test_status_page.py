"""What people see of the status page in a real Chromium while a federation runs, and of the same facts on a terminal."""

import asyncio
import contextlib
import json
import os
import pty
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
import sqlalchemy as sa
from med_duallora.v1 import federation_pb2 as pb
from playwright.async_api import Browser, Page, async_playwright, expect

from aggregator.facts import facts, material
from aggregator.server import RunningServer
from aggregator.store import schema
from tests.support import adapters
from tests.support.raw_site import RawSite, refusal
from tests.support.serving import SITES, make_store, serve

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
ANY = "127.0.0.1:0"
SHOTS = os.environ.get("MED_DUALLORA_SCREENSHOTS", "")
"""A folder to write the pictures of docs/status-page.md to."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield chromium
        await chromium.close()


Opened = Callable[..., AbstractAsyncContextManager[Page]]


@pytest.fixture
def opened(browser: Browser) -> Opened:
    """Open a page; fail if the browser's console has anything to say by its end."""

    @asynccontextmanager
    async def open_(
        url: str, width: int = 1280, scheme: str = "light", silent: bool = True, **options: object
    ) -> AsyncIterator[Page]:
        context = await browser.new_context(
            viewport={"width": width, "height": 1000}, color_scheme=scheme, locale="en-GB", **options
        )
        page = await context.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        await page.goto(url)
        try:
            yield page
            assert said == [] or not silent
        finally:
            await context.close()

    return open_


@dataclass
class Picture:
    """A federation of four sites in its third round: two are in, one trains, one was refused something."""

    running: RunningServer
    url: str
    sites: dict[str, RawSite]


PATIENTS = {"canon": 50, "ge": 77, "philips": 125, "siemens": 273}


async def report(site: RawSite, number: int, auc: float) -> None:
    metrics = {"auc": auc, "balanced_accuracy": auc - 0.06}
    await site.call(
        "ReportEvaluation",
        pb.ReportEvaluationRequest(agent_id=site.agent_id, round=number, version=number, cases=20, metrics=metrics),
    )


async def send(site: RawSite, number: int, seed: int) -> None:
    await site.upload(adapters.delta(site.layout, seed), number, metrics={"train_loss": 0.7 - 0.1 * number})


def as_if_it_took_long(connection: sa.Connection) -> None:
    """Move what has happened into the past: rounds took 22 minutes, the third has been open for as long, philips is away."""
    rounds, agents, now = schema.rounds, schema.agents, time.time()
    for number in (1, 2, 3):
        opened, closed = now - 1300.0 * (4 - number), now - 1300.0 * (3 - number)
        times = {"opened_at": opened, "closed_at": closed if number < 3 else None, "deadline_at": opened + 3600.0}
        connection.execute(rounds.update().where(rounds.c.number == number).values(**times))
    connection.execute(agents.update().where(agents.c.site == "philips").values(last_seen=now - 700.0))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def picture(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Picture]:
    small = adapters.adapter()
    metadata = replace(small.manifest.metadata, base_parameters=50_000, base_blocks=12)
    adapter = replace(small, manifest=replace(small.manifest, metadata=metadata))
    store = make_store(tmp_path_factory.mktemp("picture"), sites=PATIENTS, rounds=8, adapter=adapter)
    async with serve(store, http=ANY) as running:
        assert running.web is not None
        sites = {name: RawSite(running.address, name, patients=count) for name, count in PATIENTS.items()}
        for site in sites.values():
            await site.join()
        for number in (1, 2):
            for k, site in enumerate(sites.values()):
                await send(site, number, 10 * number + k)
            for k, site in enumerate(sites.values()):
                while (await site.wait("WAIT", number, wait_s=5.0)).round == number:
                    pass
                await report(site, number, 0.7 + 0.05 * number + 0.01 * k)
        assert (await refusal(sites["ge"].begin(b"x" * 50, 99)))[1]
        for name in ("canon", "ge"):
            await send(sites[name], 3, 30)
        await running.federation.record(as_if_it_took_long)
        yield Picture(running, running.web.url, sites)
        for site in sites.values():
            await site.channel.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
async def test_it_shows_the_federation_on_a_wide_and_a_narrow_screen_by_day_and_by_night(
    picture: Picture, opened: Opened, width: int, scheme: str
) -> None:
    await picture.sites["siemens"].wait("TRAIN", 3, progress=0.43)
    async with opened(picture.url, width, scheme) as page:
        await expect(page).to_have_title("demo: round 3 is open, 2 of 4 in")
        await expect(page.locator("#summary")).to_have_text("Round 3 is open: 2 of 4 sites are in, 4 are needed.")
        missing = page.locator("#round li")
        await expect(missing.filter(has_text="philips")).to_contain_text("not heard from for 11 min")
        await expect(missing.filter(has_text="siemens")).to_contain_text("training, 43% done")
        await expect(page.locator("#sites tbody tr")).to_have_count(4)
        ge = page.locator("#sites tbody tr[data-key=ge]")
        await expect(ge).to_contain_text("InvalidUpdate: an update of 50 bytes was announced, round 99 takes 400")
        await expect(page.locator("#model figure")).to_have_count(3)
        await expect(page.locator("#model")).to_contain_text("dual (global and local part together)")
        await expect(page.locator("#communication")).to_contain_text("times more")
        await expect(page.locator("#events li").first).to_contain_text("ge is in round 3")
        assert await page.evaluate("document.documentElement.scrollWidth") == width, "nothing to scroll sideways"
        ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground[4:-1].split(","))) > 380) == (scheme == "light")
        small = await page.evaluate(
            "[...document.querySelectorAll('body *')].filter(e => e.textContent.trim() && !e.closest('svg') && "
            "parseFloat(getComputedStyle(e).fontSize) < 13).length"
        )
        assert small == 0, "text that cannot be read on a projector"
        if SHOTS and (width, scheme) in ((1280, "light"), (390, "dark")):
            await page.screenshot(path=f"{SHOTS}/status-page-{width}.png")


async def test_it_renews_itself_without_losing_focus_scroll_or_what_is_opened(picture: Picture, opened: Opened) -> None:
    async with opened(picture.url, 390) as page:
        await page.locator("figure summary").first.click()
        box = page.locator("#communication .scroll")
        await box.focus()
        await box.evaluate("e => { e.scrollLeft = 120 }")
        before = await box.evaluate("e => e.getBoundingClientRect().top")
        await page.evaluate("window.row = document.querySelector('tr[data-key=philips]')")
        await send(picture.sites["philips"], 3, 33)
        await expect(page.locator("#summary")).to_have_text(
            "Round 3 is open: 3 of 4 sites are in, 4 are needed.", timeout=15_000
        )
        await expect(page).to_have_title("demo: round 3 is open, 3 of 4 in")
        assert await page.evaluate("document.activeElement.getAttribute('aria-label')") == "Bytes by site and round"
        assert await box.evaluate("e => e.scrollLeft") == 120
        assert abs(await box.evaluate("e => e.getBoundingClientRect().top") - before) < 2, (
            "what is read stays where it is"
        )
        assert await page.locator("figure details").first.get_attribute("open") is not None
        assert await page.evaluate("window.row.isConnected && window.row.textContent.includes('in')"), (
            "the row is the same"
        )


async def test_times_tick_between_two_fetches(picture: Picture, opened: Opened) -> None:
    async with opened(picture.url) as page:
        await page.route("**/", lambda route: route.abort())
        seen = page.locator("#sites tr[data-key=siemens] time")
        first = await seen.last.inner_text()
        await expect(seen.last).not_to_have_text(first, timeout=5_000)
        deadline = page.locator(".tile time[data-until]").first
        assert await deadline.inner_text() == "38 min"


async def test_it_says_when_the_server_does_not_answer_and_when_it_does_again(picture: Picture, opened: Opened) -> None:
    async with opened(picture.url, silent=False) as page:
        await page.route("**/", lambda route: route.abort())
        notice = page.get_by_role("alert")
        await expect(notice).to_contain_text("No answer from the aggregator since", timeout=10_000)
        await expect(page.locator("#sites tbody tr")).to_have_count(4)
        await page.unroute("**/")
        await expect(page.locator("#notice")).to_be_empty(timeout=10_000)


async def test_it_is_used_by_keyboard_and_understood_by_a_screen_reader(picture: Picture, opened: Opened) -> None:
    async with opened(picture.url) as page:
        await page.keyboard.press("Tab")
        assert await page.evaluate("document.activeElement.textContent") == "Skip to the round"
        await page.keyboard.press("Enter")
        assert await page.evaluate("document.activeElement.id") == "round"
        await page.keyboard.press("Tab")
        assert await page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        for role, name in (
            ("banner", None),
            ("main", None),
            ("contentinfo", None),
            ("region", "Sites"),
            ("region", "Events"),
        ):
            await expect(page.get_by_role(role, name=name) if name else page.get_by_role(role)).to_be_attached()
        table = page.get_by_role("table", name="Sites")
        await expect(table.get_by_role("columnheader")).to_have_count(8)
        await expect(table.get_by_role("rowheader")).to_have_count(4)
        await expect(page.get_by_role("img")).to_have_count(3)


async def test_it_can_be_read_without_javascript(picture: Picture, opened: Opened) -> None:
    async with opened(picture.url, java_script_enabled=False) as page:
        await expect(page.locator("#sites tbody tr")).to_have_count(4)
        await expect(page.locator("#events time").first).to_contain_text("UTC")


async def test_page_json_and_the_command_tell_the_same(picture: Picture) -> None:
    async with aiohttp.ClientSession() as session, session.get(picture.url + "status.json") as answer:
        told = json.loads(await answer.text())
    store = picture.running.federation.store
    here = facts.make(store.read(material.read, "demo"), told["at"])
    assert told["communication"].pop("since") is not None
    own = {"since", "counted"}
    for part in ("sites", "rounds"):
        told["communication"][part] = [
            {k: v for k, v in one.items() if k not in own} for one in told["communication"][part]
        ]
        here["communication"][part] = [
            {k: v for k, v in one.items() if k not in own} for one in here["communication"][part]
        ]
    here["communication"].pop("since")
    moving = ("sites", "why_missing")  # heartbeats come in between
    assert {k: v for k, v in told.items() if k not in moving} == {k: v for k, v in here.items() if k not in moving}


# --- the same on a terminal -----------------------------------------------------------------------------------------


async def test_serve_prints_the_page_and_watch_follows_until_the_end(tmp_path: Path) -> None:
    """Both as processes; the watching one on a terminal of its own (a pseudo-terminal)."""
    store = make_store(tmp_path)
    serve = await process("serve", "--store", store, "--listen", "127.0.0.1:0", "--plain", "--http", "127.0.0.1:0")
    master, slave = pty.openpty()
    watch = await process("status", "--store", store, "--watch", terminal=slave)
    os.close(slave)
    screen = asyncio.create_task(asyncio.to_thread(read_all, master))
    try:
        assert serve.stdout is not None
        address = (await serve.stdout.readline()).decode().split()[3]
        url = (await serve.stdout.readline()).decode().removeprefix("status page at ").strip()
        async with aiohttp.ClientSession() as session, session.get(url + "status.json") as answer:
            assert (await answer.json())["round"] == 1
        sites = [RawSite(address, name) for name in SITES]
        await asyncio.gather(*(site.take_part(seed=k) for k, site in enumerate(sites)))
        for site in sites:
            await site.channel.close()
        assert await asyncio.wait_for(watch.wait(), 60.0) == 0, "it ends with the federation"
        text = (await asyncio.wait_for(screen, 20.0)).decode()
        assert "round 2 closed (2 of 2 closed): 3 of 3 in, 3 needed" in text
        assert all(name in text for name in SITES)
        serve.terminate()
        assert await asyncio.wait_for(serve.wait(), 60.0) == 0
    finally:
        for one in (serve, watch):
            if one.returncode is None:
                one.kill()
                await one.wait()
        os.close(master)


def read_all(terminal: int) -> bytes:
    """Return everything that is written to a terminal until nobody has it open any more."""
    shown = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(terminal, 65536):
            shown += chunk
    return shown


async def process(*arguments: str, terminal: int | None = None) -> asyncio.subprocess.Process:
    """Start the aggregator's command, its output piped or on a terminal."""
    command = [sys.executable, "-c", "from aggregator.cli import main; main()", *arguments]
    where = asyncio.subprocess.PIPE if terminal is None else terminal
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    return await asyncio.create_subprocess_exec(
        *command, stdout=where, stderr=asyncio.subprocess.DEVNULL, env=environment
    )
