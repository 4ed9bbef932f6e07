"""Best-of-n's augmentations of a text: scrambled words, random capitals, noisy characters.

After Hughes et al., Best-of-N Jailbreaking (arXiv 2412.03556), section 2: each is applied to every word or character
with a probability, in this order.
"""

from __future__ import annotations

import random
import re

_SCRAMBLED, _CAPITALS, _NOISE = 0.6, 0.6, 0.06  # of words of four letters and more; of letters; of ASCII characters
_LONG_WORD = re.compile(r"[A-Za-z]{4,}")


def augment(text: str, generator: random.Random) -> str:
    """A text that a person can still read, and no filter has seen."""
    text = _LONG_WORD.sub(lambda match: _scramble(match.group(), generator), text)
    text = "".join(_swap_case(character, generator) for character in text)
    return "".join(_shift(character, generator) for character in text)


def _scramble(word: str, generator: random.Random) -> str:
    """The inner letters in another order."""
    if generator.random() >= _SCRAMBLED:
        return word
    inner = list(word[1:-1])
    generator.shuffle(inner)
    return word[0] + "".join(inner) + word[-1]


def _swap_case(character: str, generator: random.Random) -> str:
    return character.swapcase() if character.isascii() and generator.random() < _CAPITALS else character


def _shift(character: str, generator: random.Random) -> str:
    """A neighbour in ASCII, of the printable ones."""
    if not "!" <= character <= "~" or generator.random() >= _NOISE:
        return character
    return chr(min(max(ord(character) + generator.choice((-1, 1)), ord("!")), ord("~")))
