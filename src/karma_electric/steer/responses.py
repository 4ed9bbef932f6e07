"""Responses of the model itself, generated once under the deployment prompt: what caps are calibrated and tried on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from karma_electric.core.errors import MissingError
from karma_electric.core.jsonl import append_jsonl, drop_torn_line, read_jsonl
from karma_electric.core.messages import Conversation, assistant, system, user
from karma_electric.core.progress import Progress
from karma_electric.models.engines.protocol import Engine, Sampling
from karma_electric.steer.contrast import Prompt

FILE = "responses.jsonl"


@dataclass(frozen=True)
class Response:
    """One generated answer; `split` is calibration or heldout."""

    id: str
    split: str
    system: str
    prompt: str
    text: str

    @property
    def conversation(self) -> Conversation:
        """The whole exchange."""
        return [system(self.system), user(self.prompt), assistant(self.text)]

    @property
    def question(self) -> Conversation:
        """The exchange without the answer."""
        return self.conversation[:-1]


def read_responses(path: Path) -> list[Response]:
    """All whole lines of a responses file; one torn by a kill is left out."""
    if not path.exists():
        return []
    drop_torn_line(path)
    return [Response(**item) for _, item in read_jsonl(path)]


def by_split(path: Path) -> dict[str, list[Conversation]]:
    """The conversations with an answer, by split.

    Raises:
        MissingError: no such file.
    """
    if not path.exists():
        raise MissingError(f"{path} does not exist.", "Calibrate first: karma axis calibrate, or karma run --to axis")
    found: dict[str, list[Conversation]] = {"calibration": [], "heldout": []}
    for response in read_responses(path):
        if response.text.strip():
            found.setdefault(response.split, []).append(response.conversation)
    return found


def generate_responses(
    engine: Engine,
    splits: dict[str, Sequence[Prompt]],
    system_prompt: str,
    path: Path,
    *,
    sampling: Sampling,
    batch_size: int,
    progress: Progress,
) -> list[Response]:
    """Answer every prompt that has no answer in `path` yet, appending batch by batch. Empty answers are left out."""
    wanted = [(split, prompt) for split, prompts in splits.items() for prompt in prompts]
    done = {response.id for response in read_responses(path)}
    missing = [(split, prompt) for split, prompt in wanted if prompt.id not in done]
    for start in range(0, len(missing), batch_size):
        batch = missing[start : start + batch_size]
        progress.update(len(wanted) - len(missing) + start, len(wanted), "responses to calibrate on")
        answers = engine.generate([[system(system_prompt), user(prompt.text)] for _, prompt in batch], sampling)
        append_jsonl(
            path,
            (
                vars(Response(prompt.id, split, system_prompt, prompt.text, answer.text))
                for (split, prompt), answer in zip(batch, answers, strict=True)
            ),
        )
    progress.update(len(wanted), len(wanted), "responses to calibrate on")
    order = {prompt.id: number for number, (_, prompt) in enumerate(wanted)}
    return sorted((r for r in read_responses(path) if r.text.strip()), key=lambda r: order[r.id])
