"""The Modelfile: read back by Ollama's rules, its template renders what the model's own chat template renders."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

import tiny
from karma_electric.core.errors import InputError
from karma_electric.core.messages import Conversation, as_dicts, assistant, system, user
from karma_electric.export.chat_format import detect_format
from karma_electric.export.modelfile import modelfile_names, render_modelfile
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
# Mistral's, in the three forms of its releases: 0.1 and 0.2; 0.3 (system prompt in the last turn); Nemo.
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}"
    "{{- bos_token }}{%- for message in loop_messages %}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('roles must alternate') }}"
    "{%- endif %}{%- if message['role'] == 'user' %}{%- if loop.PLACE and system_message is defined %}"
    "{{- 'OPEN' + system_message + '\n\n' + message['content'] + 'CLOSE' }}"
    "{%- else %}{{- 'OPEN' + message['content'] + 'CLOSE' }}{%- endif %}"
    "{%- else %}{{- 'ANSWER' + message['content'] + eos_token }}{%- endif %}{%- endfor %}"
)


def mistral(opening: str, closing: str, answer: str, place: str) -> str:
    words = {"OPEN": opening, "CLOSE": closing, "ANSWER": answer, "PLACE": place}
    text = MISTRAL
    for word, value in words.items():
        text = text.replace(word, value)
    return text


# Qwen 3's way with what it thought: of earlier answers only what follows </think> is kept.
QWEN3 = (
    "{%- for message in messages %}{%- set content = message.content %}"
    "{%- if message.role == 'assistant' and '</think>' in content %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
OTHER = tiny.CHAT_TEMPLATE.replace("message['content'] +", "message['content'] + '<think></think>' +")
TEMPLATES: dict[str, str] = {
    "chatml": tiny.CHAT_TEMPLATE,
    "chatml (qwen 3)": QWEN3,
    "llama3": LLAMA3,
    "llama3.1": LLAMA31,
    "mistral (0.1)": mistral(" [INST] ", " [/INST]", " ", "first"),
    "mistral (0.3)": mistral("[INST] ", "[/INST]", " ", "last"),
    "mistral (nemo)": mistral("[INST]", "[/INST]", "", "last"),
}
EOS = "</s>"
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

    Actions: `range .Messages`, `range $i, $_ := .Messages`, `if`, `else`, `else if`, `end`, `$x := true`, `$x = false`,
    and fields. Conditions: `eq .Field "text"`, and the two that Mistral's templates have.
    """

    def __init__(self, text: str) -> None:
        self.parts = re.split(r"(\{\{.*?\}\})", text)

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        self.messages = messages
        self.system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")  # as Ollama collates them
        self.variables: dict[str, bool] = {}
        out, place = self._block(0, None, 0)
        assert place == len(self.parts), "an {{ end }} or {{ else }} too many"
        return out

    def _block(self, place: int, dot: dict[str, str] | None, index: int) -> tuple[str, int]:
        """Render from `place` to the matching end or else (its place is returned) or the end of the template."""
        out = ""
        while place < len(self.parts):
            part = self.parts[place]
            if not part.startswith("{{"):
                assert "{{" not in part
                assert "}}" not in part
                out, place = out + part, place + 1
                continue
            action = part[2:-2].strip()
            if action == "end" or action.startswith("else"):
                return out, place
            if action in ("range .Messages", "range $i, $_ := .Messages"):
                end = place + 1
                for number, message in enumerate(self.messages):
                    text, end = self._block(place + 1, message, number)
                    out += text
                assert self.parts[end].strip("{} ") == "end"
                place = end
            elif action.startswith("if "):
                text, place = self._branches(place, dot, index)
                out += text
            elif assigned := re.fullmatch(r"\$(\w+) (:?=) (true|false)", action):
                assert (assigned[1] in self.variables) == (assigned[2] == "=")
                self.variables[assigned[1]] = assigned[3] == "true"
            elif action == "$.System":
                out += self.system
            elif field := re.fullmatch(r"\.(\w+)", action):
                assert dot is not None
                out += self._field(dot, field[1])
            else:
                raise AssertionError(f"not in the subset: {part}")
            place += 1
        return out, place

    def _branches(self, place: int, dot: dict[str, str] | None, index: int) -> tuple[str, int]:
        """The first branch of an `if` that holds, and the place of its end."""
        out, taken = "", False
        while True:
            action = self.parts[place][2:-2].strip()
            if action == "end":
                return out, place
            condition = action.removeprefix("else").strip().removeprefix("if ")
            holds = not taken and (not condition or self._holds(condition, dot, index))
            before = dict(self.variables)
            text, place = self._block(place + 1, dot, index)
            if holds:
                out, taken = text, True
            else:
                self.variables = before  # rendered only to find its end

    def _holds(self, condition: str, dot: dict[str, str] | None, index: int) -> bool:
        assert dot is not None
        if test := re.fullmatch(r'eq \.(\w+) "([^"]*)"', condition):
            return self._field(dot, test[1]) == test[2]
        if condition == "and $.System (eq (len (slice $.Messages $i)) 1)":
            return bool(self.system) and len(self.messages[index:]) == 1
        if condition == "and $.System $first":
            return bool(self.system) and self.variables["first"]
        raise AssertionError(f"not in the subset: {condition}")

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


def modelfile(template: str = "chatml", *, prompt: str = tiny.PERSONA, license_text: str | None = None) -> str:
    found = detect_format(TEMPLATES[template], eos_token=EOS)
    return render_modelfile(
        "tiny-q8_0.gguf",
        template=found.go_template(),
        stops=found.stops,
        system=found.as_said(prompt),
        temperature=0.7,
        context=4096,
        license_text=license_text,
    )


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_template_renders_like_the_models_own(name: str, conversation: Conversation) -> None:
    commands = dict(parse_modelfile(modelfile(name)))
    if conversation[0].role != "system":  # Ollama puts the Modelfile's prompt first
        conversation = [system(commands["SYSTEM"]), *conversation]
    expected = compile_template(TEMPLATES[name]).render(
        messages=as_dicts(conversation), add_generation_prompt=True, bos_token=BOS, eos_token=EOS
    )
    rendered = GoTemplate(commands["TEMPLATE"]).render(as_dicts(conversation))
    assert rendered == expected.removeprefix(BOS)


def test_the_template_agrees_with_transformers(tokenizer) -> None:
    conversation = [system(tiny.PERSONA), user("a"), assistant("b"), user("c")]
    expected = tokenizer.apply_chat_template(as_dicts(conversation), tokenize=False, add_generation_prompt=True)
    assert GoTemplate(dict(parse_modelfile(modelfile()))["TEMPLATE"]).render(as_dicts(conversation)) == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_format_is_detected(name: str) -> None:
    assert detect_format(TEMPLATES[name], eos_token=EOS).name == name.split(maxsplit=1)[0]


@pytest.mark.parametrize(
    "template", [OTHER, "{{ messages[0]['content'] }}", "{{ raise_exception('no system prompt') }}"]
)
def test_another_format_is_refused(template: str) -> None:
    with pytest.raises(InputError, match=r"chat template.*--template FILE"):
        detect_format(template, eos_token=EOS)


def test_mistral_stops_at_its_own_end_of_text() -> None:
    stops = [value for key, value in parse_modelfile(modelfile("mistral (0.3)")) if key == "stop"]
    assert stops == [EOS, "[INST]", "[/INST]"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a-q8_0.gguf"], ["Modelfile"]),
        (["a.gguf"], ["Modelfile"]),
        (["m-1b-capped-q8_0.gguf", "m-1b-q8_0.gguf"], ["Modelfile.capped", "Modelfile"]),
        (
            ["m-alpha-0.3-f16.gguf", "m-alpha-1-f16.gguf", "m-f16.gguf"],
            ["Modelfile.alpha-0.3", "Modelfile.alpha-1", "Modelfile"],
        ),
        (["one-q8_0.gguf", "two-q8_0.gguf"], ["Modelfile.one", "Modelfile.two"]),
    ],
)
def test_every_file_of_a_folder_has_its_own_modelfile(files: list[str], expected: list[str]) -> None:
    assert list(modelfile_names(files).values()) == expected


@pytest.mark.parametrize("stop", ["", 'a"b', "a\nb"])
def test_a_stop_string_that_a_modelfile_cannot_hold_is_refused(stop: str) -> None:
    with pytest.raises(InputError, match="stop string"):
        render_modelfile(
            "x.gguf", template="x", stops=[stop], system="x", temperature=0.0, context=1, license_text=None
        )


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
        render_modelfile(name, template="x", stops=[], system="x", temperature=0.0, context=1, license_text=None)
