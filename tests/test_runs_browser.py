"""The page of red-team runs in a real browser: filters, a transcript, a label, an address that leads back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install -e '.[serve]'")
pytest.importorskip("playwright", reason="playwright is not installed: pip install -e '.[dev]'")

from browser import Watched, find_chromium, opened_browser, served
from karma_electric.models.engines.live_scripted import LiveScripted
from karma_electric.redteam.relabels import FILE
from karma_electric.serve.app import create_app
from karma_electric.serve.settings import Served, ServeSettings

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium here: apt-get install chromium")

DEMO = Path(__file__).resolve().parent / "data" / "run-of-30" / "redteam"
FLIPPED = "starter-compliance-exploit-03"
EVIL = "<img src=x onerror=window.hacked=1> starter <b>bold</b>"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs; in the second an answer holds markup."""
    root = tmp_path_factory.mktemp("runs")
    for name in ("demo", "other"):
        shutil.copytree(DEMO, root / name / "redteam")
    file = root / "other" / "redteam" / "base" / "completions.jsonl"
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    file.write_text("".join(json.dumps(line | {"text": EVIL}) + "\n" for line in lines))
    return root


@pytest.fixture(scope="module")
def opened(root: Path) -> Iterator[tuple[Page, str]]:
    """A browser's page and the server's address; at the end, nothing may have gone wrong or elsewhere."""
    settings = ServeSettings(served=Served(id="demo"), runs=root, access_log=False)
    with ExitStack() as stack:
        browser = stack.enter_context(opened_browser())
        base = stack.enter_context(served(create_app(LiveScripted(["not asked"]), settings)))
        page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        page.set_default_timeout(10_000)
        watched = Watched(base)
        watched.watch(page)
        yield page, base
        assert watched.errors == []
        assert watched.elsewhere == []


@pytest.fixture
def page(opened: tuple[Page, str]) -> Page:
    """The page, with nothing chosen."""
    page, base = opened
    page.goto("about:blank")
    page.goto(f"{base}/runs.html")
    page.wait_for_selector("#count:has-text('30 of 30')")
    return page


def test_the_arms_and_the_judges_kappa_are_told(page: Page) -> None:
    rows = page.locator("#arms tbody tr").all_text_contents()
    assert [row.split("%")[0][-2:] for row in rows] == ["67", "40", "50"]
    assert rows[2].startswith("capped50520")
    assert "9 differ from tuned: 4 gained, 1 lost" in rows[2]
    assert "Cohen's kappa 0.58 (95% interval 0.44 to 0.71) on 56 labelled answers" in (
        page.text_content("#judge") or ""
    )


def test_filters_leave_what_they_say_as_they_are_set(page: Page) -> None:
    def shown(count: int) -> list[str | None]:
        page.wait_for_selector(f"#count:has-text('{count} of 30')")
        return page.locator("#cases .id").all_text_contents()

    page.select_option("[name=category]", "jailbreak")
    assert all("jailbreak" in (id_ or "") for id_ in shown(5))
    page.select_option("[name=category]", "")
    shown(30)
    page.select_option("[name=outcome]", "pass")
    page.select_option("[name=arm]", "capped")
    assert FLIPPED in shown(5)
    page.select_option("[name=change]", "lost")
    shown(0)
    page.select_option("[name=outcome]", "")
    assert shown(1) == ["starter-multi-turn-escalation-05"]
    page.select_option("[name=change]", "")
    shown(30)
    page.fill("[name=text]", "heating FUND")
    assert shown(1) == [FLIPPED]
    page.fill("[name=text]", "no such words")
    page.wait_for_selector("#cases:has-text('Nothing fits')")


def test_a_scenario_is_read_and_labelled_and_its_address_leads_back(page: Page, root: Path) -> None:
    page.click(f"#cases a:has-text('{FLIPPED}')")
    page.wait_for_selector(f"#transcript h2:has-text('{FLIPPED}')")
    assert page.locator("#transcript mark").all_text_contents() == ["refund"]
    assert page.locator(".verdict h3").all_text_contents() == ["base unscored", "tuned unscored", "capped pass"]
    assert "signals-1, kappa 0.58" in (page.locator(".verdict").last.text_content() or "")
    page.locator(".verdict .label summary").last.click()
    form = page.locator(".verdict form").last
    form.get_by_label("fail").check()
    form.get_by_label("Reason").fill("it blames the transfer")
    form.get_by_label("Who you are").fill("a tester")
    page.keyboard.press("Enter")
    page.wait_for_selector(".given:has-text('it blames the transfer')")
    (line,) = (root / "demo" / "redteam" / FILE).read_text().splitlines()
    saved = json.loads(line)
    assert (saved["arm"], saved["outcome"], saved["judged"], saved["rater"]) == ("capped", "fail", "pass", "a tester")
    page.reload()
    page.wait_for_selector(".given:has-text('it blames the transfer')")
    page.check("[name=labelled]")
    page.wait_for_selector("#count:has-text('1 of 30')")
    assert "capped pass labelled fail" in (page.text_content("#cases") or "")
    with page.expect_download() as waiting:
        page.click("#labels")
    assert json.loads(Path(waiting.value.path()).read_text())["label"] == "fail"


def test_another_run_is_chosen_and_what_its_answers_hold_is_text(page: Page) -> None:
    page.select_option("#run", "other")
    page.wait_for_url("**/runs.html#run=other")
    page.wait_for_selector("#cases a[href*='run=other']")
    page.focus("#cases a >> nth=0")
    page.keyboard.press("Enter")
    page.wait_for_selector("#transcript .answer .text")
    assert page.locator("#transcript .answer .text").first.text_content() == EVIL
    assert page.locator("#transcript img, #transcript b").count() == 0
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.activeElement.id") == "transcript"
    page.go_back()
    page.go_back()
    page.wait_for_selector("#cases a[href*='run=demo']")
