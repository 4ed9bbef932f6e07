"""Capability items: small tasks with checkable answers, to see what steering or fine-tuning breaks.

A suite is a JSONL file, one item a line, and reading it is strict: an item whose own reference answer fails its check
is an error, and so is one that passes a plausible wrong answer, or its own prompt given back. Of code items that is
held by `self_check`, since it runs code. Knows nothing of models.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from karma_electric.core.errors import DataError
from karma_electric.core.jsonl import read_jsonl
from karma_electric.redteam.answer_checks import Check, ChoiceCheck, Judged, NumberCheck, TextCheck
from karma_electric.redteam.code_child import canonical
from karma_electric.redteam.code_sandbox import run_calls
from karma_electric.redteam.constraints import Constraint, violations

Kind = Literal["arithmetic", "reading", "instruction", "code", "fact"]
Difficulty = Literal["easy", "medium", "hard"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_CODE_START = re.compile(r"^(?:import |from |def |class |@)", re.MULTILINE)


class ConstraintsCheck(Check):
    """All of some constraints on form (see `constraints`)."""

    type: Literal["constraints"]
    constraints: list[Constraint] = Field(min_length=1)

    def judge(self, answer: str, prompt: str) -> Judged:
        """Report every violation."""
        found = violations(self.constraints, answer)
        return Judged("incorrect", "; ".join(found)) if found else Judged("correct", f"{len(self.constraints)} held")


class CodeTest(BaseModel):
    """A call, and the value it should give: both Python, of literals alone."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    call: str
    equals: str

    @field_validator("equals")
    @classmethod
    def _is_literal(cls, text: str) -> str:
        try:
            canonical(ast.literal_eval(text))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise ValueError(f"{text[:60]!r} is no Python literal") from None
        return text

    @property
    def expected(self) -> str:
        """The expected value as the sandbox writes values."""
        return canonical(ast.literal_eval(self.equals))


class CodeCheck(Check):
    """A function that gives the expected values; it is run in a sandbox."""

    type: Literal["code"]
    function: str = Field(pattern=r"^[a-z_][a-z0-9_]*$")
    tests: list[CodeTest] = Field(min_length=3)

    @model_validator(mode="after")
    def _calls_are_plain(self) -> CodeCheck:
        for test in self.tests:
            if not _is_plain_call(test.call, self.function):
                raise ValueError(f"{test.call!r} is no call of {self.function} with literals alone")
        return self

    def judge(self, answer: str, prompt: str) -> Judged:
        """Run the code of the answer. What it defines never comes into this process."""
        code, fenced = find_code(answer, self.function)
        if code is None:
            return Judged("incorrect", "no code in the answer")
        ran = run_calls(code, self.function, [test.call for test in self.tests], trim=not fenced)
        if ran.unavailable is not None:
            return Judged("unscored", ran.unavailable)
        for test, value in zip(self.tests, ran.values, strict=True):
            if value is None:
                return Judged("incorrect", f"{test.call}: {ran.problem}")
            if value != test.expected:
                return Judged("incorrect", f"{test.call} gives {value[:60]}, expected {test.expected[:60]}")
        return Judged("correct", f"{len(self.tests)} tests passed")


AnyCheck = Annotated[
    NumberCheck | TextCheck | ChoiceCheck | ConstraintsCheck | CodeCheck,
    Field(discriminator="type"),
]


class Item(BaseModel):
    """One task.

    Attributes:
        id: capability-KIND-NN.
        kind: arithmetic, reading, instruction, code or fact.
        difficulty: easy, medium or hard.
        prompt: what the user says.
        check: how an answer is judged.
        reference: an answer that passes.
        wrong: a plausible answer that does not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: str
    kind: Kind
    difficulty: Difficulty
    prompt: str
    check: AnyCheck
    reference: str
    wrong: str

    @model_validator(mode="after")
    def _whole(self) -> Item:
        for name in ("prompt", "reference", "wrong"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is empty, expected text")
        if not re.fullmatch(rf"capability-{self.kind}-\d{{2,}}", self.id):
            raise ValueError(f"id is {self.id!r}, expected capability-{self.kind}-NN")
        if isinstance(self.check, ChoiceCheck):
            absent = next((text for text in self.check.options.values() if text not in self.prompt), None)
            if absent is not None:
                raise ValueError(f"the option {absent!r} is not in the prompt")
        if isinstance(self.check, CodeCheck) and self.check.function not in self.prompt:
            raise ValueError(f"the prompt does not name the function {self.check.function!r}")
        return self


def judge(item: Item, answer: str | None) -> Judged:
    """Judge an answer. None stands for an engine that gave none: unscored. An empty answer is incorrect.

    Damage often shows as silence or babble, so neither is left out of the count.
    """
    if answer is None:
        return Judged("unscored", "no answer was given")
    if not answer.strip():
        return Judged("incorrect", "an empty answer")
    return item.check.judge(answer.strip(), item.prompt)


def load_items(path: Path) -> list[Item]:
    """Read a suite.

    Raises:
        MissingError: there is no such file.
        DataError: the first problem, with file and line number, what was found and what was expected.
    """
    items: list[Item] = []
    first_line: dict[str, int] = {}
    asked: dict[str, int] = {}
    for number, raw in read_jsonl(path):
        where = f"{path.name} line {number}"
        item = _parse(raw, where)
        for seen, value, name in ((first_line, item.id, "id"), (asked, " ".join(item.prompt.split()), "prompt")):
            if value in seen:
                raise DataError(f"{where}: {name} {value[:60]!r} is already on line {seen[value]}, expected a new one.")
            seen[value] = number
        if not isinstance(item.check, CodeCheck):
            problem = _contradiction(item)
            if problem is not None:
                raise DataError(f"{where}: {problem}", "Correct the check or the answer.")
        items.append(item)
    if not items:
        raise DataError(f"{path.name} holds no item, expected one a line.")
    return items


def self_check(items: Sequence[Item]) -> list[str]:
    """Judge every item's own reference and wrong answer, code included. Returns a line per contradiction."""
    return [f"{item.id}: {problem}" for item in items if (problem := _contradiction(item)) is not None]


def find_code(answer: str, function: str) -> tuple[str | None, bool]:
    """The code of an answer, and whether it was fenced: the last block that defines the function, else the last one.

    Without fences it is everything from the first line that looks like code; the sandbox drops prose after it.
    """
    blocks = [match.group(1) for match in _BLOCK.finditer(answer)]
    if blocks:
        defining = [block for block in blocks if re.search(rf"\bdef\s+{function}\b|\b{function}\s*=", block)]
        return _dedent((defining or blocks)[-1]), True
    start = _CODE_START.search(answer)
    return (answer[start.start() :], False) if start else (None, False)


def _dedent(block: str) -> str:
    import textwrap

    return textwrap.dedent(block)


def _contradiction(item: Item) -> str | None:
    good = judge(item, item.reference)
    if good.outcome != "correct":
        return f"its reference is {good.outcome} by its own check ({good.evidence})."
    for name, answer in (("wrong answer", item.wrong), ("prompt, given back as an answer,", item.prompt)):
        bad = judge(item, answer)
        if bad.outcome != "incorrect":
            return f"its {name} is {bad.outcome} by its own check ({bad.evidence})."
    return None


def _is_plain_call(text: str, function: str) -> bool:
    try:
        node = ast.parse(text, mode="eval").body
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function):
            return False
        for value in (*node.args, *(keyword.value for keyword in node.keywords)):
            ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
    return all(keyword.arg for keyword in node.keywords)


def _parse(raw: object, where: str) -> Item:
    if not isinstance(raw, dict):
        raise DataError(f"{where} is of type {type(raw).__name__}, expected an object.")
    try:
        return Item.model_validate(raw)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
        # pydantic names the member of a union after its tag: check.number.value, check.constraints.constraints.0.words
        key = ".".join(str(part) for part in problem["loc"])
        at = f"{key}: " if key else ""
        if problem["type"] == "extra_forbidden":
            raise DataError(f"{where}: unknown key {key!r}.", "Keys are described in suites/README.md.") from None
        if problem["type"] == "missing":
            raise DataError(f"{where}: {key!r} is missing.", "Keys are described in suites/README.md.") from None
        message = str(problem["msg"]).removeprefix("Value error, ")
        found = "" if problem["type"] == "value_error" else f" (found {str(problem['input'])[:60]!r})"
        raise DataError(f"{where}: {at}{message}{found}.") from None
