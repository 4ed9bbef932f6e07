"""Single records of instruction and answer: Alpaca, and lists of prompts without an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from karma_electric.core.errors import DataError
from karma_electric.core.messages import Conversation, assistant, user
from karma_electric.data.candidate import Candidate
from karma_electric.data.formats.envelope import form_of, require_object, unwrap, wrap

ALPACA, PROMPTS = "alpaca", "prompts"
_JOINT = "\n\n"  # between instruction and input


def read_alpaca(item: object, where: str) -> Candidate:
    """A candidate from `{"instruction", "input", "output"}`, with `history` and `system` where they are there.

    Raises:
        DataError: what is wrong, with `where`.
    """
    record = require_object(item, where)
    for key in ("instruction", "output"):
        _require_text(record, key, where)
    given = record.get("input")
    if given is not None and not isinstance(given, str):
        raise DataError(f"{where}: 'input' is of type {type(given).__name__}, expected text.")
    form: dict[str, Any] = {}
    question = record["instruction"]
    if given is not None and given.strip():
        form["split"] = len(question)
        question += _JOINT + given
    elif "input" in record and given != "":
        form["input"] = given
    messages = [*_read_history(record, form, where), user(question), assistant(record["output"])]
    body, prompt = {"instruction", "input", "output", "history"}, None
    if isinstance(record.get("system"), str) and record["system"].strip():
        prompt = record["system"]
        body.add("system")
    return unwrap(record, format=ALPACA, body=body, messages=messages, system=prompt, form=form, where=where)


def write_alpaca(candidate: Candidate) -> dict[str, Any]:
    """The record of a candidate: its last turns as instruction and output, those before as `history`.

    Raises:
        DataError: it does not end with an answer.
    """
    if candidate.messages[-1].role != "assistant":
        raise DataError(f"{candidate.id} ends with a user turn: Alpaca needs an answer.", "Export it as messages.")
    form = form_of(candidate, ALPACA)
    *earlier, question, answer = candidate.messages
    instruction, given = _split(question.content, form.get("split"))
    body: dict[str, Any] = {"instruction": instruction, "input": given, "output": answer.content}
    if not given:
        if "input" in form:
            body["input"] = form["input"]
        elif form and "input" not in form["keys"]:
            del body["input"]
    if earlier:
        body["history"] = [[earlier[i].content, earlier[i + 1].content] for i in range(0, len(earlier), 2)]
    elif "history" in form:
        body["history"] = form["history"]
    if candidate.system is not None:
        body["system"] = candidate.system
    return wrap(candidate, format=ALPACA, body=body)


def read_prompts(item: object, where: str) -> Candidate:
    """A candidate of one user turn from `{"prompt"}`.

    Raises:
        DataError: what is wrong, with `where`.
    """
    record = require_object(item, where)
    _require_text(record, "prompt", where)
    messages = [user(record["prompt"])]
    return unwrap(record, format=PROMPTS, body={"prompt"}, messages=messages, system=None, form={}, where=where)


def write_prompts(candidate: Candidate) -> dict[str, Any]:
    """The record of a candidate that is one user turn.

    Raises:
        DataError: it has more than that.
    """
    if len(candidate.messages) != 1 or candidate.system is not None:
        raise DataError(f"{candidate.id} is more than one user turn.", "Export it as messages.")
    return wrap(candidate, format=PROMPTS, body={"prompt": candidate.messages[0].content})


def _require_text(record: Mapping[str, Any], key: str, where: str) -> None:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        found = "missing" if key not in record else "empty" if value == "" else repr(value)[:60]
        raise DataError(f"{where}: {key!r} is {found}, expected text.")


def _read_history(record: Mapping[str, Any], form: dict[str, Any], where: str) -> Conversation:
    history = record.get("history")
    if not history:
        if "history" in record:
            form["history"] = history
        return []
    turns: Conversation = []
    for number, pair in enumerate(history if isinstance(history, list) else [history], 1):
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(text, str) and text.strip() for text in pair)
        ):
            raise DataError(
                f"{where}: 'history' {number} is {repr(pair)[:60]}, expected a pair of question and answer."
            )
        turns += [user(pair[0]), assistant(pair[1])]
    return turns


def _split(question: str, at: Any) -> tuple[str, str]:
    """Instruction and input, if the question still reads as the two did together."""
    if isinstance(at, int) and question[at : at + len(_JOINT)] == _JOINT:
        instruction, given = question[:at], question[at + len(_JOINT) :]
        if instruction.strip() and given.strip():
            return instruction, given
    return question, ""
