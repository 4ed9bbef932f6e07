"""Whether a text parses in a language, and if not, why. Nothing is executed.

Parsers come from the standard library where it has them, sqlglot for SQL, and tree-sitter grammars for the rest. The
third-party ones come with the development requirements; where one is missing, the language has no parser.
"""

from __future__ import annotations

import ast
import configparser
import csv
import doctest
import importlib
import json
import logging
import re
import shutil
import subprocess
import textwrap
import warnings
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

from karma_electric.core.extras import is_present

_LONGEST_WAIT_S = 20
# language -> (package, function that gives the grammar)
_GRAMMARS = {
    "c": ("tree_sitter_c", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "csharp": ("tree_sitter_c_sharp", "language"),
    "css": ("tree_sitter_css", "language"),
    "dockerfile": ("tree_sitter_containerfile", "language"),
    "go": ("tree_sitter_go", "language"),
    "hcl": ("tree_sitter_hcl", "language"),
    "java": ("tree_sitter_java", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "kotlin": ("tree_sitter_kotlin", "language"),
    "lua": ("tree_sitter_lua", "language"),
    "makefile": ("tree_sitter_make", "language"),
    "php": ("tree_sitter_php", "language_php_only"),
    "ruby": ("tree_sitter_ruby", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "swift": ("tree_sitter_swift", "language"),
    "tsx": ("tree_sitter_typescript", "language_tsx"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
}
_VOID = frozenset(
    ["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"]
)
_END_TAG_OPTIONAL = frozenset(
    [
        "html",
        "head",
        "body",
        "li",
        "dt",
        "dd",
        "p",
        "rt",
        "rp",
        "optgroup",
        "option",
        "colgroup",
        "thead",
        "tbody",
        "tfoot",
        "tr",
        "td",
        "th",
        "caption",
    ]
)
_SQL_DIALECTS = ("postgres", "sqlite", "mysql", "tsql")


class NoParser(Exception):
    """Nothing here can read the language that it names."""


def problem(language: str, code: str) -> str:
    """Why a text does not parse in a language; empty if it does.

    Args:
        language: "python", "cpp", "csharp", "bash" and so on, in lower case.
        code: the text.

    Raises:
        NoParser: nothing here can read that language.
    """
    if language in _PARSERS:
        return _PARSERS[language](code)
    if language in _GRAMMARS:
        return _tree_sitter(language, code)
    raise NoParser(language)


def _python(code: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape is no syntax error
            ast.parse(textwrap.dedent(code))
    except (SyntaxError, ValueError) as error:
        return f"{error.msg} (line {error.lineno})" if isinstance(error, SyntaxError) else str(error)
    return ""


def _python_session(code: str) -> str:
    try:
        examples = doctest.DocTestParser().get_examples(code)
    except ValueError as error:
        return str(error)
    return next((reason for example in examples if (reason := _python(example.source))), "")


def _json(code: str) -> str:
    try:
        json.loads(code)
    except ValueError as error:
        return str(error)
    return ""


def _json_lines(code: str) -> str:
    return next((reason for line in code.splitlines() if line.strip() and (reason := _json(line))), "")


def _toml(code: str) -> str:
    toml: Any = importlib.import_module("tomllib" if is_present("tomllib") else "tomli")
    try:
        toml.loads(code)
    except ValueError as error:
        return str(error)
    return ""


def _yaml(code: str) -> str:
    if not is_present("yaml"):
        raise NoParser("yaml")
    yaml: Any = importlib.import_module("yaml")
    try:
        # composed, not constructed: tags of other programs (`!Ref`) are well-formed
        list(yaml.compose_all(code, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        return " ".join(str(error).split())
    return ""


def _xml(code: str) -> str:
    try:
        ElementTree.fromstring(code.strip())
    except ElementTree.ParseError as error:
        return str(error)
    return ""


def _html(code: str) -> str:
    return _Html().problem(code)


class _Html(HTMLParser):
    """Follows the open elements, which html.parser itself does not; looks into scripts and styles as well."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[tuple[str, int]] = []
        self._problem = ""

    def problem(self, code: str) -> str:
        self.feed(code)
        self.close()
        left = [(tag, line) for tag, line in self._open if tag not in _END_TAG_OPTIONAL]
        if left and not self._problem:
            self._problem = f"<{left[-1][0]}> of line {left[-1][1]} is never closed"
        return self._problem

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _VOID:
            self._open.append((tag, self.getpos()[0]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """`<br/>`: nothing is opened."""

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open[-1][0] != tag and self._open[-1][0] in _END_TAG_OPTIONAL:
            self._open.pop()
        if self._open and self._open[-1][0] == tag:
            self._open.pop()
        elif not self._problem:
            expected = f"</{self._open[-1][0]}>" if self._open else "none"
            self._problem = f"</{tag}> in line {self.getpos()[0]}, expected {expected}"

    def handle_data(self, data: str) -> None:
        inside = self._open[-1][0] if self._open else ""
        language = {"script": "javascript", "style": "css"}.get(inside)
        if language and data.strip() and not self._problem and _tree_sitter_parser(language):
            reason = _tree_sitter(language, data)
            self._problem = reason and f"<{inside}>: {reason}"


def _ini(code: str) -> str:
    try:
        configparser.RawConfigParser(strict=False, allow_no_value=True).read_string(code)
    except configparser.Error as error:
        return str(error).splitlines()[0]
    return ""


def _csv(code: str) -> str:
    try:
        widths = {len(row) for row in csv.reader(code.strip().splitlines(), strict=True)}
    except csv.Error as error:
        return str(error)
    return f"rows of {min(widths)} to {max(widths)} fields" if len(widths) > 1 and 1 not in widths else ""


def _diff(code: str) -> str:
    known = re.compile(r"[ +\-\\]|@@ .*@@|diff |index |(old|new|deleted|similarity|rename|copy|new file) |$")
    for number, line in enumerate(code.splitlines(), 1):
        if not known.match(line):
            return f"line {number} begins with no sign of a diff"
    return ""


def _shell(code: str) -> str:
    bash = shutil.which("bash")
    if bash is None:
        raise NoParser("bash")
    done = subprocess.run(
        [bash, "-n"], input=code, capture_output=True, text=True, timeout=_LONGEST_WAIT_S, check=False
    )
    # a here-document without its end is only a warning to bash
    problem = done.stderr.strip()
    return (problem.splitlines() or ["bash -n refuses it"])[0] if done.returncode or problem else ""


def _sql(code: str) -> str:
    if not is_present("sqlglot"):
        raise NoParser("sql")
    sqlglot: Any = importlib.import_module("sqlglot")
    logging.getLogger("sqlglot").setLevel(logging.ERROR)  # it warns of what it only half reads
    reasons = []
    for dialect in _SQL_DIALECTS:
        try:
            statements = sqlglot.parse(code, read=dialect)
        except sqlglot.errors.SqlglotError as error:
            reasons.append(re.sub(r"\x1b\[\d*m", "", str(error)).splitlines()[0])
            continue
        # a word alone is an expression to sqlglot
        loose = [s for s in statements if isinstance(s, (sqlglot.exp.Condition, sqlglot.exp.Alias))]
        if not loose:
            return ""
        reasons.append(f"{loose[0].sql()[:60]!r} is no statement")
    return reasons[0]


def _excel(code: str) -> str:
    """A formula a line: begins with =, and closes its quotes and brackets. Names of functions are not looked up."""
    for number, line in enumerate(code.splitlines(), 1):
        formula = line.strip()
        if not formula:
            continue
        if not formula.startswith("="):
            return f"line {number} is no formula: it does not begin with ="
        bare = re.sub(r"\"(?:[^\"]|\"\")*\"|'(?:[^']|'')*'", "0", formula)
        closes_first = re.search(r"^[^(]*\)", bare)
        if '"' in bare or "'" in bare or closes_first or bare.count("(") != bare.count(")"):
            return f"line {number}: quotes or brackets do not match"
        if re.search(r"\(\s*[,;]|[-+*/^&=<>,;]\s*$|[*/^&]\s*[*/^&]", bare) and not bare.endswith(("#", "%")):
            return f"line {number}: an operand is missing"
    return ""


_QUOTED = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'", re.DOTALL)
_COMMENT = re.compile(r"(?<![^\s;{}])#[^\n]*")


def _nginx(code: str) -> str:
    """Directives: words that end in a semicolon or open a block. Which directives there are is not looked up."""
    words = 0  # of the directive that is being read
    depth = 0
    for number, line in enumerate(_COMMENT.sub("", _QUOTED.sub("text", code)).splitlines(), 1):
        # braces within a word (${name}, \\d{2}) are no blocks
        for token in re.findall(r";|(?:^|(?<=[\s;{}]))[{}]|(?:\$\{\w+\}|[^\s;{}]|(?<=\S)\{[\d,]+\})+|[{}]", line):
            if token in (";", "{"):
                if not words:
                    return f"nothing stands before the {token!r} of line {number}"
                depth += token == "{"
                words = 0
            elif token == "}":
                if words or not depth:
                    return f"line {number}: " + ("a semicolon is missing before }" if words else "} closes nothing")
                depth -= 1
            else:
                words += 1
    return "a semicolon is missing at the end" if words else f"{depth} blocks are open at the end" * bool(depth)


def _r(code: str) -> str:
    """Quotes, brackets and operators without an operand: no R parser can be installed, so no more than that."""
    bare = re.sub(r"#[^\n]*", "", _QUOTED.sub("0", code))
    if re.search(r"[\"'`]", re.sub(r"`[^`]*`", "x", bare)):
        return "a quote is not closed"
    opened: list[str] = []
    for number, line in enumerate(bare.splitlines(), 1):
        for sign in re.findall(r"[()\[\]{}]", line):
            if sign in "([{":
                opened.append(sign)
            elif not opened or opened.pop() + sign not in ("()", "[]", "{}"):
                return f"{sign!r} in line {number} closes nothing"
    if opened:
        return f"{opened[-1]!r} is never closed"
    dangling = re.search(r"(?:[-+*/^=<>&|~:]|%[^%\s]*%)\s*(?:[)\]}]|\Z)|[*/^]\s*[*/^=]|=\s+=", bare)
    return f"an operand is missing at {dangling.group().strip()!r}" if dangling else ""


def _typescript(code: str) -> str:
    reason = _tree_sitter("typescript", code)
    return reason and (_tree_sitter("tsx", code) and reason)


def _tree_sitter(language: str, code: str) -> str:
    parser = _tree_sitter_parser(language)
    if parser is None:
        raise NoParser(language)
    source = code.encode("utf-8", "surrogatepass")
    nodes = [parser.parse(source).root_node]
    while nodes:
        node = nodes.pop()
        if node.is_missing:
            return f"{node.type!r} is missing (line {node.start_point[0] + 1})"
        if node.is_error:
            text = source[node.start_byte : node.end_byte].decode("utf-8", "replace").strip().splitlines() or [""]
            return f"unexpected {text[0][:60]!r} (line {node.start_point[0] + 1})"
        nodes += [child for child in reversed(node.children) if child.has_error or child.is_missing]
    return ""


@cache
def _tree_sitter_parser(language: str) -> Any:
    """The parser, or None where its package is not installed."""
    package, function = _GRAMMARS[language]
    if not is_present("tree_sitter") or not is_present(package):
        return None
    tree_sitter: Any = importlib.import_module("tree_sitter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # older grammars hand over a pointer as a number
        grammar = tree_sitter.Language(getattr(importlib.import_module(package), function)())
    return tree_sitter.Parser(grammar)


_PARSERS: dict[str, Callable[[str], str]] = {
    "python": _python,
    "pycon": _python_session,
    "json": _json,
    "jsonl": _json_lines,
    "toml": _toml,
    "yaml": _yaml,
    "xml": _xml,
    "html": _html,
    "ini": _ini,
    "csv": _csv,
    "diff": _diff,
    "bash": _shell,
    "sh": _shell,
    "sql": _sql,
    "excel": _excel,
    "nginx": _nginx,
    "r": _r,
    "typescript": _typescript,
}
