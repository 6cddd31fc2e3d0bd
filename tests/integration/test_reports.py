"""Both reports of a real federation: while it runs, when it is finished, and in a real Chromium."""

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import async_playwright

from site_agent.agent import Agent
from site_agent.client import Joined, Task
from site_agent.consent import Pins
from site_agent.report import REPORT
from site_agent.training.site import SiteTrainer
from site_agent.view import Silent
from tests.integration import federation
from tests.integration.federation import Materials
from tests.support.serving import serve

pytestmark = pytest.mark.integration
TWO = ("siemens", "philips")


async def report_of(state: Path, *more: object) -> dict[str, Any]:
    shown = await federation.run_beside("site-agent", "report", "--state", state, "--json", *more)
    assert shown.returncode == 0, shown.stderr
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


class Curious(Agent):
    """Reads its own report when the second round begins."""

    seen: dict[str, Any] | None = None

    async def _do_round(self, joined: Joined, trainer: SiteTrainer, task: Task) -> None:
        if task.round == 2 and Curious.seen is None:
            Curious.seen = await report_of(self._config.state)
        await super()._do_round(joined, trainer, task)


async def test_a_federation_is_reported_on_by_both_sides(materials: Materials, tmp_path: Path) -> None:
    store = federation.create_store(tmp_path, materials.adapter, TWO)
    async with serve(store) as running:
        configs = [
            federation.site_config(materials, tmp_path, running.address, site, agreed=Pins(arms=site == "siemens"))
            for site in TWO
        ]
        await federation.finish(Curious(configs[0], Silent()), Agent(configs[1], Silent()))

    assert Curious.seen is not None
    assert not Curious.seen["finished"]
    assert "after round 2" in Curious.seen["missing"][0]
    assert [one["round"] for one in Curious.seen["rounds_here"]] == [1]

    html = [tmp_path / "site.html", tmp_path / "federation.html"]
    state = configs[0].state
    found = await report_of(state, "--html", html[0], "--cases", tmp_path / "cases.csv")
    written, compared = json.loads((state / REPORT).read_text()), found["compared"]
    assert compared["cases"] == written["arms"]["dual"]["test"]["n"]
    for arm, figures in written["arms"].items():
        mine = compared["arms"][arm]
        assert mine["auc"]["value"] == pytest.approx(figures["test"]["auc"])
        for point, own in (("at_half", "at_half"), ("at_validation", "at_threshold")):
            for rate in ("balanced_accuracy", "sensitivity", "specificity"):
                assert mine[own][rate]["value"] == pytest.approx(figures["test"][point][rate])
        assert mine["at_threshold"]["threshold"] == pytest.approx(figures["test"]["at_validation"]["threshold"])
    total = len((tmp_path / "cases.csv").read_text().splitlines()) - 1
    assert total == written["validation_patients"] + written["test_patients"]

    shown = await federation.run_beside("aggregator", "report", "--store", store, "--html", html[1], "--json")
    assert shown.returncode == 0, shown.stderr
    theirs = json.loads(shown.stdout)
    (told,) = theirs["arms"]
    assert (told["site"], told["cases"]) == ("siemens", compared["cases"])
    for arm, figures in written["arms"].items():
        mine = {"auc": figures["test"]["auc"], **figures["test"]["at_validation"]}
        del mine["threshold"]
        assert told["figures"][arm] == pytest.approx(mine), "what its own report says, and no threshold"
    assert (theirs["rounds_closed"], theirs["digest"]) == (2, written["adapter"]["digest"])
    assert theirs["verified"]["ok"]
    assert theirs["audit"]["ok"]
    assert [site["authenticated"] for site in theirs["sites"]] == [False, False]
    assert theirs["security"][0].startswith("NOT authenticated")

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for path in html:
            for width, scheme in ((1280, "light"), (390, "dark")):
                page = await browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
                noise: list[str] = []
                page.on("console", lambda message, noise=noise: noise.append(message.text))  # type: ignore[misc]
                page.on("request", lambda request, noise=noise: noise.append(request.url))  # type: ignore[misc]
                await page.goto(path.as_uri())
                assert noise == [path.as_uri()]
                assert await page.evaluate("document.documentElement.scrollWidth") == width
                ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
                assert ground == ("rgb(247, 247, 245)" if scheme == "light" else "rgb(20, 23, 27)")
        await browser.close()
