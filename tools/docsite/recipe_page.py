"""Reference of recipe keys, from the models that check them."""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from docsite.markdown import code, plain, table

_LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def pages() -> dict[str, str]:
    """Path below reference/ -> Markdown."""
    from karma_electric.core.recipe import Recipe

    return {
        "recipe.md": "# Recipe keys\n\nRead off the code of this version. `karma show RECIPE` prints the same with the "
        "values that a recipe has. Unknown keys are refused.\n\n" + section(Recipe, ())
    }


def section(model: type[BaseModel], path: tuple[str, ...]) -> str:
    """Table of a section's own keys, then its sections."""
    own = {name: field for name, field in model.model_fields.items() if _model_of(field.annotation) is None}
    inner = {name: found for name, field in model.model_fields.items() if (found := _model_of(field.annotation))}
    title = f"## [{'.'.join(path)}]\n\n" if path else ""
    intro = f"{plain(' '.join((model.__doc__ or '').split()))}\n\n"
    rows = [
        (code(name), type_of(field), default_of(field), plain(field.description or "")) for name, field in own.items()
    ]
    text = title + intro + table(["Key", "Type", "Default", "Meaning"], rows) + "\n"
    return text + "".join(section(found, (*path, name)) for name, found in inner.items())


def type_of(field: FieldInfo) -> str:
    """Type and limits in words."""
    limits = [
        f"{word} {getattr(rule, name)}"
        for rule in field.metadata
        for name, word in _LIMITS.items()
        if getattr(rule, name, None) is not None
    ]
    filled = any(getattr(rule, "min_length", 0) for rule in field.metadata)
    return ", ".join([_words(field.annotation), *limits, *(["not empty"] if filled else [])])


def default_of(field: FieldInfo) -> str:
    """The default, or `required`."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "none" if value is None or value is PydanticUndefined else code(repr(value).replace("'", '"'))


def _words(annotation: Any) -> str:
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(code(value) for value in inside)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(each) for each in inside if each is not type(None))
    if origin is list:
        return f"list of {_words(inside[0])}"
    if origin is tuple:
        return f"[{', '.join(_words(each) for each in inside)}]"
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}.get(annotation, str(annotation))


def _model_of(annotation: Any) -> type[BaseModel] | None:
    is_class = isinstance(annotation, type) and get_origin(annotation) is None
    return annotation if is_class and issubclass(annotation, BaseModel) else None
