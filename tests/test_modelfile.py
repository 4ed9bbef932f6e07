"""The Modelfile: read back by Ollama's rules, its template renders what the model's own chat template renders."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

import tiny
from karma_electric.core.errors import InputError
from karma_electric.core.messages import Conversation, as_dicts, assistant, system, user
from karma_electric.export.modelfile import Family, detect_family, render_modelfile
from karma_electric.models.engines.llamacpp import compile_template

# The parts of Meta's templates that plain conversations reach.
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA31 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}{{- 'Cutting Knowledge Date: December 2023\n' }}"
    "{{- 'Today Date: ' + date_string + '\n\n' }}{{- system_message }}{{- '<|eot_id|>' }}"
    "{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
QWEN_LIKE = tiny.CHAT_TEMPLATE.replace("message['content'] +", "message['content'] + '<think></think>' +")
TEMPLATES: dict[Family, str] = {"chatml": tiny.CHAT_TEMPLATE, "llama3": LLAMA3, "llama3.1": LLAMA31}
BOS = "<|begin_of_text|>"
CONVERSATIONS: dict[str, Conversation] = {
    "one turn": [user("Hello?")],
    "multi-turn": [user("Hello?"), assistant("Hi.\n\nHow are you?"), user("Well, and\nyou?")],
    "own system prompt": [system("Answer in\nFrench."), user("Hello?")],
    "system and multi-turn": [system("Be brief."), user("a"), assistant("b"), user("c"), assistant("d"), user("e")],
    "template syntax in the words": [user("{{ .Role }} {% if %} <b>&amp;</b> 'a' \"b\"")],
}


class GoTemplate:
    """The part of Go's text/template that the Modelfiles use; anything else is an error.

    Actions: `range .Messages`, `if eq .Field "text"`, `end`, `.Field`. No trim markers, no variables.
    """

    def __init__(self, text: str) -> None:
        self.parts = re.split(r"(\{\{.*?\}\})", text)

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        out, place = self._block(0, messages, None)
        assert place == len(self.parts), "an {{ end }} too many"
        return out

    def _block(self, place: int, messages: Sequence[dict[str, str]], dot: dict[str, str] | None) -> tuple[str, int]:
        """Render from `place` to the matching end (returned) or the end of the template."""
        out = ""
        while place < len(self.parts):
            part = self.parts[place]
            if not part.startswith("{{"):
                assert "{{" not in part
                assert "}}" not in part
                out, place = out + part, place + 1
                continue
            action = part[2:-2].strip()
            if action == "end":
                return out, place
            if action == "range .Messages":
                bodies = [self._block(place + 1, messages, message) for message in messages]
                out, place = out + "".join(body for body, _ in bodies), bodies[0][1]
            elif test := re.fullmatch(r'if eq \.(\w+) "([^"]*)"', action):
                assert dot is not None
                body, place = self._block(place + 1, messages, dot)
                out += body if self._field(dot, test[1]) == test[2] else ""
            elif field := re.fullmatch(r"\.(\w+)", action):
                assert dot is not None
                out += self._field(dot, field[1])
            else:
                raise AssertionError(f"not in the subset: {part}")
            place += 1
        return out, place

    @staticmethod
    def _field(dot: dict[str, str], name: str) -> str:
        return {"Role": dot["role"], "Content": dot["content"]}[name]


def parse_modelfile(text: str) -> list[tuple[str, str]]:
    """Commands and values, by the rules of Ollama's parser: a value ends at the first newline at which its quotes are
    closed, and loses the characters that cannot be printed. A parameter is given under its own name."""
    commands: list[tuple[str, str]] = []
    name, value = "", None
    for character in text:
        if value is None and character == " ":
            name, value = ("", None) if name == "PARAMETER" else (name, "")
        elif value is None:
            name += character.strip()
        elif character == "\n" and (unquoted := _unquote(value.strip())) is not None:
            commands.append((name, unquoted))
            name, value = "", None
        elif character in " \t\n" or character.isprintable():
            value += character
    assert value is None, "unterminated quotes"
    return commands


def _unquote(text: str) -> str | None:
    for quotes in ('"""', '"'):
        if text.startswith(quotes):
            closed = len(text) >= 2 * len(quotes) and text.endswith(quotes)
            return text[len(quotes) : -len(quotes)] if closed else None
    return text


def modelfile(family: Family = "chatml", *, prompt: str = tiny.PERSONA, license_text: str | None = None) -> str:
    return render_modelfile(
        "tiny-q8_0.gguf", family=family, system=prompt, temperature=0.7, context=4096, license_text=license_text
    )


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
@pytest.mark.parametrize("family", TEMPLATES)
def test_the_template_renders_like_the_models_own(family: Family, conversation: Conversation) -> None:
    commands = dict(parse_modelfile(modelfile(family)))
    if conversation[0].role != "system":  # Ollama puts the Modelfile's prompt first
        conversation = [system(commands["SYSTEM"]), *conversation]
    expected = compile_template(TEMPLATES[family]).render(
        messages=as_dicts(conversation), add_generation_prompt=True, bos_token=BOS, eos_token=""
    )
    rendered = GoTemplate(commands["TEMPLATE"]).render(as_dicts(conversation))
    assert rendered == expected.removeprefix(BOS)


def test_the_template_agrees_with_transformers(tokenizer) -> None:
    conversation = [system(tiny.PERSONA), user("a"), assistant("b"), user("c")]
    expected = tokenizer.apply_chat_template(as_dicts(conversation), tokenize=False, add_generation_prompt=True)
    assert GoTemplate(dict(parse_modelfile(modelfile()))["TEMPLATE"]).render(as_dicts(conversation)) == expected


@pytest.mark.parametrize("family", TEMPLATES)
def test_the_family_is_detected(family: Family) -> None:
    assert detect_family(TEMPLATES[family]) == family


@pytest.mark.parametrize(
    "template", [QWEN_LIKE, "{{ messages[0]['content'] }}", "{{ raise_exception('no system prompt') }}"]
)
def test_another_format_is_refused(template: str) -> None:
    with pytest.raises(InputError, match="chat template"):
        detect_family(template)


def test_parameters_and_order() -> None:
    commands = parse_modelfile(modelfile(license_text="Apache License\nVersion 2.0\n"))
    assert commands[0] == ("FROM", "./tiny-q8_0.gguf")
    assert ("temperature", "0.7") in commands
    assert ("num_ctx", "4096") in commands
    assert [value for key, value in commands if key == "stop"] == ["<|im_end|>", "<|im_start|>", "<|endoftext|>"]
    assert commands[-1] == ("LICENSE", "Apache License\nVersion 2.0\n")


@pytest.mark.parametrize(
    "prompt",
    ['Say "no" kindly.', '"Quoted" from the start', 'to the "end"', '""', "a\n\nb  c\n", "# not a comment", "línea 🙂"],
)
def test_the_system_prompt_is_read_back_unchanged(prompt: str) -> None:
    assert dict(parse_modelfile(modelfile(prompt=prompt)))["SYSTEM"] == prompt


def test_llama_prompts_are_trimmed_as_the_template_does() -> None:
    assert dict(parse_modelfile(modelfile("llama3", prompt=" Be kind.\n")))["SYSTEM"] == "Be kind."


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ('a """ b', "triple|ends a text"),
        ("  \n", "empty"),
        ("zero\u200bwidth", r"U\+200B"),
        ("no\u00a0break", r"U\+00A0"),
    ],
)
def test_a_prompt_that_ollama_would_change_is_refused(prompt: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        modelfile(prompt=prompt)


def test_a_licence_with_triple_quotes_is_refused() -> None:
    with pytest.raises(InputError, match="licence"):
        modelfile(license_text='"""')


@pytest.mark.parametrize("name", ["folder/x.gguf", "x.gguf\nSYSTEM evil", ' "x.gguf'])
def test_a_name_that_is_not_a_file_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="plain file name"):
        render_modelfile(name, family="chatml", system="x", temperature=0.0, context=1, license_text=None)
