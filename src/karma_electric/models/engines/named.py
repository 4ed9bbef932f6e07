"""Engines by name: a checkpoint folder, a GGUF file, the embedded model, or a script of answers in a JSON file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from karma_electric.core.artifact import read_json
from karma_electric.core.errors import DataError, InputError, MissingError
from karma_electric.core.messages import Conversation
from karma_electric.models.engines.gathering import GivenUp
from karma_electric.models.engines.protocol import Alpha, Engine, acts
from karma_electric.models.engines.scripted import Script, ScriptedEngine

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EngineKind = Literal["auto", "hf", "llamacpp", "scripted"]
_KINDS: tuple[str, ...] = get_args(EngineKind)
_SCRIPTED = "scripted:"


def engine_kind(name: str, asked: str = "auto", *, hooks: bool = False) -> str:
    """Which engine runs a name: "hf", "llamacpp" or "scripted". `auto` is the fastest that can do what is asked.

    A GGUF file runs in llama.cpp, which is the faster; transformers runs it too, dequantised, where activations are to
    be capped or read.

    Args:
        name: a checkpoint folder, a hub id, builtin:smollm2-135m, a .gguf file, or scripted:FILE.json.
        asked: an engine, or "auto".
        hooks: whether a cap, a strength or drift is asked for: what only hooks can do.

    Raises:
        InputError: no such engine, or one that cannot run this name or do what is asked.
    """
    if asked not in _KINDS:
        raise InputError(f"The engine {asked!r} is unknown.", f"Give one of {', '.join(_KINDS)}.")
    if name.startswith(_SCRIPTED):
        fitting: tuple[str, ...] = ("scripted",)
    elif name.endswith(".gguf"):
        fitting = ("hf",) if hooks and asked == "auto" else ("llamacpp", "hf")
    else:
        fitting = ("hf",)
    kind = fitting[0] if asked == "auto" else asked
    if kind not in fitting:
        raise InputError(
            f"{name!r} is for the engine {' or '.join(fitting)}, not {kind}.",
            "llama.cpp runs .gguf files: make one with karma gguf." if kind == "llamacpp" else "Leave the engine out.",
        )
    if hooks and kind != "hf":
        raise InputError(
            f"The engine {kind} runs {name!r} as it is: no cap, strength or drift there.",
            "Give the checkpoint (runs/demo/merged), or leave the engine out.",
        )
    return kind


def open_engine(
    name: str, kind: str = "auto", *, context: int | None = None, stop: Callable[[], bool] | None = None
) -> Engine:
    """Load the engine for a name.

    Args:
        name: a checkpoint folder, a hub id, builtin:smollm2-135m, a .gguf file, or scripted:FILE.json.
        kind: an engine, or "auto".
        context: tokens of prompt and answer together; the model's own (GGUF: 4096) when None.
        stop: asked before every token of a checkpoint's answers; a generation that it ends raises `GivenUp`.

    Raises:
        MissingError: the model, the file or an extra is not there.
        InputError: an engine that cannot run this name.
        ArtifactError, DataError: a damaged model, or a script that is none.
    """
    kind = engine_kind(name, kind)
    if kind == "scripted":
        return ScriptedEngine(read_script(Path(name.removeprefix(_SCRIPTED))))
    if kind == "llamacpp":
        from karma_electric.models.engines.llamacpp import DEFAULT_CONTEXT, LlamaCppEngine

        return LlamaCppEngine(Path(name), context=context or DEFAULT_CONTEXT)
    from karma_electric.core.extras import require

    require("model")
    from karma_electric.models.engines.hf import HfEngine
    from karma_electric.models.loading import load_model, load_tokenizer
    from karma_electric.models.refs import resolve_loadable

    folder = resolve_loadable(name).path
    intervention = None if stop is None else partial(_stoppable, stop)
    return HfEngine(load_model(folder), load_tokenizer(folder), intervention=intervention, context=context)


@contextlib.contextmanager
def _stoppable(stop: Callable[[], bool], model: PreTrainedModel, alpha: Alpha) -> Iterator[Any]:
    """End a generation as soon as `stop()` is true."""
    if acts(alpha):
        raise InputError(f"alpha is {alpha}, but no cap was loaded.", "Give one, or leave alpha out.")

    def look(*_: object) -> None:
        if stop():
            raise GivenUp

    handle = model.register_forward_pre_hook(look)
    try:
        yield None
    finally:
        handle.remove()


def read_script(path: Path) -> Script:
    """A script from a JSON file: a list of rules, the first that fits the last user turn answers.

    A rule is `{"contains": "bread", "answers": ["Knead it.", "Bake it."]}`: its answers are given in turn, over and
    over. One without `contains` fits everything.

    Raises:
        MissingError: no such file.
        DataError: not such a list. The script itself raises InputError where no rule fits.
    """
    if not path.is_file():
        raise MissingError(f"The script {path} does not exist.", "Give one as scripted:FILE.json")
    rules = read_json(path)
    if not isinstance(rules, list) or not rules:
        raise DataError(f"{path} is no script.", 'Expected a list of {"contains": "...", "answers": ["..."]}.')
    parsed = [_rule(rule, f"{path} rule {number}") for number, rule in enumerate(rules, 1)]

    def answer(conversation: Conversation) -> str:
        for wanted, answers in parsed:
            if wanted in conversation[-1].content:
                return next(answers)
        raise InputError(
            f"{path} has no rule for {conversation[-1].content[:60]!r}.", "Add a last rule without 'contains'."
        )

    return answer


def _rule(rule: Any, where: str) -> tuple[str, cycle[str]]:
    answers = rule.get("answers") if isinstance(rule, dict) else None
    if (
        not isinstance(answers, list)
        or not answers
        or not all(isinstance(text, str) for text in answers)
        or not isinstance(rule.get("contains", ""), str)
        or set(rule) - {"contains", "answers"}
    ):
        raise DataError(f"{where} is {rule!r}.", 'Expected {"contains": "...", "answers": ["..."]}.')
    return rule.get("contains", ""), cycle(answers)
