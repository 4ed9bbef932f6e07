"""Chat formats as Go templates for Ollama, and which of them a model's own chat template writes.

A format is described once: the Go template, the check against the model's template, and the stop strings all come
from that description. BOS is not part of it: llama.cpp adds that to the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal, Protocol

from karma_electric.core.errors import InputError
from karma_electric.core.messages import Conversation, as_dicts, assistant, system, user
from karma_electric.models.chat_template import DATE
from karma_electric.models.engines.llamacpp import compile_template

_LAST = "(eq (len (slice $.Messages $i)) 1)"  # Ollama's own idiom for the last message


class ChatFormat(Protocol):
    """What a Modelfile needs to know of a chat format."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer."""

    def go_template(self) -> str:
        """The format as an Ollama template."""

    def render(self, conversation: Conversation) -> str:
        """What the template gives for a conversation, up to where the answer begins."""

    def as_said(self, text: str) -> str:
        """A system prompt as the format writes it."""


@dataclass(frozen=True)
class HeaderFormat:
    """Every turn under a header with its role: `open role middle content close`.

    `note` stands before the content of a system turn; `trims` says that the model's template strips every content.
    """

    name: str
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

    def as_said(self, text: str) -> str:
        """A system prompt as the format writes it."""
        return text.strip() if self.trims else text


@dataclass(frozen=True)
class InstructFormat:
    """Mistral's: user turns between marks, answers bare, the system prompt inside the first or the last user turn."""

    open: str
    close: str
    answer: str
    end: str
    system_in: Literal["first", "last"]
    name: str = "mistral"

    @property
    def stops(self) -> tuple[str, ...]:
        """The end of an answer, and the marks of a next question."""
        return (self.end, "[INST]", "[/INST]")

    def go_template(self) -> str:
        """The format as an Ollama template."""
        here = "$first" if self.system_in == "first" else _LAST
        prompt = f"{{{{ if and $.System {here} }}}}{{{{ $.System }}}}\n\n{{{{ end }}}}"
        start, over = ("{{ $first := true }}", "{{ $first = false }}") if self.system_in == "first" else ("", "")
        asked = f"{self.open}{prompt}{{{{ .Content }}}}{self.close}{over}"
        answered = f"{self.answer}{{{{ .Content }}}}{self.end}"
        return (
            f'{start}{{{{ range $i, $_ := .Messages }}}}{{{{ if eq .Role "user" }}}}{asked}'
            f'{{{{ else if eq .Role "assistant" }}}}{answered}{{{{ end }}}}{{{{ end }}}}'
        )

    def render(self, conversation: Conversation) -> str:
        """What the template gives for a conversation, up to where the answer begins."""
        prompt = "\n\n".join(m.content for m in conversation if m.role == "system")
        turns = [m for m in conversation if m.role != "system"]
        said, text = False, ""
        for number, message in enumerate(turns, 1):
            if message.role == "assistant":
                text += f"{self.answer}{message.content}{self.end}"
                continue
            here = not said if self.system_in == "first" else number == len(turns)
            before = f"{prompt}\n\n" if prompt and here else ""
            text += f"{self.open}{before}{message.content}{self.close}"
            said = True
        return text

    def as_said(self, text: str) -> str:
        """A system prompt as the format writes it."""
        return text


_HEADERS = ("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>")
_LLAMA_STOPS = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|start_header_id|>")
HEADER_FORMATS: tuple[HeaderFormat, ...] = (
    HeaderFormat("chatml", "<|im_start|>", "\n", "<|im_end|>\n", ("<|im_end|>", "<|im_start|>", "<|endoftext|>")),
    HeaderFormat("llama3", *_HEADERS, _LLAMA_STOPS, trims=True),
    HeaderFormat(
        "llama3.1",
        *_HEADERS,
        _LLAMA_STOPS,
        note=f"Cutting Knowledge Date: December 2023\nToday Date: {DATE}\n\n",
        trims=True,
    ),
)
_PROBES: tuple[Conversation, ...] = (
    [system("Be kind."), user("one")],
    [system("Be kind.\n\nAlways."), user("one"), assistant("two\n\nlines"), user("<b>three</b> {{ .Role }}")],
    [system("x"), user("a"), assistant("b"), user("c"), assistant("d"), user("e")],
)


def _formats(eos_token: str) -> Iterator[ChatFormat]:
    yield from HEADER_FORMATS
    if not eos_token:
        return
    for opening, closing, answer, place in product(
        ("[INST] ", " [INST] ", "[INST]"), ("[/INST]", " [/INST]"), ("", " "), ("first", "last")
    ):
        yield InstructFormat(opening, closing, answer, eos_token, place)  # type: ignore[arg-type]


def detect_format(chat_template: str, *, eos_token: str) -> ChatFormat:
    """The format of a chat template, found by rendering conversations with it.

    Only conversations that begin with a system prompt count, because the Modelfile always gives one; what a
    template does without one (SmolLM2's brings a prompt of its own) does not matter.

    Args:
        chat_template: Jinja, as in the tokenizer or the GGUF file.
        eos_token: the text of the token that ends a text, which some templates write after answers.

    Raises:
        InputError: the template writes something else.
    """
    template = compile_template(chat_template)
    try:
        rendered = [
            template.render(
                messages=as_dicts(probe),
                add_generation_prompt=True,
                bos_token="",
                eos_token=eos_token,
                date_string=DATE,
            )
            for probe in _PROBES
        ]
    except Exception as error:  # templates raise what they like
        raise InputError(
            f"The chat template fails on a plain conversation with a system prompt ({error}).",
            "Give an Ollama template of your own with --template FILE, and its --stop strings.",
        ) from None
    for found in _formats(eos_token):
        if [text.removeprefix("<|begin_of_text|>") for text in rendered] == [found.render(p) for p in _PROBES]:
            return found
    names = ", ".join([*(known.name for known in HEADER_FORMATS), "mistral"])
    raise InputError(
        f"The chat template writes none of the formats {names}; it begins {rendered[0][:60]!r}.",
        "Give an Ollama template of your own with --template FILE, and its --stop strings.",
    )
