"""The page in a real browser: with and without JavaScript, light and dark, on a desk and on a phone."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, expect

from protocol.verdicts import LogitOutcome
from tests.roles.api.harness import Client, Subnet, key, running, until, with_api
from tests.roles.api.page.populated import HOSTILE, OTHERS, direct, judged, page_settings

Scheme = Literal["light", "dark"]
DESK = (1280, 900)
PHONE = (360, 740)
PATIENCE_MS = 30_000

expect.set_options(timeout=PATIENCE_MS)


@dataclass
class Visit:
    """A browser window, and everything that it complained about or asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@asynccontextmanager
async def visit(
    browser: Browser,
    url: str,
    *,
    size: tuple[int, int] = DESK,
    scheme: Scheme = "light",
    javascript: bool = True,
) -> AsyncIterator[Visit]:
    """Open an address in a fresh window; at the end nothing may have been wrong."""
    context = await browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,
        java_script_enabled=javascript,
        reduced_motion="reduce",
    )
    context.set_default_timeout(PATIENCE_MS)
    window = Visit(await context.new_page())
    page = window.page
    page.on("console", lambda message: _note(window, message))
    page.on("pageerror", lambda error: window.complaints.append(str(error)))
    page.on("request", lambda request: window.requests.append(request.url))
    try:
        answer = await page.goto(url)
        assert answer is not None
        assert answer.status == 200
        yield window
    finally:
        await context.close()
    origin = "/".join(url.split("/")[:3])
    assert window.complaints == []
    assert [address for address in window.requests if not address.startswith(f"{origin}/")] == []


def _note(window: Visit, message: Any) -> None:
    if message.type in ("error", "warning"):
        window.complaints.append(message.text)


def addresses(api: Client) -> dict[str, str]:
    """One page of every kind."""
    return {
        "front": f"{api.url}/",
        "ranked miner": f"{api.url}/miners/{key('orion').ss58_address}",
        "unranked miner": f"{api.url}/miners/{key('corvus').ss58_address}",
        "judged submission": f"{api.url}/submissions/11/page",
        "committed submission": f"{api.url}/submissions/16/page",
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
async def test_every_page_is_accessible_and_fits(
    site: Client, browser: Browser, scheme: Scheme, size: tuple[int, int]
) -> None:
    for name, url in addresses(site).items():
        async with visit(browser, url, size=size, scheme=scheme) as window:
            await window.page.locator(".live.on").wait_for()
            for summary in await window.page.locator("summary").all():
                await summary.click()
            found = await Axe().run(window.page)
            assert found.violations_count == 0, f"{name}: {found.generate_report()}"
            width = await window.page.evaluate("document.documentElement.scrollWidth")
            assert width <= size[0], f"{name} is {width} pixels wide"


async def test_empty_page_is_accessible(api: Client, browser: Browser) -> None:
    async with visit(browser, api.url + "/") as window:
        await expect(window.page.get_by_text("Nobody is ranked yet.")).to_be_visible()
        found = await Axe().run(window.page)
        assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
async def test_colours_follow_the_system(
    site: Client, browser: Browser, scheme: Scheme, is_dark: bool
) -> None:
    async with visit(browser, site.url + "/", scheme=scheme) as window:
        colours = await window.page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        paper, ink = (sum(int(part) for part in colour[4:-1].split(",")) for colour in colours)
        assert (paper < ink) is is_dark


async def test_everything_is_there_without_javascript(site: Client, browser: Browser) -> None:
    async with visit(browser, site.url + "/", javascript=False) as window:
        page = window.page
        await expect(page.get_by_role("heading", name="Round 1")).to_be_visible()
        await expect(page.locator("#leaderboard tbody tr")).to_have_count(10)
        await expect(page.locator("svg.plot")).to_be_visible()
        await expect(page.locator(".ends")).to_contain_text(re.compile("1 d 23 h|2 d 0 h"))
        await expect(page.locator(".live")).to_be_hidden()
        assert await page.locator("head").evaluate("head => head.innerHTML.includes('http-equiv')")
        assert not any("/events" in address for address in window.requests)
        await page.get_by_role("searchbox").fill(key("lyra").ss58_address)
        await page.get_by_role("button", name="Find").click()
        await expect(page.get_by_role("heading", name=key("lyra").ss58_address)).to_be_visible()
        await page.get_by_role("link", name="#2").first.click()
        await expect(page.get_by_role("heading", name="Submission 2")).to_be_visible()


async def test_news_appear_without_a_reload(site: Client, populated: Subnet, browser: Browser) -> None:
    async with visit(browser, site.url + "/") as window:
        page = window.page
        await expect(page.locator(".live.on")).to_have_text("live")
        await page.evaluate("window.isTheSame = true")
        newcomer = key(OTHERS[0])
        await site.check_logits(populated.validator, newcomer, LogitOutcome.PASSED)
        row = page.locator("#leaderboard tbody tr", has_text="402,000,000")
        await expect(row).to_have_count(1)
        await expect(row.locator("td").first).to_have_text("2")
        await expect(page.locator("#plot")).to_contain_text("Place 11")
        await expect(page.locator("#submissions li", has_text="#14")).to_contain_text("place 2")
        populated.chain.advance(37)
        await expect(page.locator("#pending .due")).to_have_count(2)
        await expect(page.locator("#round dd").first).to_have_text("1,538")
        assert await page.evaluate("window.isTheSame")


async def test_countdown_ticks(site: Client, browser: Browser) -> None:
    async with visit(browser, site.url + "/") as window:
        countdown = window.page.locator("time.until")
        shown = {await countdown.inner_text()}

        async def has_ticked() -> bool:
            shown.add(await countdown.inner_text())
            return len(shown) >= 3

        await until(has_ticked, PATIENCE_MS / 1000)
        assert all(text.startswith("1 d 23:") for text in shown)


async def test_keyboard_and_reader_are_not_disturbed_by_news(
    site: Client, populated: Subnet, browser: Browser
) -> None:
    async with visit(browser, site.url + "/") as window:
        page = window.page
        await page.locator(".live.on").wait_for()
        link = page.locator("#leaderboard tbody a.key").nth(3)
        address = await link.get_attribute("href")
        await link.focus()
        await page.locator("#submissions .told").first.evaluate(
            "text => getSelection().selectAllChildren(text)"
        )
        await site.check_logits(populated.validator, key(OTHERS[0]), LogitOutcome.PASSED)
        await expect(page.locator("#leaderboard tbody tr")).to_have_count(11)
        assert await page.evaluate("document.activeElement.getAttribute('href')") == address
        # What somebody selects stays until the selection is gone.
        row = page.locator("#submissions li", has_text="#14")
        await expect(row).to_contain_text("unranked")
        assert await page.evaluate("getSelection().toString().length") > 0
        await page.evaluate("getSelection().removeAllRanges()")
        await expect(row).to_contain_text("place 2")


async def test_leaderboard_keeps_its_scroll_position(
    site: Client, populated: Subnet, browser: Browser
) -> None:
    async with visit(browser, site.url + "/", size=(360, 740)) as window:
        page = window.page
        await page.locator(".live.on").wait_for()
        frame = page.locator("#leaderboard .scroll")
        await frame.evaluate("frame => { frame.scrollLeft = 60; }")
        await site.check_logits(populated.validator, key(OTHERS[0]), LogitOutcome.PASSED)
        await expect(page.locator("#leaderboard tbody tr")).to_have_count(11)
        assert await frame.evaluate("frame => frame.scrollLeft") == 60


async def test_page_comes_back_by_itself_after_a_restart(populated: Subnet, browser: Browser) -> None:
    settings = page_settings(populated)
    async with running(settings) as first:
        port = int(first.url.rpartition(":")[2])
        context = await browser.new_context()
        page = await context.new_page()
        await page.goto(first.url + "/")
        await page.locator(".live.on").wait_for()
    await expect(page.locator(".live")).to_have_text("reconnecting")
    async with running(with_api(settings, port=port)) as second:
        await expect(page.locator(".live")).to_have_text("live")
        await direct(second, key(OTHERS[0]), 200_000)
        await expect(page.locator("#submissions li", has_text="#19")).to_have_count(1)
    await context.close()


async def test_miners_page_follows_its_submission(site: Client, populated: Subnet, browser: Browser) -> None:
    miner = key(OTHERS[0])
    async with visit(browser, f"{site.url}/miners/{miner.ss58_address}") as window:
        await expect(window.page.locator(".reason")).to_contain_text("has not passed a logit check lately")
        await site.check_logits(populated.validator, miner, LogitOutcome.PASSED)
        await expect(window.page.locator(".reason")).to_contain_text("Place 2")


async def test_hostile_strings_do_nothing(site: Client, populated: Subnet, browser: Browser) -> None:
    assert await site.lease(populated.validator) is not None
    lease = await judged(
        site, populated, key("pavo"), target=900_000, gpu=HOSTILE, evidence={"log_tail": HOSTILE}
    )
    for path in ("/", f"/submissions/{lease.submission_id}/page", f"/miners/{key('pavo').ss58_address}"):
        async with visit(browser, site.url + path) as window:
            window.page.on("dialog", lambda dialog: window.complaints.append(dialog.message))
            await window.page.locator(".live.on").wait_for()
            assert await window.page.locator("main script").count() == 0


async def test_inline_script_and_foreign_pictures_are_refused_by_policy(
    site: Client, browser: Browser
) -> None:
    async with visit(browser, site.url + "/") as window:
        await window.page.evaluate(
            """() => {
                const script = document.createElement("script");
                script.textContent = "window.ran = true";
                document.body.append(script);
                const picture = new Image();
                picture.src = "http://example.invalid/x.png";
                document.body.append(picture);
            }"""
        )
        assert await window.page.evaluate("window.ran") is None

        async def both_are_told() -> bool:
            return len(window.complaints) >= 2

        await until(both_are_told)
        assert all("Content Security Policy" in complaint for complaint in window.complaints)
        window.complaints.clear()
        window.requests.clear()
