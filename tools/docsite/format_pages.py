"""Reference of the files of a run: their fields, from the dataclasses that are written, and keys of a real file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docsite.api_pages import _described, _is_field
from docsite.markdown import code, plain, prose, table


@dataclass(frozen=True)
class File:
    """A file, the class whose fields it has (its dotted path below the package), and a real one."""

    name: str
    what: str
    form: str = ""
    real: str = ""


FILES = {
    "In every folder of a run": [
        File(
            "manifest.json",
            "Written last: where it is, the folder is whole. `id` is a hash of what was asked for.",
            "core.artifact.Manifest",
            "results/demo/axis/manifest.json",
        ),
    ],
    "What you write": [
        File("corpus/*.jsonl", "One training example a line.", "data.example.Example", "corpus/adversarial.jsonl"),
        File("suites, scenarios", "One scenario a line.", "redteam.scenario.Scenario", "suites/starter-30.jsonl"),
        File(
            "suites, prompts",
            "Contrast, calibration and held-out prompts, one a line.",
            "steer.contrast.Prompt",
            "suites/contrast-200.jsonl",
        ),
        File(
            "suites, labelled answers",
            "One labelled answer a line.",
            "redteam.labelled.Labelled",
            "suites/labelled-120.jsonl",
        ),
        File(
            "suites, capability items",
            "One item a line; see suites/README.md.",
            "redteam.capability.Item",
            "suites/capability-150.jsonl",
        ),
        File(
            "suites, conversations",
            "Conversations in which personas drift.",
            "redteam.drift_suite.DriftConversation",
            "suites/drift-24.jsonl",
        ),
    ],
    "release/": [File("summary.json", "What the release holds.", "", "results/demo/release/summary.json")],
    "adapter/": [
        File(
            "trajectory.jsonl",
            "A line per optimiser step, and per validation.",
            "",
            "results/demo/adapter/trajectory.jsonl",
        ),
        File(
            "training.json",
            "What training gave; its losses are told apart in [Training](../training.md).",
            "",
            "results/demo/adapter/training.json",
        ),
    ],
    "merged/": [
        File(
            "merge.json",
            "How the adapter was added, and how near it is to adapter on base.",
            "",
            "results/demo/merged/merge.json",
        )
    ],
    "axis/": [
        File(
            "axis.safetensors",
            "Unit directions and their lengths per site, float32, with this in its metadata.",
            "steer.axis.Axis",
        ),
        File(
            "cap.json",
            "The cap. `t` is a ceiling along a direction that points away from the persona.",
            "steer.spec.CapSpec",
            "results/demo/axis/cap.json",
        ),
        File(
            "responses.jsonl",
            "What the thresholds were set and measured on.",
            "steer.responses.Response",
            "results/demo/axis/responses.jsonl",
        ),
        File("diagnostics.json", "Whether the axis is real.", "steer.diagnostics.Diagnostics"),
    ],
    "capped/": [
        File("fidelity.json", "How faithful the cap neuron is to the hooks.", "", "results/demo/capped/fidelity.json")
    ],
    "gguf/": [
        File(
            "parity.json",
            "How near the GGUF files are to the checkpoints, per model.",
            "",
            "results/demo/gguf/parity.json",
        )
    ],
    "redteam/ARM/": [
        File(
            "completions.jsonl",
            "Every answer, a line per turn.",
            "redteam.runner.Answer",
            "results/demo/redteam/tuned/completions.jsonl",
        ),
        File(
            "verdicts.jsonl",
            "A line per scenario.",
            "redteam.signals.Verdict",
            "results/demo/redteam/tuned/verdicts.jsonl",
        ),
        File(
            "summary.json",
            "Counts and rates of the arm.",
            "redteam.stats.ArmSummary",
            "results/demo/redteam/tuned/summary.json",
        ),
    ],
    "redteam/judge/": [
        File(
            "agreement.json",
            "How far the judge agrees with labels, per half of them and over all.",
            "redteam.agreement.Agreement",
        )
    ],
}


def pages(package: Any, top: Path) -> dict[str, str]:
    """Path below reference/ -> Markdown.

    Args:
        package: as api_pages.load gives it.
        top: the repository.
    """
    text = (
        "# Files\n\nFields are read off the classes of this version, examples off real files. JSON and safetensors "
        "only: nothing is ever unpickled. Files of other projects have [a page of their own](../formats.md).\n\n"
    )
    for folder, files in FILES.items():
        text += f"## {folder}\n\n" + "".join(_file(file, package, top) for file in files)
    return {"files.md": text}


def find_class(package: Any, path: str) -> Any:
    """The class at a path, or the only one of that name where it has moved."""
    try:
        return package[path]
    except KeyError:
        found = [each for each in _classes(package) if each.name == path.rpartition(".")[2]]
        if len(found) != 1:
            raise SystemExit(f"error: {path} is no class any more. Correct tools/docsite/format_pages.py.") from None
        return found[0]


def _classes(owner: Any) -> Iterator[Any]:
    for member in owner.members.values():
        if member.is_alias:
            continue
        if member.is_class:
            yield member
        elif member.is_module:
            yield from _classes(member)


def _file(file: File, package: Any, top: Path) -> str:
    text = f"### {file.name}\n\n{file.what}\n\n"
    real = _record(top / file.real) if file.real else {}
    if file.form:
        form = find_class(package, file.form)
        described = _described(form)
        said = next((s.value for s in form.docstring.parsed if s.kind.value == "text"), "") if form.docstring else ""
        text += prose(f"`{form.name}` in `{form.module.path}`: {said}") + "\n"
        rows = [
            (code(name), code(attribute.annotation), plain(described.get(name, "")), _example(real.get(name)))
            for name, attribute in form.members.items()
            if _is_field(attribute)
        ]
        text += table(["Field", "Type", "Meaning", "Example"], rows) + "\n"
        real = {key: value for key, value in real.items() if key not in form.members}
        text += "Keys beside these:\n\n" if real else ""
    if real:
        text += table(["Key", "Type", "Example"], _rows(real)) + "\n"
    return text


def _record(path: Path) -> dict[str, Any]:
    """The object in a JSON file; of JSON Lines all keys that occur, each with the first value it has."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        found: dict[str, Any] = json.loads(text)
        return found
    merged: dict[str, Any] = {}
    for line in text.splitlines():
        merged = json.loads(line) | merged
    return merged


def _rows(value: dict[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, str, str]]:
    for key, inner in value.items():
        if (
            isinstance(inner, dict)
            and inner
            and depth < 2
            and not all(name.isdigit() for name in inner if name != "mean")
        ):
            yield code(prefix + key), "object", ""
            yield from _rows(inner, f"{prefix}{key}.", depth + 1)
        else:
            yield code(prefix + key), _kind(inner), _example(inner)


def _kind(value: object) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "true or false", int: "whole number", float: "number"}
    return names.get(type(value), "none")


def _example(value: object) -> str:
    if value is None:
        return ""
    text = json.dumps(value, ensure_ascii=False)
    return code(text if len(text) <= 60 else text[:57] + "...")
