"""What the review screen shows of one candidate, as styled text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from karma_electric.core.printable import printable
from karma_electric.data.review_session import Sheet
from karma_electric.data.rubric import DIMENSIONS, HIGHEST, KEPT_FROM, RUBRIC

_ROLE_STYLES = {"system": "bold yellow", "user": "bold cyan", "assistant": "bold green"}
_FULL_MARKS = HIGHEST * len(DIMENSIONS)


def conversation(sheet: Sheet) -> Text:
    """All turns, with the evidence of penalties marked."""
    shown = Text()
    if sheet.candidate.system is not None:
        shown.append("system\n", _ROLE_STYLES["system"]).append(f"{printable(sheet.candidate.system)}\n\n", "dim")
    for index, message in enumerate(sheet.candidate.messages):
        shown.append(f"{message.role}\n", _ROLE_STYLES[message.role])
        body = Text(printable(message.content))
        for finding in (finding for findings in sheet.penalties.values() for finding in findings):
            start, end = finding.get("start"), finding.get("end")
            if (
                finding.get("message", index) == index
                and isinstance(start, int)
                and isinstance(end, int)
                and message.content[start:end] == finding.get("evidence")
            ):
                body.stylize("bold underline red", start, end)
        shown.append_text(body).append("\n\n")
    return shown


def findings(sheet: Sheet) -> Text:
    """Grades, penalties, what the example says about itself, and earlier decisions."""
    return Text("\n").join((_grades(sheet), _penalties(sheet), _facts(sheet), _history(sheet)))


def _grades(sheet: Sheet) -> Text:
    shown = _title("Grades")
    if not sheet.grades:
        return shown.append("none yet\n", "dim")
    for grade in sheet.grades:
        if grade.total is None:
            shown.append("unreadable", "bold yellow")
        else:
            full = f"/{_FULL_MARKS}" if grade.rubric == RUBRIC else ""
            style = "bold green" if grade.total >= KEPT_FROM else "bold red"
            shown.append(f"{grade.total:g}{full}", style if full else "bold")
        shown.append(f"  {printable(grade.judge)}\n", "dim")
        if grade.scores:
            shown.append(" ".join(f"{name} {score:g}" for name, score in grade.scores.items()) + "\n")
        if grade.rationale:
            shown.append(f"{printable(grade.rationale)}\n", "italic")
    return shown


def _penalties(sheet: Sheet) -> Text:
    shown = _title("Penalties")
    if not sheet.penalties:
        return shown.append("not looked for yet\n", "dim")
    for ruleset, found in sheet.penalties.items():
        if not found:
            shown.append("none", "green").append(f" by {printable(ruleset)}\n", "dim")
        for finding in found:
            shown.append_text(_finding(finding))
    return shown


def _finding(finding: Mapping[str, Any]) -> Text:
    points = finding.get("points")
    shown = Text().append(printable(str(finding.get("rule", "?"))), "bold red")
    if isinstance(points, int | float):
        shown.append(f" -{points:g}")
    if evidence := finding.get("evidence"):
        shown.append(f"\n  “{printable(str(evidence))}”")
    return shown.append("\n")


def _facts(sheet: Sheet) -> Text:
    candidate = sheet.candidate
    shown = _title("Example")
    rows = [
        ("status", candidate.status),
        ("category", candidate.category or "none"),
        ("tags", ", ".join(candidate.tags) or "none"),
        ("source", candidate.source),
        ("license", candidate.license),
        ("added in", candidate.added_in or "no release"),
    ]
    for name, value in rows:
        shown.append(f"{name}: ", "bold").append(f"{printable(value)}\n")
    if candidate.analysis is None:
        return shown.append("analysis: ", "bold").append("none\n")
    for name, sentence in vars(candidate.analysis).items():
        shown.append(f"{name}: ", "bold").append(f"{printable(sentence)}\n")
    return shown


def _history(sheet: Sheet) -> Text:
    lines = [f"{removal.kind}: {removal.other} ({removal.similarity:.2f})" for removal in sheet.removals]
    lines += [
        f"{review.decided_at[:10]} {review.status} by {review.reviewer}"
        + (f": {review.reason}" if review.reason else "")
        for review in sheet.reviews
    ]
    shown = Text()
    if lines:
        shown.append_text(_title("History")).append("".join(f"{printable(line)}\n" for line in lines))
    return shown


def _title(title: str) -> Text:
    return Text().append(f"{title}\n", "bold underline")
