"""How `karma drift` and `/drift` in a chat show drift to people: a table with bars, and texts with marks."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from karma_electric.core.printable import printable

if TYPE_CHECKING:
    from karma_electric.models.engines.protocol import Drift
    from karma_electric.steer.conversation_drift import ConversationDrift, TurnDrift

_BAR = 24
_PEAK = 44


def print_conversation(name: str, drift: ConversationDrift, *, tokens: bool) -> None:
    """The table of a conversation, what can be said of it and, with `tokens`, its answers with marks."""
    print(f"\n{printable(name)}")
    print(
        f"{'turn':>4} {'role':<9} {'tokens':>6} {'mean':>6} {'max':>6} {'above':>6} {'rank':>5}  {_scale(drift)}  peak"
    )
    for turn in drift.turns:
        print(_row(turn, drift))
    print(f"  {drift.verdict}")
    if drift.trend is not None:
        print(f"  Trend: {drift.trend.sentence}")
    if tokens:
        for turn in drift.answers:
            print(f"\n  turn {turn.number} ({turn.role})")
            print_tokens(turn)


def answer_line(drift: Drift, alarm: float, ordinary: Sequence[float] = ()) -> str:
    """One line on an answer, for a chat."""
    if drift.mean is None:
        return "drift: no token was measured"
    side = "BEYOND" if drift.mean > alarm else "below"
    below = sum(mean < drift.mean for mean in ordinary)
    rank = f", higher than {below / len(ordinary):.0%} of ordinary answers" if ordinary else ""
    return (
        f"drift: mean {drift.mean:+.2f} sd, max {drift.max:+.2f}, {drift.share_above:.0%} of its tokens above the "
        f"ceiling{rank}; {side} the alarm level ({alarm:+.2f})"
    )


def print_tokens(turn: TurnDrift) -> None:
    """The text of a turn, tokens beyond the ceiling in colour on a terminal and in marks elsewhere."""
    from rich.console import Console
    from rich.text import Text

    text = Text()
    coloured = sys.stdout.isatty()
    for beyond, piece in _runs(turn):
        words = printable(piece)
        if beyond and not coloured:
            words = f"«{words}»"
        text.append(words, style="bold dark_orange" if beyond else "")
    Console(soft_wrap=True, highlight=False).print(text)


def _runs(turn: TurnDrift) -> Iterator[tuple[bool, str]]:
    """Neighbouring tokens on the same side of the ceiling, joined; a character that several tokens share once."""
    pairs = []
    last = None
    for piece, token in zip(turn.pieces, turn.drift.tokens, strict=True):
        beyond = token is not None and token.drift > 0
        if piece == last and len(piece) == 1 and not piece.isascii():
            continue
        pairs.append((beyond, piece))
        last = piece
    for beyond, group in groupby(pairs, key=lambda pair: pair[0]):
        yield beyond, "".join(piece for _, piece in group)


def _row(turn: TurnDrift, drift: ConversationDrift) -> str:
    mean = turn.drift.mean
    if mean is None:
        return f"{turn.number:>4} {turn.role:<9} {0:>6}"
    rank = drift.rank(turn)
    shown = "" if rank is None else f"{rank:.0%}"
    return (
        f"{turn.number:>4} {turn.role:<9} {len(turn.pieces):>6} {mean:>+6.2f} {turn.drift.max:>+6.2f} "
        f"{turn.drift.share_above:>6.0%} {shown:>5}  {_bar(turn, drift)}  {_peak(turn)}"
    )


def _column(value: float, drift: ConversationDrift) -> int:
    """Where a value stands in the bars, which span all means and the ceiling; an alarm level outside is at the edge."""
    means = [turn.drift.mean for turn in drift.turns if turn.drift.mean is not None]
    low, high = min(-1.0, *means), max(1.0, min(drift.alarm, 4.0), *means)
    return min(max(round((value - low) / (high - low) * (_BAR - 1)), 0), _BAR - 1)


def _scale(drift: ConversationDrift) -> str:
    """Heading of the bars: the ceiling and the alarm level over their columns."""
    line = [" "] * _BAR
    line[_column(drift.alarm, drift)] = "!"
    line[_column(0.0, drift)] = "0"
    return "".join(line)


def _bar(turn: TurnDrift, drift: ConversationDrift) -> str:
    """From the ceiling to the mean: # for answers, = for other turns."""
    mean = turn.drift.mean
    assert mean is not None
    zero, end = _column(0.0, drift), _column(mean, drift)
    line = [" "] * _BAR
    line[_column(drift.alarm, drift)] = ":"
    for column in range(min(zero, end), max(zero, end) + 1):
        line[column] = "#" if turn.role == "assistant" else "="
    line[zero] = "|"
    return "".join(line)


def _peak(turn: TurnDrift) -> str:
    peak = turn.peak
    assert peak is not None  # a turn with a mean
    before, at, after = (printable(part.replace("\n", "⏎").replace("\t", " ")) for part in peak)
    if not at.strip():
        at = at.replace(" ", "␣")
    blank = " " if at.startswith(" ") else ""  # most tokens bring the blank in front of them
    words = f"{before}{blank}«{at.strip()}»{after}".strip()
    return words if len(words) <= _PEAK else f"{words[: _PEAK - 1]}…"
