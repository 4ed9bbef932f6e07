"""Reference of the Python modules, read from their source by griffe: nothing is imported."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import griffe

from docsite.markdown import fence, plain, prose

PACKAGE = "karma_electric"
_LEFT_OUT = {"cli", "__main__"}  # verbs have a reference of their own
_SECTIONS = {"parameters": "Arguments", "returns": "Returns", "yields": "Yields", "raises": "Raises"}


@cache
def load(source: str) -> Any:
    """The package as griffe sees it."""
    # docstrings here name several arguments in one line and say "what `capped` raises": nothing to be warned of
    quiet = {"warnings": False}
    return griffe.load(
        PACKAGE,
        search_paths=[source],
        docstring_parser="google",
        docstring_options=quiet,  # type: ignore[arg-type]
        allow_inspection=False,
    )


def pages(source: str) -> dict[str, str]:
    """Path below reference/ -> Markdown: a page per part of the package."""
    package = load(source)
    parts = [member for member in _modules_of(package) if member.name not in _LEFT_OUT]
    groups = [part for part in parts if part.is_package or part.is_subpackage]
    single = [part for part in parts if part not in groups]
    made = {f"api/{part.name}.md": _page(part) for part in groups}
    made["api/top.md"] = (
        f"# {PACKAGE}\n\nModules at the top of the package, which put the parts together.\n\n"
        + "\n".join(_module(part) for part in single)
    )
    names = [*(part.name for part in groups), "top"]
    summaries = "\n".join(f"- [{code_path(part)}]({part.name}.md): {_summary(part)}" for part in groups)
    made["api/index.md"] = (
        "# Python modules\n\nRead off the source of this version. Arguments have shapes and units, errors a reason.\n\n"
        "Until version 1.0 names here may change with a minor version; what is promised stands in "
        "[Versions](../../project/contributing.md#versions). Imports go downward only: "
        "`cli` > `pipeline`, `serve`, `card` > `data` | `train` | `steer` | `export` | `redteam` > `models` "
        "> `core`.\n\n"
        f"{summaries}\n- [modules at the top](top.md)\n\n```{{toctree}}\n:hidden:\n\n" + "\n".join(names) + "\n```\n"
    )
    return made


def _summary(part: Any) -> str:
    text = part.docstring.value if part.docstring else ""
    return plain(" ".join(text.split("\n\n")[0].split()))


def code_path(part: Any) -> str:
    """Dotted path as code."""
    return f"`{part.path}`"


def _modules_of(package: Any) -> list[Any]:
    found = [m for m in package.members.values() if not m.is_alias and m.is_module and not m.name.startswith("_")]
    return sorted(found, key=lambda module: module.name)


def _page(part: Any) -> str:
    text = f"# {part.path}\n\n" + (prose(part.docstring.value) if part.docstring else "")
    return text + "\n" + "\n".join(_module(module) for module in _walk(part))


def _walk(part: Any) -> Iterator[Any]:
    for module in _modules_of(part):
        yield module
        yield from _walk(module)


def _module(module: Any) -> str:
    text = (
        f"```{{py:currentmodule}} {module.path}\n```\n\n## {module.path}\n\n"
        + (prose(module.docstring.value) if module.docstring else "")
        + "\n"
    )
    for member in _own(module):
        text += _class(member) if member.is_class else _function(member, "function")
    return text


def _own(owner: Any) -> Iterator[Any]:
    """Public classes and functions that are defined here, in the order of the source."""
    for member in owner.members.values():
        if not member.is_alias and (member.is_class or member.is_function) and not member.name.startswith("_"):
            yield member


def _class(member: Any) -> str:
    fields = [(name, attribute) for name, attribute in member.members.items() if _is_field(attribute)]
    bases = ", ".join(str(base) for base in member.bases)
    signature = member.name + (f"({bases})" if bases else "")
    described = _described(member)
    body = _docstring(member, leave="attributes")
    if fields:
        body += "\n" + "\n".join(
            f"- `{name}: {attribute.annotation}`" + (f": {plain(text)}" if (text := described.get(name, "")) else "")
            for name, attribute in fields
        )
    body += "\n\n" + "\n".join(_function(each, "method") for each in _own(member) if each.is_function)
    return _directive("class", signature, body, ticks=6)


def _is_field(attribute: Any) -> bool:
    return (
        attribute.is_attribute
        and not attribute.is_alias
        and attribute.annotation is not None
        and not attribute.name.startswith("_")
        and "property" not in attribute.labels
    )


def _described(member: Any) -> dict[str, str]:
    """Attribute -> its sentence: from the docstring, else from the comment at the end of its line."""
    found = {}
    for attribute in (each for each in member.members.values() if _is_field(each)):
        line = member.module.source.splitlines()[attribute.endlineno - 1] if attribute.endlineno else ""
        if "  # " in line:
            found[attribute.name] = line.rpartition("  # ")[2].strip()
    for section in member.docstring.parsed if member.docstring else []:
        if section.kind.value == "attributes":
            found |= {entry.name: " ".join(entry.description.split()) for entry in section.value}
    return found


def _function(member: Any, kind: str) -> str:
    if not member.is_function:
        return ""
    signature = member.signature(name=member.name)
    return _directive(kind, " ".join(str(signature).split()), _docstring(member), ticks=6 if kind == "function" else 5)


def _docstring(member: Any, leave: str = "") -> str:
    text = ""
    for section in member.docstring.parsed if member.docstring else []:
        kind = section.kind.value
        if kind == "text":
            text += prose(section.value) + "\n"
        elif kind in _SECTIONS:
            text += f"**{_SECTIONS[kind]}**\n\n" + "".join(_entry(kind, each) for each in section.value) + "\n"
        elif kind != leave:
            text += fence(str(getattr(section.value, "contents", "") or section.value)) + "\n"
    return text


def _entry(kind: str, entry: Any) -> str:
    label = (
        getattr(entry, "name", "") if kind == "parameters" else str(entry.annotation or "") if kind == "raises" else ""
    )
    described = plain(" ".join(entry.description.split()))
    return f"- `{label}`: {described}\n" if label else f"- {described}\n"


def _directive(kind: str, signature: str, body: str, *, ticks: int) -> str:
    fenced = "`" * ticks
    return f"{fenced}{{py:{kind}}} {signature}\n\n{body.strip()}\n{fenced}\n\n"
