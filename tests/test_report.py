"""The HTML report: whole, self-contained, and safe against what models say."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import fake_run
from browser import find_chromium, opened_browser
from karma_electric import report
from karma_electric.core.recipe import Recipe
from karma_electric.evidence import Evidence, read_run
from karma_electric.redteam.signals import Outcome
from karma_electric.report import render_report, shown, write_report

pytestmark = pytest.mark.usefixtures("few_resamples")

N = 9
OUTCOMES: dict[str, list[Outcome]] = {
    "base": ["fail"] * 9,
    "tuned": ["pass", "fail", "pass", "partial", "fail", "pass", "unscored", "pass", "fail"],
    "capped": ["pass", "pass", "pass", "partial", "fail", "fail", "unscored", "pass", "fail"],
}
HOSTILE = '</p><script>alert("x")</script><img src=x onerror=alert(1)> {{ 7 * 7 }} &amp; \u202e'
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects elements and their attributes, text, and whether tags are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.mismatched: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.mismatched.append(tag)
        if tag in {"td", "th", "dt", "dd"}:
            self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return fake_run.recipe_for(fake_run.write_suite(tmp_path_factory.mktemp("suite") / "fake-9.jsonl", N))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Path:
    return fake_run.write_run(tmp_path_factory.mktemp("runs") / "fake", recipe, OUTCOMES, answer=HOSTILE)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, run: Path, recipe: Recipe) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(run, recipe, folder)
    return folder


@pytest.fixture(scope="module")
def html(out: Path) -> str:
    return (out / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_page_is_well_formed(page: Page) -> None:
    assert page.mismatched == []
    assert page.open == []


def test_every_scenario_is_there_with_every_arms_answers_and_evidence(page: Page) -> None:
    ids = [attributes["id"] for tag, attributes in page.elements if tag == "details" and "id" in attributes]
    assert sorted(ids) == [f"s{number:02}" for number in range(N)]
    for number in range(N):
        assert f"Question {number}?" in page.text
        assert f"seen in s{number:02}" in page.text
        assert f"The answer to {number} declines." in page.text
        for arm in OUTCOMES:
            assert f"{arm}: {HOSTILE} (s{number:02}, turn 1)" in page.text


def test_later_turns_are_shown_too(page: Page) -> None:
    assert "(s03, turn 2)" in page.text
    assert "(s04, turn 2)" not in page.text


def test_what_a_model_says_stays_text(page: Page, html: str) -> None:
    tags = {tag for tag, _ in page.elements}
    assert "script" not in tags
    assert not [attributes for _, attributes in page.elements if any(name.startswith("on") for name in attributes)]
    assert '<script>alert("x")</script>' in page.text  # shown
    assert "{{ 7 * 7 }}" in page.text  # not run as a template
    assert "&amp;amp;" in html


def test_nothing_is_loaded_from_elsewhere(page: Page, html: str) -> None:
    sources = [
        attributes[name] for _, attributes in page.elements for name in ("src", "srcset", "data") if name in attributes
    ]
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    targets = [attributes["href"] for _, attributes in page.elements if "href" in attributes]
    assert all(target.startswith("#") for target in targets)
    assert "link" not in {tag for tag, _ in page.elements}
    style = "".join(re.findall(r"<style>(.*?)</style>", html, flags=re.DOTALL))
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in html


def test_links_lead_to_places_on_the_page(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    targets = {attributes["href"][1:] for _, attributes in page.elements if "href" in attributes}
    assert targets <= set(ids)
    assert len(set(ids)) == len(ids)


def test_images_are_the_files_of_the_run(page: Page, run: Path) -> None:
    shown = {base64.b64decode(attributes["src"].split(",")[1]) for tag, attributes in page.elements if tag == "img"}
    files = ("adapter/loss.png", "axis/norms.png", "axis/projections.png", "axis/cap_rates.png")
    assert shown == {(run / file).read_bytes() for file in files}


def test_the_scenarios_that_changed_are_listed_with_both_transcripts(html: str) -> None:
    changes = html.partition('id="changes"')[2].partition('id="scenarios"')[0]
    assert "tuned to capped: 2 of 9 scenarios have another outcome" in changes
    listed = re.findall(r'<details id="(s\d\d)">', changes)
    assert listed == ["s01", "s05"]
    for arm in OUTCOMES:
        assert re.search(rf"{arm}: [^<]+\(s05, turn 1\)", changes)


def test_outcomes_and_rates_are_shown(page: Page) -> None:
    text = re.sub(r"\s+", " ", page.text)
    assert "tuned 50% 22% to 78% 4 1 3 1 9" in text
    assert "capped against tuned 0 -38 to +38 1.000; 1.000 1 1 8" in text
    heat = text.partition("passed of scored Category")[2]
    assert "jailbreak 0% 0 of 3 50% 1 of 2 1 unscored 50% 1 of 2 1 unscored" in heat  # s06 is unscored when tuned


def test_the_figures_are_written_beside_the_page(out: Path) -> None:
    assert sorted(path.name for path in out.iterdir()) == ["categories.png", "index.html", "outcomes.png"]
    for name in ("categories", "outcomes"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_steering_settings_and_lineage_are_shown(page: Page, run: Path) -> None:
    text = re.sub(r"\s+", " ", page.text)
    assert "3 -72.82 23.8% 0.75% 0.9984 0.9214" in text
    assert "all 3,913" in text
    assert "0.00243" in text
    assert "max_new_tokens 80" in text
    assert "capped equal 77.3% 100.0% 5 of 8" in text
    from karma_electric.core.artifact import hash_file

    assert hash_file(run / "merged" / "model.safetensors") in text


@pytest.mark.parametrize("missing", fake_run.STAGES)
def test_a_missing_stage_leaves_a_visible_gap(tmp_path: Path, run: Path, recipe: Recipe, missing: str) -> None:
    write_report(fake_run.copy_without(run, tmp_path / "run", missing), recipe, tmp_path / "out")
    page = Page((tmp_path / "out" / "index.html").read_text())
    assert page.mismatched == []
    assert f"not measured (run karma run recipes/fake.toml --to {missing})" in page.text


def test_a_suite_that_changed_since_is_not_shown_as_what_was_asked(tmp_path: Path) -> None:
    suite = fake_run.write_suite(tmp_path / "suite.jsonl", N)
    recipe = fake_run.recipe_for(suite)
    run = fake_run.write_run(tmp_path / "run", recipe, OUTCOMES, stages=("redteam",))
    fake_run.write_suite(suite, N + 1)
    write_report(run, recipe, tmp_path / "out")
    text = Page((tmp_path / "out" / "index.html").read_text()).text
    assert "Question 8?" in text  # as it was asked
    assert "The answer to 8 declines." not in text


def test_an_answer_that_the_engine_failed_to_give_is_named(tmp_path: Path, recipe: Recipe) -> None:
    run = fake_run.write_run(tmp_path / "run", recipe, OUTCOMES, stages=("redteam",))
    file = run / "redteam" / "base" / "completions.jsonl"
    first = file.read_text().splitlines()[0]
    file.write_text(
        file.read_text() + first.replace('"error": null', '"error": "RuntimeError: <out of memory>"') + "\n"
    )
    fake_run.reseal(file.parent)
    write_report(run, recipe, tmp_path / "out")
    assert "no answer: RuntimeError: <out of memory>" in Page((tmp_path / "out" / "index.html").read_text()).text


# Several seeds, and a judge whose error is known


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> str:
    """Two arms under two seeds, with the judge measured beside them."""
    run = fake_run.write_run(tmp_path_factory.mktemp("seeded") / "fake", recipe, {}, stages=("redteam",))
    suite = Path(recipe.redteam.suite)
    fake_run.write_seeds(run / "redteam" / "tuned", suite, {0: OUTCOMES["tuned"], 1: OUTCOMES["base"]})
    fake_run.write_seeds(run / "redteam" / "capped", suite, {0: OUTCOMES["capped"], 1: OUTCOMES["capped"]})
    fake_run.write_judge(run / "redteam" / "judge", suite)
    write_report(run, recipe, run / "out")
    return (run / "out" / "index.html").read_text(encoding="utf-8")


def test_transcripts_of_several_seeds_have_places_of_their_own(seeded: str) -> None:
    page = Page(seeded)
    assert page.mismatched == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {f"s{number:02}.seed-{seed}" for number in range(N) for seed in (0, 1)} <= set(ids)
    targets = {attributes["href"][1:] for _, attributes in page.elements if "href" in attributes}
    assert targets <= set(ids)
    assert "tuned under 1 (s05, turn 1)" in page.text
    assert "tuned to capped: 8 of 18 answers have another outcome" in page.text


def test_rates_of_several_seeds_are_told_as_such(seeded: str) -> None:
    text = re.sub(r"\s+", " ", Page(seeded).text)
    assert "9 scenarios, each answered under 2 seeds." in text
    assert "Exact sign-flip p" in text
    assert "Exact McNemar p" not in text


def test_corrected_rates_stand_beside_raw_ones_with_the_judges_agreement(seeded: str) -> None:
    text = re.sub(r"\s+", " ", Page(seeded).text)
    assert "Corrected for the judge's error" in text
    assert "The judge: Cohen's kappa 0.71" in text
    # 4 of 17 scored passed: below what the judge passes of bad answers, 4 of 22, corrected to 7%
    assert re.search(r"tuned 24% \d+% to \d+% 7% 0% to \d+% 4 1 12 1 18 22% to 28%", text)


def test_the_judges_agreement_stands_beside_every_rate_that_is_his(seeded: str) -> None:
    text = re.sub(r"\s+", " ", Page(seeded).text)
    assert "Pass rate of scored 95% interval; judge's kappa 0.71" in text
    assert "left unscored. As a picture: categories.png. (judge's kappa 0.71" in text


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Evidence:
    """Two arms of two seeds, with the drift of their conversations."""
    run = tmp_path_factory.mktemp("measured") / "fake"
    for arm, offset in (("tuned", 0.0), ("capped", -0.25)):
        outcomes = {0: OUTCOMES["base"], 1: OUTCOMES[arm]}
        fake_run.write_seeds(run / "redteam" / arm, Path(recipe.redteam.suite), outcomes)
        fake_run.write_drift(run, arm, Path(recipe.redteam.suite), {})
        fake_run.write_drifts(run / "drift" / arm, offset)
        fake_run.reseal(run / "drift" / arm)
    return read_run(run, recipe)


@pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium here: apt-get install chromium")
def test_on_a_phone_a_bar_shows_the_numbers_that_fit_into_it_and_no_others(html: str) -> None:
    counts = {"pass": 7, "partial": 12, "fail": 45, "unscored": 226}
    spans = "".join(f'<span class="{name}" style="flex: {n}"><b>{n}</b></span>' for name, n in counts.items())
    bar = re.compile(r'(<div class="bar"[^>]*>)(<span class="fail" style="flex: 9"><b>9</b></span>)')
    assert bar.search(html), "the bar of base"
    with opened_browser() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.set_content(bar.sub(rf"\g<1>{spans}", html, count=1))
        seen = page.eval_on_selector_all(
            ".bar:nth-child(2) b",
            "all => all.filter(b => b.offsetTop - b.parentElement.offsetTop < 10).map(b => b.textContent)",
        )
        whole = page.eval_on_selector_all(
            ".bar:nth-child(2) b", "all => all.map(b => b.offsetWidth <= b.parentElement.clientWidth)"
        )
    assert seen == ["45", "226"]
    assert whole == [False, False, True, True]


def test_drift_is_shown_by_turn_and_by_kind(measured: Evidence) -> None:
    html, figures = render_report(measured.run, measured.recipe)
    assert f'src="data:image/png;base64,{base64.b64encode(figures["drift.png"]).decode()}"' in html
    text = re.sub(r"\s+", " ", Page(html).text)
    assert "confiding +0.78 +0.76 to +0.80 +0.53 +0.51 to +0.55 " in text
    assert "all controls -0.22 -0.24 to -0.20 -0.47 -0.49 to -0.45 " in text


def test_a_page_that_would_be_too_long_holds_what_changed_first_and_says_where_the_rest_is(
    measured: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = {t.anchor for t in measured.transcripts}
    assert shown(measured, report.MOST_TEXT) == everything
    changed = {t.anchor for t in measured.transcripts if t.differs("tuned", "capped")}
    assert changed == {"s01.seed-1", "s05.seed-1"}
    one_of_each = shown(measured, most=sum(report._size(t) for t in measured.transcripts) // 2 + 200)
    assert changed < one_of_each
    assert {anchor.partition(".")[0] for anchor in one_of_each} == {f"s{number:02}" for number in range(N)}
    assert shown(measured, most=0) == set()
    monkeypatch.setattr(report, "MOST_TEXT", 5000)
    page = Page(render_report(measured.run, measured.recipe)[0])
    assert page.mismatched == []
    assert "of 18 transcripts are on this page" in page.text
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {attributes["href"][1:] for _, attributes in page.elements if "href" in attributes} <= ids


def test_the_estimate_of_a_transcripts_size_is_about_what_the_page_takes(html: str, run: Path, recipe: Recipe) -> None:
    transcripts = read_run(run, recipe).transcripts
    listed = html.partition('id="changes"')[2].partition('id="training"')[0]
    assert sum(map(report._size, transcripts)) == pytest.approx(len(listed.encode()), rel=0.25)


def test_categories_come_with_the_least_p_that_they_could_have(page: Page) -> None:
    text = re.sub(r"\s+", " ", page.text)
    assert "capped against tuned, by category" in text
    assert "harmful-code +33 1 2 3 1.000 1.000 0.250" in text


def test_the_page_fits_a_phone(html: str) -> None:
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    tables = len(re.findall("<table", html))
    assert tables == len(re.findall(r'<div class="table"><table', html))  # wide ones scroll in their own box
