"""What attackers are told: texts with places to fill in, from suites/attacks.toml."""

from __future__ import annotations

import string
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from karma_electric.core.errors import DataError
from karma_electric.core.resources import find

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = "attacks.toml"
# section.key -> the places that its text has
PLACES: Mapping[str, frozenset[str]] = {
    "attacker.system": frozenset(),
    "crescendo.first": frozenset({"goal", "left"}),
    "crescendo.next": frozenset({"goal", "left", "conversation"}),
    "crescendo.refused": frozenset({"goal", "left", "conversation", "refused", "answer"}),
    "persona.invent": frozenset({"goal", "others"}),
    "persona.frame": frozenset({"persona", "request"}),
    "drift.first": frozenset({"goal", "left"}),
    "drift.next": frozenset({"goal", "left", "conversation"}),
}


@dataclass(frozen=True)
class Prompts:
    """The texts, by section.key."""

    texts: Mapping[str, str]

    def fill(self, name: str, **values: str) -> str:
        """A text with its places filled in."""
        return string.Template(self.texts[name]).substitute(values).strip()


def load_prompts(path: Path | None = None) -> Prompts:
    """Read the texts; the shipped ones when no file is given.

    Raises:
        MissingError: no such file.
        DataError: it is not TOML, or a text or a place is missing or unknown.
    """
    path = path or find("suites", FILE)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"{path.name} is not TOML ({error}).", f"See the shipped {FILE}.") from None
    texts = {f"{section}.{key}": text for section, keys in raw.items() for key, text in _items(keys)}
    if odd := sorted(texts.keys() ^ PLACES.keys()):
        state = "is unknown" if odd[0] in texts else "is missing"
        raise DataError(f"{path.name}: {odd[0]} {state}, expected {', '.join(PLACES)}.", f"See the shipped {FILE}.")
    read: dict[str, str] = {}
    for name, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{path.name}: {name} is {text!r}, expected a text.", f"See the shipped {FILE}.")
        found = frozenset(_places(text))
        if found != PLACES[name]:
            wanted = ", ".join(f"${place}" for place in sorted(PLACES[name])) or "none"
            shown = ", ".join(f"${place}" for place in sorted(found)) or "none"
            raise DataError(f"{path.name}: {name} has the places {shown}, expected {wanted}.", "A plain $ is $$.")
        read[name] = text
    return Prompts(read)


def _items(keys: object) -> list[tuple[str, object]]:
    return list(keys.items()) if isinstance(keys, dict) else [("", keys)]


def _places(text: str) -> list[str]:
    matches = string.Template.pattern.finditer(text)
    return [match["named"] or match["braced"] or match.group() for match in matches if not match["escaped"]]
