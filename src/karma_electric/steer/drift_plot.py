"""The picture of drift: every token along a conversation, the mean of every turn, the ceiling and the alarm level."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from karma_electric.core.plots import COLOURS, figure, save
from karma_electric.core.printable import printable
from karma_electric.steer.conversation_drift import ConversationDrift, TurnDrift

MOST_PANELS = 12
_INCHES_PER_TOKEN = 0.022
_ROLE_COLOURS = {"system": COLOURS["base"], "user": COLOURS["base"], "assistant": COLOURS["tuned"]}
_ROOM = 0.03  # share of the width that a label needs
_BEYOND = COLOURS["capped"]


def plot_drift(conversations: Mapping[str, ConversationDrift], what: str, out: Path) -> None:
    """One panel per conversation, at most `MOST_PANELS`: the first ones.

    Args:
        conversations: name -> drift.
        what: model and cap, for the title.
        out: PNG file.
    """
    shown = list(conversations.items())[:MOST_PANELS]
    longest = max(sum(len(turn.pieces) for turn in drift.turns) for _, drift in shown)
    width = min(18.0, max(7.5, longest * _INCHES_PER_TOKEN))
    fig, panels = figure(len(shown), 1, width=width, height=3.4)
    for number, (panel, (name, drift)) in enumerate(
        zip(panels.flat if len(shown) > 1 else [panels], shown, strict=True)
    ):
        _panel(panel, drift)
        panel.set_title(f"{printable(name)}: {_headline(drift)}", fontsize=9, loc="left")
        if number == len(shown) - 1:
            panel.set_xlabel("token of the conversation (headers and end-of-turn tokens left out)")
    lines, labels = fig.axes[0].get_legend_handles_labels()
    columns = len(lines) if width > 11 else 3
    fig.legend(lines, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    fig.suptitle(what, fontsize=9)
    save(fig, out)


def _headline(drift: ConversationDrift) -> str:
    if not drift.beyond:
        return "no answer beyond the alarm level"
    turns = ", ".join(str(turn.number) for turn in drift.beyond)
    return f"turn{'s' if len(drift.beyond) > 1 else ''} {turns} beyond the alarm level"


def _panel(panel: Any, conversation: ConversationDrift) -> None:
    values = [token.drift for turn in conversation.turns for token in turn.drift.measured]
    # the lines that matter stay in sight, and one wild token does not flatten the rest
    ordered = sorted(values)
    low = min(ordered[int(0.005 * len(ordered))], -1.0)
    high = max(ordered[int(0.995 * (len(ordered) - 1))], min(conversation.alarm, 4.0), 1.0)
    margin = 0.14 * (high - low)
    panel.set_ylim(low - 0.5 * margin, high + 1.6 * margin)
    start, total = 0, sum(len(turn.pieces) for turn in conversation.turns)
    for turn in conversation.turns:
        if turn.drift.mean is not None:
            _turn(panel, turn, start, total, beyond=turn in conversation.beyond, top=high + 1.45 * margin)
        start += len(turn.pieces)
    panel.axhline(0.0, color="black", lw=1, ls="--", label="ceiling (threshold)")
    panel.axhline(conversation.alarm, color=COLOURS["fail"], lw=1.2, ls=":", label="alarm level of an answer's mean")
    panel.plot([], [], color=COLOURS["tuned"], lw=3, label="mean of an answer")
    panel.plot([], [], color=COLOURS["fail"], lw=3, label="beyond the alarm level")
    panel.plot([], [], color=COLOURS["base"], lw=3, label="mean of another turn")
    panel.set_xlim(0, start)
    panel.set_ylabel("drift (sd above the ceiling)")
    panel.grid(axis="x", visible=False)


def _turn(panel: Any, turn: TurnDrift, start: int, total: int, *, beyond: bool, top: float) -> None:
    """Tokens as a thin line, filled where they are beyond the ceiling; the mean as a bar, its number at the top."""
    answer = turn.role == "assistant"
    colour = _ROLE_COLOURS[turn.role]
    drifts = [token.drift for token in turn.drift.measured]
    end = start + len(turn.pieces)
    middles = [start + 0.5 + i for i in range(len(drifts))]
    if not answer:
        panel.axvspan(start, end, color=COLOURS["muted"], alpha=0.35 if turn.role == "user" else 0.7, lw=0)
    panel.axvline(start, color=COLOURS["unscored"], lw=0.6)
    panel.plot(middles, drifts, color=colour, lw=0.7, alpha=0.75 if answer else 0.5)
    panel.fill_between(
        middles, 0.0, drifts, where=[d > 0 for d in drifts], interpolate=True, color=_BEYOND, alpha=0.45, lw=0
    )
    mean_colour = COLOURS["fail"] if beyond else colour
    panel.hlines(turn.drift.mean, start, end, color=mean_colour, lw=3)
    words = f"{turn.number} {turn.role}\n{turn.drift.mean:+.2f}"
    panel.text(
        (start + end) / 2, top, words if end - start > _ROOM * total else str(turn.number),
        fontsize=7, ha="center", va="top", color=mean_colour if beyond else "black", clip_on=True,
    )  # fmt: skip
