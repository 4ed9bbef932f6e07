"""The prompts a direction is extracted on: user prompts under `toward` and `away` system prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from karma_electric.core.errors import DataError
from karma_electric.core.jsonl import read_jsonl
from karma_electric.core.messages import Conversation, system, user

KINDS = ("everyday", "weighty", "adversarial")


@dataclass(frozen=True)
class Prompt:
    """One user prompt."""

    id: str
    kind: str
    text: str


@dataclass(frozen=True)
class ContrastSet:
    """User prompts, the system prompt that calls the persona up, and generic ones (the empty one included)."""

    prompts: tuple[Prompt, ...]
    toward: str
    away: tuple[str, ...]

    def conversations(self, prompt: Prompt) -> list[Conversation]:
        """The renderings of one prompt: `toward` first, then each `away`."""
        return [[system(text), user(prompt.text)] for text in (self.toward, *self.away)]


def load_prompts(path: Path) -> tuple[Prompt, ...]:
    """Read prompts from JSONL with the keys id, kind, prompt.

    Raises:
        DataError: naming file and line.
    """
    prompts: list[Prompt] = []
    for number, item in read_jsonl(path):
        where = f"{path.name} line {number}"
        if not isinstance(item, dict) or set(item) != {"id", "kind", "prompt"}:
            raise DataError(f"{where}: expected an object with exactly the keys id, kind, prompt.")
        if item["kind"] not in KINDS:
            raise DataError(f"{where}: kind {item['kind']!r} is unknown, expected one of {', '.join(KINDS)}.")
        if not isinstance(item["prompt"], str) or not item["prompt"].strip():
            raise DataError(f"{where}: the prompt is empty, expected text.")
        prompts.append(Prompt(str(item["id"]), item["kind"], item["prompt"]))
    if not prompts:
        raise DataError(
            f"{path.name} holds no prompts.",
            'One JSON object per line, such as {"id": "weighty-001", "kind": "weighty", "prompt": "..."}.',
        )
    ids = [prompt.id for prompt in prompts]
    if len(set(ids)) != len(ids):
        raise DataError(f"{path.name}: an id is used twice.", "Ids are unique.")
    return tuple(prompts)


def require_disjoint(**sets: Sequence[Prompt]) -> None:
    """Raise `DataError` when two sets of prompts share one (held-out prompts must be unseen)."""
    owners: dict[str, str] = {}
    for name, prompts in sets.items():
        for prompt in prompts:
            other = owners.setdefault(prompt.text.strip().lower(), name)
            if other != name:
                raise DataError(f"The prompt {prompt.id!r} is in both {other} and {name}.", "Remove it from one.")
