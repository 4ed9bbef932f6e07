"""Writes the Modelfile that makes Ollama speak to a model in its own chat format, under its own system prompt.

Without TEMPLATE and stop parameters Ollama guesses from the GGUF file, and guesses wrong for many fine-tunes.
A format is described once, as a `_Frame`: the Go template, the check against the model's template, and the stop
strings all come from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from karma_electric.core.errors import InputError
from karma_electric.core.messages import Conversation, as_dicts, assistant, system, user
from karma_electric.models.chat_template import DATE
from karma_electric.models.engines.llamacpp import compile_template

Family = Literal["chatml", "llama3", "llama3.1"]


@dataclass(frozen=True)
class _Frame:
    """What a chat format writes around the words: `open role middle content close`.

    `note` stands before the content of a system turn; `trims` says that the format strips every content. BOS is
    not part of it: llama.cpp adds that to the tokens.
    """

    open: str
    middle: str
    close: str
    stops: tuple[str, ...]
    note: str = ""
    trims: bool = False

    def go_template(self) -> str:
        """The format as an Ollama template. Go has no trimming of values: contents are expected trimmed."""
        note = f'{{{{ if eq .Role "system" }}}}{self.note}{{{{ end }}}}' if self.note else ""
        turn = f"{self.open}{{{{ .Role }}}}{self.middle}{note}{{{{ .Content }}}}{self.close}"
        return f"{{{{ range .Messages }}}}{turn}{{{{ end }}}}{self.open}assistant{self.middle}"

    def render(self, conversation: Conversation) -> str:
        """What the template gives for a conversation, up to the header of the answer."""
        turns = [
            f"{self.open}{m.role}{self.middle}{self.note if m.role == 'system' else ''}{m.content}{self.close}"
            for m in conversation
        ]
        return "".join(turns) + f"{self.open}assistant{self.middle}"


_HEADERS = ("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>")
_LLAMA_STOPS = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|start_header_id|>")
_FRAMES: dict[Family, _Frame] = {
    "chatml": _Frame("<|im_start|>", "\n", "<|im_end|>\n", ("<|im_end|>", "<|im_start|>", "<|endoftext|>")),
    "llama3": _Frame(*_HEADERS, _LLAMA_STOPS, trims=True),
    "llama3.1": _Frame(
        *_HEADERS,
        _LLAMA_STOPS,
        note=f"Cutting Knowledge Date: December 2023\nToday Date: {DATE}\n\n",
        trims=True,
    ),
}
_PROBES: tuple[Conversation, ...] = (
    [system("Be kind."), user("one")],
    [system("Be kind.\n\nAlways."), user("one"), assistant("two\n\nlines"), user("<b>three</b> {{ .Role }}")],
)


def detect_family(chat_template: str) -> Family:
    """The format of a chat template, found by rendering conversations with it.

    Only conversations that begin with a system prompt count, because the Modelfile always gives one; what a
    template does without one (SmolLM2's brings a prompt of its own) does not matter.

    Raises:
        InputError: the template writes something else.
    """
    template = compile_template(chat_template)
    try:
        rendered = [
            template.render(
                messages=as_dicts(probe), add_generation_prompt=True, bos_token="", eos_token="", date_string=DATE
            )
            for probe in _PROBES
        ]
    except Exception as error:  # templates raise what they like
        raise InputError(
            f"The chat template fails on a plain conversation ({error}).", "Use an instruct model's own template."
        ) from None
    for family, frame in _FRAMES.items():
        texts = [frame.render(probe) for probe in _PROBES]
        if [text.removeprefix("<|begin_of_text|>") for text in rendered] == texts:
            return family
    raise InputError(
        f"The chat template writes none of the formats {', '.join(_FRAMES)}; it begins {rendered[0][:60]!r}.",
        "Write the Modelfile's TEMPLATE by hand, or add the format to export/modelfile.py.",
    )


def render_modelfile(
    gguf_name: str,
    *,
    family: Family,
    system: str,
    temperature: float,
    context: int,
    license_text: str | None,
) -> str:
    """The text of a Modelfile.

    Args:
        gguf_name: name of the GGUF file, in the same folder as the Modelfile.
        family: chat format, from `detect_family`.
        system: system prompt of every conversation that does not bring one.
        temperature: default sampling temperature.
        context: tokens of context; Ollama's own default is a few thousand and cuts silently.
        license_text: licence of the weights, in full.

    Raises:
        InputError: an empty system prompt, or text that a Modelfile cannot hold.
    """
    frame = _FRAMES[family]
    prompt = system.strip() if frame.trims else system
    if not prompt.strip():
        raise InputError("The system prompt is empty; Ollama would then send none.", "Set persona.system_prompt.")
    if gguf_name != gguf_name.strip() or any(not c.isprintable() or c in '/\\"' for c in gguf_name):
        raise InputError(f"{gguf_name!r} is not a plain file name.", "Give the name without its folder.")
    lines = [
        f"FROM ./{gguf_name}",
        f"TEMPLATE {_quoted(frame.go_template(), 'the template')}",
        f"SYSTEM {_quoted(prompt, 'the system prompt')}",
        f"PARAMETER temperature {temperature:g}",
        f"PARAMETER num_ctx {context}",
        *(f'PARAMETER stop "{stop}"' for stop in frame.stops),
    ]
    if license_text:
        lines.append(f'LICENSE """{_without_quotes(license_text, "the licence")}"""')
    return "\n".join(lines) + "\n"


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
