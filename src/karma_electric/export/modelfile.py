"""Writes the Modelfile that makes Ollama speak to a model in its own chat format, under its own system prompt.

Without TEMPLATE and stop parameters Ollama guesses from the GGUF file, and guesses wrong for many fine-tunes.
`chat_format` knows the templates; this module knows what a Modelfile can hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from karma_electric.core.errors import InputError


def render_modelfile(
    gguf_name: str,
    *,
    template: str,
    stops: Sequence[str],
    system: str,
    temperature: float,
    context: int,
    license_text: str | None,
) -> str:
    """The text of a Modelfile.

    Args:
        gguf_name: name of the GGUF file, in the same folder as the Modelfile.
        template: Go template of the prompt.
        stops: texts that end an answer.
        system: system prompt of every conversation that does not bring one.
        temperature: default sampling temperature.
        context: tokens of context; Ollama's own default is a few thousand and cuts silently.
        license_text: licence of the weights, in full.

    Raises:
        InputError: an empty system prompt, or text that a Modelfile cannot hold.
    """
    if not system.strip():
        raise InputError("The system prompt is empty; Ollama would then send none.", "Set persona.system_prompt.")
    if gguf_name != gguf_name.strip() or any(not c.isprintable() or c in '/\\"' for c in gguf_name):
        raise InputError(f"{gguf_name!r} is not a plain file name.", "Give the name without its folder.")
    lines = [
        f"FROM ./{gguf_name}",
        f"TEMPLATE {_quoted(template, 'the template')}",
        f"SYSTEM {_quoted(system, 'the system prompt')}",
        f"PARAMETER temperature {temperature:g}",
        f"PARAMETER num_ctx {context}",
        *(f"PARAMETER stop {_stop(stop)}" for stop in stops),
    ]
    if license_text:
        lines.append(f'LICENSE """{_without_quotes(license_text, "the licence")}"""')
    return "\n".join(lines) + "\n"


def _stop(text: str) -> str:
    if not text or any(not c.isprintable() or c == '"' for c in text):
        raise InputError(
            f"{text!r} cannot be a stop string of a Modelfile.",
            "Give printable characters on one line, without quotes.",
        )
    return f'"{text}"'


def _quoted(text: str, what: str) -> str:
    """Text in triple quotes, which Ollama reads back unchanged, or an error."""
    lost = next((c for c in text if not c.isprintable() and c not in "\n\t"), None)
    if lost is not None:
        raise InputError(
            f"{what.capitalize()} holds the invisible character U+{ord(lost):04X}, which Ollama drops.", "Remove it."
        )
    return f'"""{_without_quotes(text, what)}"""'


def _without_quotes(text: str, what: str) -> str:
    if '"""' in text:
        raise InputError(f'{what.capitalize()} holds """, which ends a text in a Modelfile.', "Write it otherwise.")
    return text


def modelfile_names(gguf_names: Sequence[str]) -> dict[str, str]:
    """Name of the Modelfile of each GGUF file of a folder: `Modelfile`, and `Modelfile.SUFFIX` for variants.

    The shortest name that all others begin with is the plain model, and what follows it in the others is their
    suffix: x-q8_0.gguf, x-capped-q8_0.gguf -> Modelfile, Modelfile.capped. Without such a name every file has its own.
    """
    stems = {name: name.removesuffix(".gguf") for name in gguf_names}
    endings = {stem.rpartition("-")[2] for stem in stems.values()}
    if len(endings) == 1 and all("-" in stem for stem in stems.values()):  # the type, in all of them
        stems = {name: stem.rpartition("-")[0] for name, stem in stems.items()}
    plain = min(stems.values(), key=len)
    if not all(stem == plain or stem.startswith(f"{plain}-") for stem in stems.values()):
        return {name: f"Modelfile.{stem}" for name, stem in stems.items()}
    return {
        name: "Modelfile" if stem == plain else f"Modelfile.{stem.removeprefix(plain + '-')}"
        for name, stem in stems.items()
    }


def hub_settings(modelfile: str) -> dict[str, str]:
    """The files by which a hub repository tells Ollama what a Modelfile tells it: `template`, `system`, `params`.

    `ollama run hf.co/owner/name` reads no Modelfile; without these it guesses the template and has no persona.

    Args:
        modelfile: as `render_modelfile` writes it.

    Returns:
        name -> content, for those that the Modelfile has; each ends as Ollama is to read it, without a line's end.
    """
    blocks = dict(re.findall(r'^(TEMPLATE|SYSTEM) """(.*?)"""$', modelfile, flags=re.DOTALL | re.MULTILINE))
    outside = re.sub(r'^[A-Z]+ """.*?"""$', "", modelfile, flags=re.DOTALL | re.MULTILINE)
    params: dict[str, Any] = {}
    for key, value in re.findall(r"^PARAMETER (\S+) (.+)$", outside, flags=re.MULTILINE):
        if key == "stop":
            params.setdefault("stop", []).append(value.strip('"'))
        else:
            params[key] = json.loads(value)
    found = {"template": blocks.get("TEMPLATE"), "system": blocks.get("SYSTEM")}
    return {name: text for name, text in found.items() if text is not None} | (
        {"params": json.dumps(params)} if params else {}
    )
