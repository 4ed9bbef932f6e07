"""The review screen: the conversation on the left, what was found out about it on the right, one key per decision.

Everything that is decided goes through a `ReviewSession`, which saves it at once.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import ClassVar

from textual.app import App, ComposeResult, SuspendNotSupported
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, Label, Static, TextArea

from karma_electric.cli.data.review_view import conversation, findings
from karma_electric.core.errors import KarmaError
from karma_electric.core.printable import printable
from karma_electric.data.review_session import ReviewSession


class Question(ModalScreen[str | None]):
    """Asks for one line of text; None when the reviewer leaves."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Leave")]
    DEFAULT_CSS = """
    Question { align: center middle; }
    Question Vertical { width: 90%; max-width: 90; height: auto; }
    Question Vertical { border: round $accent; padding: 0 1; background: $panel; }
    """

    def __init__(self, question: str, *, required: bool) -> None:
        super().__init__()
        self._question = question
        self._required = required

    def compose(self) -> ComposeResult:
        """The question and a line to answer on."""
        with Vertical():
            yield Label(self._question, markup=False)
            yield Input()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take the answer, unless one is required and none was given."""
        if self._required and not event.value.strip():
            self.notify("A reason is needed; escape leaves it undecided.", severity="warning")
            return
        self.dismiss(event.value.strip())

    def action_leave(self) -> None:
        """Without an answer."""
        self.dismiss(None)


class Form(ModalScreen[bool]):
    """Edits a candidate as JSON. It stays open until the form can be saved or is given up."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "save", "Save", priority=True),
        Binding("escape", "leave", "Leave", priority=True),
    ]
    DEFAULT_CSS = """
    Form Label { width: 100%; padding: 0 1; background: $panel; }
    Form TextArea { height: 1fr; }
    """

    def __init__(self, session: ReviewSession, text: str, problem: str = "") -> None:
        super().__init__()
        self._session = session
        self._original = text if not problem else None
        self._text = text
        self._problem = problem
        self._leaving = False

    def compose(self) -> ComposeResult:
        """The form, what is wrong with it, and the keys."""
        yield Label(self._problem or "ctrl+s saves, escape leaves", id="problem", markup=False)
        yield TextArea(self._text, soft_wrap=True, show_line_numbers=True)
        yield Footer()

    def on_mount(self) -> None:
        """Ready to type."""
        self.query_one(TextArea).focus()

    def action_save(self) -> None:
        """Save, or say why not."""
        try:
            changed = self._session.save_form(self.query_one(TextArea).text)
        except KarmaError as error:
            self.query_one("#problem", Label).update(printable(f"Not saved. {error}"))
            return
        self.dismiss(changed)

    def action_leave(self) -> None:
        """Leave; what was typed is given up only when asked twice."""
        if self.query_one(TextArea).text != self._original and not self._leaving:
            self._leaving = True
            self.query_one("#problem", Label).update("Not saved: ctrl+s saves, escape again gives the changes up.")
            return
        self.dismiss(False)


class ReviewApp(App[None]):
    """The screen."""

    ENABLE_COMMAND_PALETTE = False
    TITLE = "karma data review"
    HORIZONTAL_BREAKPOINTS = [  # noqa: RUF012  textual declares it for instances
        (0, "-narrow"),
        (70, "-wide"),
    ]
    CSS = """
    #place { height: 1; padding: 0 1; background: $accent; color: $text; text-style: bold; }
    #talk { width: 3fr; padding: 0 1; scrollbar-size-vertical: 1; }
    #sheet { width: 2fr; padding: 0 1; border-left: solid $accent; scrollbar-size-vertical: 1; }
    .-narrow Horizontal { layout: vertical; }
    .-narrow #talk { width: 100%; height: 3fr; }
    .-narrow #sheet { width: 100%; height: 2fr; border-left: none; border-top: solid $accent; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("a", "accept", "Accept"),
        Binding("r", "reject", "Reject"),
        Binding("e", "edit", "Edit"),
        Binding("s", "skip", "Skip"),
        Binding("b", "previous", "Back"),
        Binding("u", "undo", "Undo"),
        Binding("slash", "search", "Search", key_display="/"),
        Binding("q", "quit", "Quit"),
        Binding("tab", "app.focus_next", "Pane", show=False),
    ]

    def __init__(self, session: ReviewSession) -> None:
        super().__init__()
        self.session = session
        self._counts = {"accepted": 0, "rejected": 0}

    def compose(self) -> ComposeResult:
        """One line on where we are, two panes, the keys."""
        yield Static(id="place", markup=False)
        with Horizontal():
            with VerticalScroll(id="talk"):
                yield Static(id="turns", markup=False)
            with VerticalScroll(id="sheet"):
                yield Static(id="findings", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Show the first candidate."""
        self.query_one("#talk").focus()
        self._show()

    def _show(self) -> None:
        try:
            sheet = self.session.sheet()
        except KarmaError as error:
            self._report(error)
            return
        session = self.session
        if sheet is None:
            what = "Nothing found." if not session.queue else "That was the last one."
            place = f"{len(session.queue)} of {len(session.queue)}"
            self.query_one("#turns", Static).update(f"{what}\n\nq quits, u takes the last decision back, b goes back.")
            self.query_one("#findings", Static).update("")
        else:
            place = f"{session.place + 1} of {len(session.queue)}  {printable(sheet.candidate.id)}"
            place += f"  ({sheet.candidate.status})"
            self.query_one("#turns", Static).update(conversation(sheet))
            self.query_one("#findings", Static).update(findings(sheet))
        found = "" if session.query is None else f"  search: {printable(session.query)}"
        done = ", ".join(f"{count} {status}" for status, count in self._counts.items() if count)
        self.query_one("#place", Static).update("  ".join(filter(None, (place + found, done))))
        for pane in ("#talk", "#sheet"):
            self.query_one(pane).scroll_home(animate=False)

    def _report(self, error: KarmaError) -> None:
        self.notify(printable(str(error)), severity="error", timeout=10, markup=False)

    def _decide(self, status: str, reason: str) -> None:
        if self.session.current is None:
            return
        try:
            self.session.decide(status, reason)
        except KarmaError as error:
            self._report(error)
            return
        self._counts[status] += 1
        self._show()

    def action_accept(self) -> None:
        """Accept it and go on."""
        self._decide("accepted", "")

    def action_reject(self) -> None:
        """Ask why, reject it and go on."""

        def rejected(reason: str | None) -> None:
            if reason:
                self._decide("rejected", reason)

        if self.session.current is not None:
            self.push_screen(Question("Reject: why? (enter rejects, escape leaves)", required=True), rejected)

    def action_skip(self) -> None:
        """Go on without deciding."""
        self.session.skip()
        self._show()

    def action_previous(self) -> None:
        """Go back without deciding."""
        self.session.skip(-1)
        self._show()

    def action_undo(self) -> None:
        """Take back the last decision or edit."""
        try:
            undone = self.session.undo()
        except KarmaError as error:
            self._report(error)
            return
        self.notify(f"Undone: {undone}" if undone else "Nothing to undo.", markup=False)
        self._show()

    def action_search(self) -> None:
        """Ask for words and go through what is found."""

        def searched(query: str | None) -> None:
            if query is None:
                return
            try:
                self.session.search(query)
            except KarmaError as error:
                self._report(error)
                return
            self._show()

        self.push_screen(Question("Search (empty: back to the whole list)", required=False), searched)

    def action_edit(self) -> None:
        """Edit it as JSON: in $VISUAL or $EDITOR where one is set, else here."""
        if self.session.current is None:
            return
        try:
            text = self.session.form()
        except KarmaError as error:
            self._report(error)
            return
        editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
        edited = self._edit_outside(editor, text) if editor else None
        if edited is None:
            self.push_screen(Form(self.session, text), self._edited)
            return
        try:
            self._edited(self.session.save_form(edited))
        except KarmaError as error:  # what was typed is not thrown away
            self.push_screen(Form(self.session, edited, f"Not saved. {printable(str(error))}"), self._edited)

    def _edit_outside(self, editor: str, text: str) -> str | None:
        """The text as another program leaves it; None where that cannot be run."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "candidate.json"
            path.write_text(text, encoding="utf-8")
            try:
                with self.suspend():
                    subprocess.run([*shlex.split(editor), str(path)], check=True)
                return path.read_text(encoding="utf-8", errors="surrogateescape")
            except (OSError, ValueError, subprocess.CalledProcessError) as error:
                self.notify(f"{editor} could not edit it ({error}).", severity="warning", markup=False)
            except SuspendNotSupported:
                pass
        return None

    def _edited(self, changed: bool | None) -> None:
        self.notify("Saved; the version before is kept." if changed else "Nothing was changed.")
        self._show()
