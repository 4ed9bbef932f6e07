"""The chat page in a real browser, on the real server: what is sent, what is shown, what is said when it fails."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install -e '.[serve]'")
pytest.importorskip("playwright", reason="playwright is not installed: pip install -e '.[dev]'")

from browser import Watched, find_chromium, opened_browser, served
from karma_electric.core.transcripts import read_transcripts
from karma_electric.models.engines.live import LiveRequest
from karma_electric.models.engines.live_scripted import LiveScripted
from karma_electric.models.engines.protocol import TokenDrift
from karma_electric.serve.app import create_app
from karma_electric.serve.settings import Persona, Served, ServeSettings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium here: apt-get install chromium")

CAP = {
    "site": "mlp",
    "layers": [3, 4],
    "thresholds": [-2.0, -4.0],
    "alpha": 0.5,
    "method": {"name": "runtime-q"},
    "cap_rate": 0.21,
    "sha256": "ab" * 32,
}
REFERENCE = {
    "scales": {"3": 1.0, "4": 2.0},
    "ordinary": [-1.0, 0.0, 1.0],
    "alarm": {"level": 1.0, "source": "the highest"},
}
DRIFTS = (-1.5, -0.5, 0.5, 1.5, 2.5)  # one in every step of the legend
EVIL = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script> &amp; done'
KEY = "a-key-of-twenty-four-signs"


def drift_of(number: int) -> TokenDrift:
    drift = DRIFTS[number % len(DRIFTS)]
    return TokenDrift(drift, 1.0 if drift > 0 else 0.0, (-2.0 + drift, -4.0 + 2 * drift))


def by_alpha(request: LiveRequest) -> str:
    """An answer that says which column it was for, and which of its turns."""
    turn = sum(message.role == "user" for message in request.prompt if not isinstance(message, str))
    return f"{'uncapped' if request.alpha == 0 else 'capped'} answer {turn} of five words"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser() as opened:
        yield opened


Open = Callable[..., "Page"]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """Opens a page on a server with an engine; at the end, nothing may have gone wrong or elsewhere."""
    with ExitStack() as stack:
        seen: list[Watched] = []

        def open_page(engine: LiveScripted, path: str = "/", *, width: int = 1280, **settings: Any) -> Page:
            description = Served(
                id="demo",
                persona=Persona("Karma", "Be kind."),
                cap=settings.pop("cap", CAP),
                drift_reference=REFERENCE if engine.can_drift else None,
            )
            app = create_app(engine, ServeSettings(served=description, access_log=False, **settings))
            stack.callback(engine.close)
            base = stack.enter_context(served(app))
            context = browser.new_context(viewport={"width": width, "height": 800}, reduced_motion="reduce")
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(10_000)
            watched = Watched(base)
            watched.watch(page)
            seen.append(watched)
            page.goto(f"{base}{path}")
            return page

        yield open_page
        for watched in seen:
            assert watched.errors == []
            assert watched.elsewhere == []


def scripted(script: Any = by_alpha, **more: Any) -> LiveScripted:
    return LiveScripted(script, **({"alpha": 0.5, "drift": drift_of} | more))


def say(page: Page, text: str) -> None:
    page.fill("#message", text)
    page.press("#message", "Enter")
    done(page)


def done(page: Page) -> None:
    page.wait_for_selector("#stop[disabled]")


def answers(page: Page) -> list[str]:
    return page.locator(".answer .text").all_text_contents()


def contents(request: LiveRequest) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in request.prompt if not isinstance(message, str)]


def asked(engine: LiveScripted) -> list[LiveRequest]:
    """What pages asked, without the server's own warm-up."""
    return [request for request in engine.requests if contents(request)[:1] and contents(request)[0][0] == "system"]


def test_a_conversation_in_two_columns_each_with_its_own_history(visit: Open) -> None:
    engine = scripted()
    page = visit(engine)
    page.wait_for_selector("#compare:checked:enabled")
    say(page, "First.")
    say(page, "Second.")
    assert answers(page) == [f"{name} answer {n} of five words" for n in (1, 2) for name in ("capped", "uncapped")]
    by_column = {alpha: [r for r in asked(engine) if r.alpha == alpha] for alpha in (0.5, 0.0)}
    assert all(len(requests) == 2 for requests in by_column.values())
    for alpha, name in ((0.5, "capped"), (0.0, "uncapped")):
        assert contents(by_column[alpha][1]) == [
            ("system", "Be kind."),
            ("user", "First."),
            ("assistant", f"{name} answer 1 of five words"),
            ("user", "Second."),
        ]
    first = [r.sampling for r in asked(engine)[:2]]
    assert first[0] == first[1]  # the same seed for both
    assert all(r.drift for r in asked(engine))
    foot = page.locator(".answer.first .foot").first.text_content() or ""
    assert "6 tokens" in foot
    assert "cap rate 50%" in foot
    assert "drift mean +0.17 SD, max +2.50 SD" in foot


def test_the_slider_sets_the_strength_of_the_next_answer(visit: Open) -> None:
    engine = scripted()
    page = visit(engine)
    page.wait_for_selector("#alpha:enabled")
    page.focus("#alpha")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.text_content("#alpha-value") == "0.65"
    page.uncheck("#compare")
    say(page, "Hello.")
    page.focus("#alpha")
    page.keyboard.press("End")
    say(page, "And now?")
    assert [request.alpha for request in asked(engine)] == [0.65, 1.0]
    assert page.locator(".answer h3").all_text_contents() == ["Capped, alpha 0.65", "Capped, alpha 1.00"]
    page.check("#compare")
    say(page, "Both again.")
    uncapped = next(request for request in asked(engine) if request.alpha == 0.0)
    assert [text for role, text in contents(uncapped) if role == "assistant"] == [
        f"capped answer {n} of five words" for n in (1, 2)
    ]
    assert "stand in its history" in (page.locator(".answer.second").text_content() or "")


def test_tokens_are_shaded_and_tell_their_numbers_to_the_keyboard(visit: Open) -> None:
    page = visit(scripted())
    say(page, "Hello.")
    spans = page.locator(".answer.first .text span")
    assert [spans.nth(n).get_attribute("class") for n in range(5)] == ["d0", "d1", "d2", "d3", "d4"]
    legend = page.locator("#legend").text_content() or ""
    assert all(words in legend for words in ("below −1 SD", "well below", "over +2 SD", "far beyond", "not measured"))
    page.focus(".answer.first .text")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.get_attribute("#tip", "aria-live") == "polite"
    tip = page.text_content("#tip") or ""
    assert tip.startswith("“ 1”: drift +0.50 SD, beyond the threshold; above it in 2 of 2 capped blocks")
    page.keyboard.press("Escape")
    assert page.is_hidden("#tip")
    page.select_option("#shade", "block-4")
    spans.nth(3).hover()
    assert "at block 4 the projection is −1.00, the threshold −4.00" in (page.text_content("#tip") or "")
    page.select_option("#shade", "none")
    assert spans.nth(4).get_attribute("class") == ""


@pytest.mark.slow
def test_a_finger_reads_a_token_too(visit: Open, browser: Browser) -> None:
    page = visit(scripted())
    base = page.url
    context = browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True)
    touched = context.new_page()
    touched.goto(base)
    touched.wait_for_selector("#compare:enabled")
    say(touched, "Hello.")
    touched.locator(".answer.first .text span").nth(4).tap()
    assert "drift +2.50 SD, far beyond the threshold" in (touched.text_content("#tip:not([hidden])") or "")
    touched.tap(".asked .text")
    assert touched.is_hidden("#tip")
    context.close()


def test_the_chart_has_the_mean_of_every_answer_and_says_it_in_a_table(visit: Open) -> None:
    page = visit(scripted())
    for turn, text in enumerate(("One.", "Two.")):
        say(page, text)
        page.locator(".answer .text").nth(2 * turn + 1).wait_for()  # it may not have begun when `say` looked
        done(page)
    assert page.locator("#chart canvas").count() == 1
    assert "2 answers" in (page.get_attribute("#chart canvas", "aria-label") or "")
    page.click("#chart-numbers summary")
    rows = page.locator("#chart-table tbody tr").all_text_contents()
    assert rows == ["1+0.17+0.17", "2+0.17+0.17"]
    assert "capped" in (page.text_content("#chart-key") or "")


def test_what_a_model_writes_is_text_and_nothing_else(visit: Open) -> None:
    page = visit(scripted([EVIL]))
    say(page, EVIL)
    assert answers(page) == [EVIL, EVIL]
    assert page.locator(".asked .text").text_content() == EVIL
    assert page.locator(".turn img, .turn script").count() == 0
    assert page.evaluate("window.hacked") is None


def in_the_middle_of_an_answer(visit: Open) -> tuple[LiveScripted, Page]:
    """A page that shows the first words of a long answer; the answer after it is short."""
    long = iter(["word " * 200, "short"])
    engine = scripted(lambda request: "warm" if request.sampling.max_new_tokens == 2 else next(long), delay_s=0.05)
    page = visit(engine)
    page.wait_for_selector("#compare:enabled")
    page.uncheck("#compare")
    page.fill("#message", "Tell me everything.")
    page.press("#message", "Enter")
    page.locator(".answer .text span").first.wait_for()
    return engine, page


def test_stop_keeps_what_came_and_retry_asks_again(visit: Open) -> None:
    engine, page = in_the_middle_of_an_answer(visit)
    assert page.locator("#conversation").get_attribute("aria-busy") == "true"
    page.click("#stop")
    done(page)
    kept = answers(page)[0]
    assert 0 < len(kept.split()) < 200
    foot = page.text_content(".foot") or ""
    assert "Stopped." in foot
    assert re.search(r"above the threshold \d+%.*drift mean [+−-]\d", foot), foot
    page.click(".retry")
    done(page)
    assert answers(page) == ["short"]
    assert [contents(request) for request in asked(engine)] == [contents(asked(engine)[0])] * 2
    assert engine.load().active == 0


def test_a_new_conversation_may_be_begun_while_an_answer_comes(visit: Open) -> None:
    engine, page = in_the_middle_of_an_answer(visit)
    page.click("#new")
    done(page)
    assert answers(page) == []
    say(page, "And now?")
    assert answers(page) == ["short"]
    assert contents(asked(engine)[-1]) == [("system", "Be kind."), ("user", "And now?")]


@pytest.mark.slow
def test_escape_stops_before_the_first_word_and_that_turn_is_left_out(visit: Open) -> None:
    engine = scripted(["late", "here"], delay_s=0.6)
    page = visit(engine)
    page.wait_for_selector("#compare:enabled")
    page.uncheck("#compare")
    page.fill("#message", "Never answered.")
    page.press("#message", "Enter")
    page.wait_for_selector("#stop:enabled")
    page.keyboard.press("Escape")
    done(page)
    assert "Nothing of this turn is sent" in (page.text_content(".foot") or "")
    say(page, "Now?")
    assert contents(asked(engine)[-1]) == [("system", "Be kind."), ("user", "Now?")]


@pytest.mark.slow
def test_a_busy_server_is_told_in_words(visit: Open) -> None:
    engine = scripted(["slow word"], delay_s=0.4, rows=1, queue=0)
    page = visit(engine)
    page.wait_for_selector("#compare:checked")
    while engine.load().active:  # the warm-up, on a slow machine
        page.wait_for_timeout(50)
    say(page, "Both at once.")
    feet = page.locator(".foot").all_text_contents()
    assert sum("The server is busy" in foot for foot in feet) == 1
    assert page.locator(".retry").count() == 1


@pytest.mark.slow
def test_a_failing_model_is_told_in_words(visit: Open) -> None:
    def broken(_: LiveRequest) -> str:
        raise RuntimeError("no")

    page = visit(scripted(lambda request: broken(request) if len(request.prompt) > 1 else "warm"))
    say(page, "Hello.")
    assert "server failed" in (page.locator(".foot").first.text_content() or "").lower()
    page.fill("#message", "still usable")
    assert page.is_enabled("#send")


def test_a_server_with_a_key_asks_for_it(visit: Open) -> None:
    page = visit(scripted(), keys=(KEY,))
    page.wait_for_selector("#key:not([hidden])")
    assert page.evaluate("document.activeElement.id") == "key-field"
    page.fill("#key-field", "not-the-key")
    page.keyboard.press("Enter")
    page.wait_for_selector("#model:has-text('does not accept this key')")
    page.fill("#key-field", KEY)
    page.keyboard.press("Enter")
    page.wait_for_selector("#key", state="hidden")
    say(page, "Hello.")
    assert answers(page)[0].startswith("capped")
    assert KEY not in page.content()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cap", "said"), [(None, "No cap is loaded"), (CAP, "compiled into the weights")], ids=["no cap", "baked"]
)
def test_a_strength_that_cannot_be_set_says_why(visit: Open, cap: Any, said: str) -> None:
    engine = scripted(["an answer"], alpha=None, drift=None)
    page = visit(engine, cap=cap)
    page.wait_for_selector(f"#alpha-why:has-text('{said}')")
    assert page.is_disabled("#alpha")
    assert page.is_disabled("#compare")
    say(page, "Hello.")
    assert answers(page) == ["an answer"]
    assert asked(engine)[0].alpha is None
    assert not asked(engine)[0].drift


def test_an_export_is_what_karma_drift_reads(visit: Open, tmp_path: Path) -> None:
    page = visit(scripted())
    say(page, "One.")
    page.focus("#alpha")
    page.keyboard.press("End")
    say(page, "Two.")
    with page.expect_download() as waiting:
        page.click("#export")
    file = tmp_path / "chat.json"
    waiting.value.save_as(file)
    capped, uncapped = read_transcripts(str(file))
    assert [(m.role, m.content) for m in uncapped.messages] == [
        ("system", "Be kind."),
        ("user", "One."),
        ("assistant", "uncapped answer 1 of five words"),
        ("user", "Two."),
        ("assistant", "uncapped answer 2 of five words"),
    ]
    assert capped.answered_at == {0.5: [3], 1.0: [5]}
    assert (capped.alpha, uncapped.alpha, capped.model) == (1.0, 0.0, "demo")
    assert json.loads(file.read_text())[0]["answers"][0]["cap_rate"] == 0.5


@pytest.mark.slow
def test_settings_are_sent_and_wrong_ones_are_not(visit: Open) -> None:
    engine = scripted()
    page = visit(engine)
    page.wait_for_selector("#compare:enabled")
    page.uncheck("#compare")
    page.fill("#system", "")
    page.fill("#temperature", "0")
    page.fill("#max-tokens", "3")
    page.fill("#seed", "7")
    say(page, "Short.")
    (request,) = asked(engine)
    assert (request.sampling.temperature, request.sampling.max_new_tokens, request.sampling.seed) == (0.0, 3, 7)
    assert contents(request)[0] == ("system", "")  # empty is sent, so that no default takes its place
    assert "cut at the limit" in (page.text_content(".foot") or "")
    page.fill("#temperature", "9")
    page.fill("#message", "Hot.")
    page.press("#message", "Enter")
    assert page.locator(".turn").count() == 1
    assert page.input_value("#message") == "Hot."


def test_the_page_is_used_without_a_mouse(visit: Open) -> None:
    engine = scripted()
    page = visit(engine)
    page.wait_for_selector("#compare:enabled")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "message"
    page.keyboard.type("Two")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("lines.")
    page.keyboard.press("Enter")
    done(page)
    assert contents(asked(engine)[0])[-1] == ("user", "Two\nlines.")
    page.wait_for_selector("#said:has-text('uncapped: 6 tokens, mean drift +0.17 SD')", state="attached")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


@pytest.mark.parametrize("path", ["/", "/runs.html"])
def test_nothing_scrolls_sideways_on_a_phone(visit: Open, path: str) -> None:
    runs = Path(__file__).resolve().parent.parent / "results"
    page = visit(scripted(["w" * 300 + " <|im_end|> " + "long " * 30]), path, width=360, runs=runs)
    if path == "/":
        say(page, "x" * 200)
    else:
        page.click("#cases a >> nth=3")
        page.wait_for_selector("#transcript h2")
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_characters_of_several_tokens_are_laid_over_the_text(visit: Open) -> None:
    page = visit(scripted())
    page.wait_for_selector("#compare:enabled")
    laid = page.evaluate(
        """async (pieces) => {
          const { Answer, makeScale } = await import("/js/shading.js");
          const answer = new Answer("an answer");
          const scale = makeScale({}, "drift");
          for (const [text, tokens] of pieces)
            answer.add(text, tokens.map((token) => ({ text: token, drift: 0.5, share_above: 1 })), scale);
          return [answer.element.textContent, answer.spans.map((span) => answer.text.slice(span.from, span.to))];
        }""",
        [
            ["Hi", []],
            [" 😀", ["Hi", " "]],
            ["!", ["\ufffd", "\ufffd", "\ufffd"]],
            [" é", ["!"]],
            ["", [" é"]],
            ["?", []],
        ],
    )
    assert laid == ["Hi 😀! é?", ["Hi", " ", "😀", "!", " é"]]
