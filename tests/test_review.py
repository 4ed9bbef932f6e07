"""Review: every decision is saved at once with who made it and why, an edit that is wrong is not, and undo undoes."""

from __future__ import annotations

import asyncio
import json
import stat
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Label, Static, TextArea

from karma_electric.cli.data.review_screen import Form, ReviewApp
from karma_electric.cli.data.review_view import conversation, findings
from karma_electric.cli.main import main
from karma_electric.core.errors import DataError, InputError
from karma_electric.core.messages import assistant, user
from karma_electric.data.candidate import Candidate
from karma_electric.data.example import Analysis
from karma_electric.data.review_session import ReviewSession, read_sheet
from karma_electric.data.rubric import DIMENSIONS, RUBRIC
from karma_electric.data.store import Reply, Store

ANSWER = "You must act now. The lodger has a right to a letter first."
EVIDENCE = {"rule": "urgency", "points": 3.0, "start": 0, "end": 17, "evidence": "You must act now.", "message": 1}


def candidate(id: str, answer: str = ANSWER, **fields: Any) -> Candidate:
    """A candidate of one question and one answer."""
    return Candidate(id, [user(f"May I, {id}?"), assistant(answer)], **fields)


@pytest.fixture(autouse=True)
def no_editor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Edit on the screen."""
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.delenv("EDITOR", raising=False)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A workbench with three candidates, the first of them graded and penalised."""
    with Store.open(tmp_path / "workbench.db", create=True) as opened:
        first = candidate(
            "a",
            system="Be kind.",
            category="adversarial",
            tags=("rent", "letter"),
            analysis=Analysis("The lodger stays.", "Others see it.", "Silence costs."),
        )
        opened.add([first, candidate("b", "Second answer."), candidate("c", "Third answer.")], origin="x")
        content = first.content_sha256
        scores = dict.fromkeys(DIMENSIONS, 8.0)
        opened.add_reply(Reply("a", content, RUBRIC, "ollama/judge", 0, scores, 32.0, "Sees the lodger."))
        opened.add_penalties("a", content, "rules-v1", [EVIDENCE])
        yield opened


@pytest.fixture
def session(store: Store) -> ReviewSession:
    """A review of all three."""
    return ReviewSession(store, ["a", "b", "c"], "ann")


def on_screen(
    session: ReviewSession, act: Callable[[Pilot[None], ReviewApp], Awaitable[None]], size: tuple[int, int] = (80, 24)
) -> None:
    """Run the screen and do something on it."""

    async def run() -> None:
        app = ReviewApp(session)
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await act(pilot, app)

    asyncio.run(run())


def text_of(app: ReviewApp, name: str) -> str:
    """What one of the parts shows."""
    return str(app.query_one(name, Static).render())


# --- what is shown


def test_the_sheet_has_everything_that_was_found_out(store: Store) -> None:
    store.decide("a", "rejected", reason="too loud", reviewer="ben")
    store.add_removal("a", "near", "z", 0.91, "")
    sheet = read_sheet(store, "a")
    left, right = conversation(sheet), findings(sheet)
    for part in ("system", "Be kind.", "May I, a?", ANSWER):
        assert part in left.plain
    for part in ("32/40", "ollama/judge", "suffering 8", "Sees the lodger.", "urgency -3", "“You must act now.”"):
        assert part in right.plain
    for part in ("adversarial", "rent, letter", "The lodger stays.", "Others see it.", "Silence costs."):
        assert part in right.plain
    for part in ("rejected by ben: too loud", "near: z (0.91)"):
        assert part in right.plain


def test_the_evidence_of_a_penalty_is_marked_where_it_stands(store: Store) -> None:
    shown = conversation(read_sheet(store, "a"))
    marked = [shown.plain[span.start : span.end] for span in shown.spans if "underline" in str(span.style)]
    assert marked == ["You must act now."]


def test_an_ungraded_candidate_an_unreadable_grade_and_no_findings_say_so(store: Store) -> None:
    assert "none yet" in findings(read_sheet(store, "b")).plain
    assert "not looked for yet" in findings(read_sheet(store, "b")).plain
    content = store.get("b").content_sha256
    store.add_reply(Reply("b", content, RUBRIC, "j", 0, None, None, "", error="no JSON"))
    store.add_penalties("b", content, "rules-v1", [])
    assert "unreadable" in findings(read_sheet(store, "b")).plain
    assert "none by rules-v1" in findings(read_sheet(store, "b")).plain


def test_escape_codes_and_markup_are_shown_and_not_obeyed(store: Store) -> None:
    store.add([candidate("evil", "\x1b[2J [red]not red[/red] [/]")], origin="x")

    async def act(pilot: Pilot[None], app: ReviewApp) -> None:
        assert "\u241b[2J [red]not red[/red] [/]" in text_of(app, "#turns")

    on_screen(ReviewSession(store, ["evil"], "ann"), act)


@pytest.mark.parametrize("size", [(80, 24), (50, 20), (200, 60)])
def test_conversation_findings_and_all_keys_are_visible(
    session: ReviewSession, size: tuple[int, int], tmp_path: Path
) -> None:
    async def act(pilot: Pilot[None], app: ReviewApp) -> None:
        for name in ("#talk", "#sheet"):
            region = app.query_one(name).region
            assert region.width >= 30
            assert region.height >= 5
            assert region.right <= size[0]
            assert region.bottom <= size[1]
        if size[0] >= 80:
            picture = app.export_screenshot().replace("&#160;", " ")
            for word in ("1 of 3", "Accept", "Reject", "Edit", "Skip", "Undo", "Search", "Quit", "32/40", "urgency"):
                assert word in picture, word

    on_screen(session, act, size)


# --- keys


def test_accept_saves_at_once_and_goes_on(store: Store, session: ReviewSession) -> None:
    async def act(pilot: Pilot[None], app: ReviewApp) -> None:
        await pilot.press("a")
        assert store.get("a").status == "accepted"
        assert [(r.status, r.reviewer) for r in store.reviews("a")] == [("accepted", "ann")]
        assert "2 of 3  b  (candidate)" in text_of(app, "#place")
        assert "1 accepted" in text_of(app, "#place")

    on_screen(session, act)


def test_reject_asks_why_and_saves_the_reason(store: Store, session: ReviewSession) -> None:
    async def act(pilot: Pilot[None], app: ReviewApp) -> None:
        await pilot.press("r", "enter")
        assert store.get("a").status == "candidate"  # no reason, no decision
        await pilot.press(*"invents a law", "enter")
        await pilot.pause()
        assert [(r.status, r.reason) for r in store.reviews("a")] == [("rejected", "invents a law")]
        await pilot.press("r", *"no", "escape")
        await pilot.pause()
        assert store.reviews("b") == []
        assert session.current == "b"

    on_screen(session, act)


def test_undo_takes_back_the_decision_and_keeps_both_in_the_history(store: Store, session: ReviewSession) -> None:
    async def act(pilot: Pilot[None], app: ReviewApp) -> None:
        await pilot.press("a", "a", "u")
        assert (store.get("a").status, store.get("b").status) == ("accepted", "candidate")
        assert session.current == "b"
        await pilot.press("u")
        assert store.get("a").status == "candidate"
        assert [(r.status, r.reason) for r in store.reviews("a")] == [
            ("accepted", ""),
            ("candidate", "decision undone"),
        ]
        await pilot.press("u")
        assert session.current == "a"

    on_screen(session, act)


def test_skip_and_back_decide_nothing_and_stop_at_the_ends(store: Store, session: ReviewSession) -> None:
    async def act(pilot: Pilot[None], app: ReviewApp) -> None:
        await pilot.press("b", "s", "s", "s", "s")
        assert session.current is None
        assert "That was the last one." in text_of(app, "#turns")
        await pilot.press("a", "r", "e")  # nothing there to decide
        await pilot.press("b")
        assert session.current == "c"
        assert store.reviews() == []

    on_screen(session, act)


def test_search_goes_through_what_is_found_and_back(session: ReviewSession) -> None:
    async def act(pilot: Pilot[None], app: ReviewApp) -> None:
        await pilot.press("slash", *"third", "enter")
        await pilot.pause()
        assert (session.queue, session.current) == (["c"], "c")
        assert "search: third" in text_of(app, "#place")
        await pilot.press("slash", *"absent", "enter")
        await pilot.pause()
        assert session.queue == ["c"]  # nothing found: stays
        await pilot.press("slash", "quotation_mark", "enter")
        await pilot.pause()
        assert session.queue == ["c"]  # no query: stays
        await pilot.press("slash", "enter")
        await pilot.pause()
        assert session.queue == ["a", "b", "c"]

    on_screen(session, act)


def test_undo_after_a_search_finds_its_way_back(store: Store, session: ReviewSession) -> None:
    session.decide("accepted", "")
    session.search("third")
    assert session.undo() == "decision on a"
    assert (session.current, session.query) == ("a", None)


def test_quit(session: ReviewSession) -> None:
    async def act(pilot: Pilot[None], app: ReviewApp) -> None:
        await pilot.press("q")
        assert not app.is_running or app._exit

    on_screen(session, act)


# --- editing


def edited(session: ReviewSession, **changes: Any) -> str:
    """The form of the current candidate, with changes."""
    return json.dumps({**json.loads(session.form()), **changes})


def test_an_edit_on_the_screen_is_saved_and_the_version_before_kept(store: Store, session: ReviewSession) -> None:
    async def act(pilot: Pilot[None], app: ReviewApp) -> None:
        await pilot.press("e")
        await pilot.pause()
        area = app.screen.query_one(TextArea)
        area.load_text(edited(session, tags=["calm"], category="crisis-response"))
        await pilot.press("ctrl+s")
        await pilot.pause()
        found = store.get("a")
        assert (found.tags, found.category, found.system) == (("calm",), "crisis-response", "Be kind.")
        (revision,) = store.revisions("a")
        assert (revision.candidate.tags, revision.reviewer) == (("rent", "letter"), "ann")
        assert "calm" in text_of(app, "#findings")
        await pilot.press("u")
        assert store.get("a").tags == ("rent", "letter")

    on_screen(session, act)


def test_a_bad_edit_is_reported_and_not_saved_and_what_was_typed_stays(store: Store, session: ReviewSession) -> None:
    async def act(pilot: Pilot[None], app: ReviewApp) -> None:
        before = store.get("a")
        await pilot.press("e")
        await pilot.pause()
        area = app.screen.query_one(TextArea)
        for text, said in (
            ("{ no", "not JSON"),
            (edited(session, category="fun"), "category 'fun' is unknown"),
            (edited(session, messages=[]), "'messages' is an empty list"),
            (edited(session, id="other"), "must be an object with the keys"),
        ):
            area.load_text(text)
            await pilot.press("ctrl+s")
            await pilot.pause()
            assert said in str(app.screen.query_one("#problem", Label).render())
            assert area.text == text
        assert store.get("a") == before
        await pilot.press("escape")
        await pilot.pause()
        assert isinstance(app.screen, Form)  # once more to give the changes up
        await pilot.press("escape")
        await pilot.pause()
        assert not isinstance(app.screen, Form)
        assert store.revisions("a") == []

    on_screen(session, act)


def test_leaving_the_form_unchanged_needs_no_second_key(store: Store, session: ReviewSession) -> None:
    async def act(pilot: Pilot[None], app: ReviewApp) -> None:
        await pilot.press("e")
        await pilot.pause()
        await pilot.press("escape")
        await pilot.pause()
        assert not isinstance(app.screen, Form)

    on_screen(session, act)


def write_editor(path: Path, code: str) -> str:
    """An $EDITOR that does this to the file it is given."""
    path.write_text(f"#!{sys.executable}\nimport json, sys\npath = sys.argv[-1]\n{code}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def suspends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A screen that steps aside, as on a real terminal."""
    import contextlib

    monkeypatch.setattr(ReviewApp, "suspend", lambda self: contextlib.nullcontext())


@pytest.mark.usefixtures("suspends")
def test_an_edit_in_an_editor_of_ones_own(
    store: Store, session: ReviewSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "form = json.load(open(path)); form['tags'] = ['from-outside']; json.dump(form, open(path, 'w'))"
    monkeypatch.setenv("EDITOR", write_editor(tmp_path / "my editor", code).replace(" ", "\\ "))

    async def act(pilot: Pilot[None], app: ReviewApp) -> None:
        await pilot.press("e")
        await pilot.pause()
        assert store.get("a").tags == ("from-outside",)

    on_screen(session, act)


@pytest.mark.usefixtures("suspends")
def test_a_bad_edit_in_an_editor_of_ones_own_is_shown_again_and_can_be_corrected(
    store: Store, session: ReviewSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDITOR", write_editor(tmp_path / "editor", "open(path, 'w').write('{ half')"))

    async def act(pilot: Pilot[None], app: ReviewApp) -> None:
        good = edited(session, tags=["corrected"])
        await pilot.press("e")
        await pilot.pause()
        area = app.screen.query_one(TextArea)
        assert area.text == "{ half"
        assert "Not saved" in str(app.screen.query_one("#problem", Label).render())
        area.load_text(good)
        await pilot.press("ctrl+s")
        await pilot.pause()
        assert store.get("a").tags == ("corrected",)

    on_screen(session, act)


@pytest.mark.usefixtures("suspends")
@pytest.mark.parametrize("editor", ["no-such-editor", "false", '"'])
def test_an_editor_that_does_not_work_leaves_the_one_on_the_screen(
    session: ReviewSession, monkeypatch: pytest.MonkeyPatch, editor: str
) -> None:
    monkeypatch.setenv("EDITOR", editor)

    async def act(pilot: Pilot[None], app: ReviewApp) -> None:
        await pilot.press("e")
        await pilot.pause()
        assert isinstance(app.screen, Form)

    on_screen(session, act)


def test_saving_an_unchanged_form_makes_no_revision(store: Store, session: ReviewSession) -> None:
    assert session.save_form(session.form()) is False
    assert store.revisions("a") == []


def test_what_an_import_brought_along_survives_an_edit(store: Store) -> None:
    store.add([candidate("x", extra={"lang": "de", "_form": {"format": "sharegpt", "keys": []}})], origin="x")
    session = ReviewSession(store, ["x"], "ann")
    session.save_form(edited(session, license="MIT"))
    assert store.get("x").extra == {"lang": "de", "_form": {"format": "sharegpt", "keys": []}}


def test_a_form_with_half_a_surrogate_or_nan_is_refused(session: ReviewSession) -> None:
    for text in ('{"category": "\ud83d"}', '{"category": NaN}'):
        with pytest.raises(DataError):
            session.save_form(text)


def test_a_workbench_that_is_locked_meanwhile_is_reported_and_nothing_is_lost(
    store: Store, session: ReviewSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    from karma_electric.core.errors import BusyError

    def busy(*_: object, **__: object) -> None:
        raise BusyError("workbench.db is locked by another process.")

    async def act(pilot: Pilot[None], app: ReviewApp) -> None:
        with monkeypatch.context() as locked:
            locked.setattr(store, "decide", busy)
            await pilot.press("a")
            await pilot.pause()
            assert session.current == "a"
            assert any("locked" in n.message for n in app._notifications)
        await pilot.press("a")
        assert store.get("a").status == "accepted"
        assert app.query(Input) is not None

    on_screen(session, act)


def test_a_search_that_finds_nothing_is_an_error_that_says_so(session: ReviewSession) -> None:
    with pytest.raises(InputError, match="Nothing found"):
        session.search("absent")


# --- without a screen


Karma = Callable[..., tuple[int, str, str]]


@pytest.fixture
def karma(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Karma:
    """Runs `karma data review` on the workbench: (exit code, out, last line of err)."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["karma", "data", "review", "--db", str(tmp_path / "workbench.db"), *words])
        with pytest.raises(SystemExit) as exited:
            main()
        captured = capsys.readouterr()
        return int(exited.value.code or 0), captured.out, (captured.err.splitlines() or [""])[-1]

    return run


def test_scripts_decide_by_id(store: Store, karma: Karma) -> None:
    code, out, _ = karma("--accept", "a,b", "--reject", "c", "--reason", "flat", "--reviewer", "ben", "--json")
    assert code == 0
    assert json.loads(out) == {"accepted": ["a", "b"], "rejected": ["c"]}
    assert [(r.candidate_id, r.status, r.reason, r.reviewer) for r in store.reviews()] == [
        ("a", "accepted", "flat", "ben"),
        ("b", "accepted", "flat", "ben"),
        ("c", "rejected", "flat", "ben"),
    ]


def test_the_reviewer_is_the_user_unless_named(store: Store, karma: Karma, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "cleo")
    assert karma("--accept", "a")[0] == 0
    assert store.reviews("a")[0].reviewer == "cleo"


def test_one_unknown_id_leaves_all_undecided(store: Store, karma: Karma) -> None:
    code, _, error = karma("--accept", "a", "--accept", "z")
    assert (code, store.reviews()) == (2, [])
    assert "no candidate 'z'" in error


def test_a_rejection_without_a_reason_is_refused(store: Store, karma: Karma) -> None:
    code, _, error = karma("--reject", "a")
    assert (code, store.reviews()) == (2, [])
    assert "--reason" in error
    code, _, error = karma("--reject", "a", "--accept", "a", "--reason", "x")
    assert (code, store.reviews()) == (2, [])
    assert "both accepted and rejected" in error


def test_an_id_may_have_a_comma(store: Store, karma: Karma) -> None:
    store.add([candidate("x,y")], origin="x")
    assert karma("--accept", "x,y")[0] == 0
    assert store.get("x,y").status == "accepted"


def test_without_a_terminal_the_error_names_the_way_without_one(karma: Karma) -> None:
    code, _, error = karma()
    assert code == 2
    assert "terminal" in error
    assert "--accept ID" in error
    assert "--reject ID --reason TEXT" in error


def test_unknown_choices_are_refused(karma: Karma) -> None:
    assert "'good' is unknown" in karma("--status", "good")[2]
    assert "'fun' is unknown" in karma("--category", "fun")[2]
