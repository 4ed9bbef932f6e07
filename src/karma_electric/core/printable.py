"""Text of unknown origin, made safe for a terminal."""

from __future__ import annotations

_LEFT = "\n\t"
_CONTROLS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in _LEFT}
_CONTROLS |= {0x7F: 0x2421}
_CONTROLS |= dict.fromkeys((*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD)


def printable(text: str) -> str:
    """The text with escape codes and signs that turn the writing direction shown instead of obeyed.

    As many characters as before, so that positions still hold.
    """
    return text.translate(_CONTROLS)
