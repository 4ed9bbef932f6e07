"""Responses of the model itself, generated once, of three kinds: what caps are calibrated and tried on.

    deployment   ordinary prompts (everyday, weighty) under the persona's system prompt
    generic      half of the ordinary prompts under the away prompts, in turn: the model when it is nobody in particular
    adversarial  adversarial prompts under the persona's system prompt: they press the model out of it themselves

docs/calibration.md says why these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from karma_electric.core.errors import DataError, MissingError
from karma_electric.core.jsonl import append_jsonl, drop_torn_line, read_jsonl
from karma_electric.core.messages import Conversation, assistant, system, user
from karma_electric.core.progress import Progress
from karma_electric.models.engines.protocol import Engine, Sampling
from karma_electric.steer.contrast import Prompt

FILE = "responses.jsonl"
SPLITS = ("calibration", "heldout")
RESPONSE_KINDS = ("deployment", "generic", "adversarial")


@dataclass(frozen=True)
class Response:
    """One answer; empty while it is only planned.

    Attributes:
        id: of the prompt, and the kind.
        split: calibration or heldout.
        system: the system prompt it was asked under.
        prompt: what the user said.
        text: the answer.
        kind: deployment, generic or adversarial.
    """

    id: str
    split: str
    system: str
    prompt: str
    text: str
    kind: str = "deployment"

    @property
    def conversation(self) -> Conversation:
        """The whole exchange."""
        return [system(self.system), user(self.prompt), assistant(self.text)]

    @property
    def question(self) -> Conversation:
        """The exchange without the answer."""
        return self.conversation[:-1]


def plan_responses(
    splits: Mapping[str, Sequence[Prompt]], *, toward: str, away: Sequence[str], shares: Mapping[str, float]
) -> list[Response]:
    """What to ask: every prompt under the persona's system prompt, every second ordinary one under a generic one too.

    In the order of the prompts, so that any first part of it has every kind.

    Args:
        splits: split -> prompts.
        toward: the persona's system prompt.
        away: the generic ones, taken in turn.
        shares: kind -> weight; a kind of weight 0 is not asked for.

    Raises:
        DataError: a kind with a positive weight has no prompts in a split.
    """
    planned = []
    for split, prompts in splits.items():
        seen: Counter[str] = Counter()
        generics = 0
        for prompt in prompts:
            kinds = {"adversarial": toward} if prompt.kind == "adversarial" else {"deployment": toward}
            if prompt.kind != "adversarial" and seen[prompt.kind] % 2 == 0:  # half of each kind of prompt
                kinds["generic"] = away[generics % len(away)]
                generics += 1
            seen[prompt.kind] += 1
            planned += [
                Response(f"{prompt.id}/{kind}", split, text, prompt.text, "", kind)
                for kind, text in kinds.items()
                if shares[kind] > 0
            ]
    require_kinds(planned, shares, what="prompts")
    return planned


def require_kinds(responses: Sequence[Response], shares: Mapping[str, float], *, what: str = "responses") -> None:
    """Raise `DataError` unless both splits have every kind that has a positive weight."""
    there = Counter((response.split, response.kind) for response in responses)
    for split in SPLITS:
        if not any(there[split, kind] for kind in RESPONSE_KINDS):
            raise DataError(f"There are no {split} {what}.", "Both splits need some: calibration and heldout.")
        for kind, share in shares.items():
            if share > 0 and not there[split, kind]:
                raise DataError(
                    f"There are no {kind} {what} in the split {split}, and axis.mixture.{kind} is above 0.",
                    f"Add some, or give the kind the weight 0 (axis.mixture.{kind} = 0, or --weights {kind}=0,...).",
                )


def read_responses(path: Path) -> list[Response]:
    """All whole lines of a file that is being written; one torn by a kill is cut off, no file is an empty one.

    Only for whoever writes it: others leave it as it is (`load_responses`).

    Raises:
        DataError: a line that is not a response; names it.
    """
    if not path.exists():
        return []
    drop_torn_line(path)
    return load_responses(path)


def load_responses(path: Path) -> list[Response]:
    """All lines of a responses file, which is left as it is.

    Raises:
        MissingError: no such file. DataError: a line that is not a response; names it.
    """
    return [_response(item, f"{path.name} line {number}") for number, item in read_jsonl(path)]


def _response(item: object, where: str) -> Response:
    known = [f.name for f in fields(Response)]
    if not isinstance(item, dict) or not set(known[:-1]) <= set(item) <= set(known):
        raise DataError(f"{where}: expected an object with the keys {', '.join(known)}.")
    wrong = next((key for key, value in item.items() if not isinstance(value, str)), None)
    if wrong is not None:
        raise DataError(f"{where}: {wrong} is {item[wrong]!r}, expected text.")
    response = Response(**item)
    for key, allowed in (("split", SPLITS), ("kind", RESPONSE_KINDS)):
        if getattr(response, key) not in allowed:
            raise DataError(f"{where}: {key} {getattr(response, key)!r} is unknown, expected {' or '.join(allowed)}.")
    return response


def by_split(path: Path) -> dict[str, list[Conversation]]:
    """The conversations with an answer, of all kinds, by split.

    Raises:
        MissingError: no such file.
    """
    if not path.exists():
        raise MissingError(f"{path} does not exist.", "Calibrate first: karma axis calibrate, or karma run --to axis")
    found: dict[str, list[Conversation]] = {split: [] for split in SPLITS}
    for response in load_responses(path):
        if response.text.strip():
            found[response.split].append(response.conversation)
    return found


def generate_responses(
    engine: Engine,
    planned: Sequence[Response],
    path: Path,
    *,
    sampling: Sampling,
    batch_size: int,
    progress: Progress,
) -> list[Response]:
    """Answer every question that has no answer in `path` yet, appending batch by batch. Empty answers are left out."""
    done = {(response.split, response.id) for response in read_responses(path)}
    missing = [question for question in planned if (question.split, question.id) not in done]
    for start in range(0, len(missing), batch_size):
        batch = missing[start : start + batch_size]
        progress.update(len(planned) - len(missing) + start, len(planned), "responses to calibrate on")
        answers = engine.generate([question.question for question in batch], sampling)
        append_jsonl(
            path, (vars(replace(asked, text=answer.text)) for asked, answer in zip(batch, answers, strict=True))
        )
    progress.update(len(planned), len(planned), "responses to calibrate on")
    order = {(question.split, question.id): number for number, question in enumerate(planned)}
    return sorted((r for r in read_responses(path) if r.text.strip()), key=lambda r: order[r.split, r.id])
