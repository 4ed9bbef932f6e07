"""The error tree: its exit codes, its public names, and that every error says what to do."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import karma_electric
from karma_electric.core import errors
from karma_electric.core.errors import KarmaError

EXIT_CODES = {
    "GateError": 1,
    "InputError": 2,
    "RecipeError": 2,
    "DataError": 2,
    "ArtifactError": 2,
    "BusyError": 2,
    "SpaceError": 2,
    "MissingError": 3,
}
USER_FACING = ("core/", "data/", "cli/", "pipeline.py", "stages.py")  # where files and commands are read
PUBLIC = [getattr(errors, name) for name in errors.__all__]


def raised_in_the_package() -> list[tuple[str, ast.Call]]:
    """(place, call) of every `raise SomeKarmaError(...)` in the source."""
    found = []
    root = Path(karma_electric.__file__).parent
    for file in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            call = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(call, ast.Call) and getattr(call.func, "id", None) in errors.__all__:
                found.append((f"{file.relative_to(root)}:{call.lineno}", call))
    return found


def message_and_hint(call: ast.Call) -> tuple[str, str]:
    """The two arguments as text; no hint is an empty one."""
    message, hint = [*call.args[:2], ast.Constant("")][:2]
    return text_of(message), text_of(hint)


def text_of(node: ast.expr) -> str:
    """The fixed parts of a string or f-string; a placeholder stands for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) else "{}."


@pytest.mark.parametrize(("name", "code"), EXIT_CODES.items())
def test_exit_code(name: str, code: int) -> None:
    assert getattr(errors, name)("found this.").exit_code == code


def test_all_names_every_error_and_nothing_else() -> None:
    defined = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert sorted(defined) == errors.__all__
    assert set(EXIT_CODES) == defined - {"KarmaError"}


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = dict(re.findall(r"^ +(\w+Error) +(?:exit (\d))?", errors.__doc__ or "", flags=re.MULTILINE))
    assert set(drawn) == set(EXIT_CODES)
    for name, code in drawn.items():
        if code:
            assert EXIT_CODES[name] == int(code)
        else:
            assert getattr(errors, name).__mro__[1] is errors.InputError


@pytest.mark.parametrize("error", PUBLIC)
def test_every_error_carries_message_and_hint(error: type[KarmaError]) -> None:
    raised = error("Found a stone.", "Give bread.")
    assert (raised.message, raised.hint) == ("Found a stone.", "Give bread.")
    assert str(raised) == "Found a stone. Give bread."
    assert isinstance(raised, KarmaError)


def test_without_a_hint_the_text_is_the_message() -> None:
    assert str(KarmaError("Found a stone.")) == "Found a stone."


def test_every_error_raised_is_one_line_and_a_sentence() -> None:
    raised = raised_in_the_package()
    assert len(raised) > 50
    for place, call in raised:
        message, hint = message_and_hint(call)
        assert "\n" not in message + hint, place
        assert message.endswith((".", "{}")), f"{place}: {message!r}"


def test_every_error_about_what_a_user_gave_says_what_to_do() -> None:
    """A hint, or the `expected ...` in the message."""
    for place, call in raised_in_the_package():
        message, hint = message_and_hint(call)
        if place.startswith(USER_FACING):
            assert hint.strip() or "expected" in message or "must" in message, f"{place}: {message!r}"
