"""Writes a byte-level BPE tokenizer into a GGUF file: tokens, merges, special ids, chat template.

llama.cpp does not read a tokenizer's rules for cutting text into words: it knows some by name, and a wrong
name gives other tokens without any error. So the name is found by comparing the rules themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from karma_electric.core.artifact import read_json
from karma_electric.core.errors import ArtifactError, InputError

USE_LLAMA_CPP = "Convert it with llama.cpp's convert_hf_to_gguf.py instead."

# How a tokenizer cuts text before BPE -> the name llama.cpp has for it. The patterns are the published ones.
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS: dict[tuple[str, ...], str] = {
    (f"split:{_LLAMA3_PATTERN}", "bytes"): "llama-bpe",
    (f"split:{_TEKKEN_PATTERN}", "bytes"): "tekken",
    ("digits", "bytes+words"): "smollm",
    ("bytes+words",): "gpt-2",
}


def add_tokenizer(writer: Any, model_dir: Path, vocab_size: int) -> None:
    """Add the tokenizer of a model folder to a `gguf.GGUFWriter`.

    Raises:
        InputError: not a byte-level BPE tokenizer, or one whose rules llama.cpp has no known name for.
        ArtifactError: more tokens than the model has embeddings.
    """
    import gguf

    path = model_dir / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{model_dir} has no tokenizer.json, expected a byte-level BPE one.", USE_LLAMA_CPP)
    tokenizer = read_json(path)
    pre = _pre_tokenizer(tokenizer, path)
    tokens, types = _vocabulary(tokenizer, vocab_size, path)
    special = gguf.SpecialVocab(model_dir, load_merges=True)
    special.add_special_token.setdefault("bos", False)  # llama.cpp's own default depends on the pre-tokenizer
    if re.search(r"{%-?\s*generation", str(special.chat_template)):
        raise InputError(f"{model_dir} has a training template.", "Save the model's own chat template there.")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    special.add_to_gguf(writer, quiet=True)


def _pre_tokenizer(tokenizer: Mapping[str, Any], path: Path) -> str:
    """llama.cpp's name for the way a tokenizer cuts text into words.

    Compared as written, not by hashing the tokens of a sample text as llama.cpp's converter does: added
    tokens change that hash, and tokenizers that differ only on other texts share it.
    """
    model = tokenizer["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise InputError(f"{path} is not a byte-level BPE tokenizer ({model.get('type')}).", USE_LLAMA_CPP)
    pre = tokenizer.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    known = _PRE_TOKENIZERS.get(tuple(_step(step) for step in steps))
    if known is None or tokenizer.get("normalizer"):
        found = json.dumps({"normalizer": tokenizer.get("normalizer"), "pre_tokenizer": pre}, ensure_ascii=False)
        raise InputError(
            f"{path} cuts text by rules without a known llama.cpp name: {found}.",
            f"Known: {', '.join(_PRE_TOKENIZERS.values())}. Extend gguf_vocab.py, or: {USE_LLAMA_CPP}",
        )
    return known


def _step(step: Mapping[str, Any]) -> str:
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return "bytes+words" if step.get("use_regex", True) else "bytes"
        case {"type": "Digits", "individual_digits": True}:
            return "digits"
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return f"split:{pattern}"
    return json.dumps(step)


def _vocabulary(tokenizer: Mapping[str, Any], vocab_size: int, path: Path) -> tuple[list[str], list[int]]:
    """Tokens by id, and their types. Ids without a token are padding of the embedding matrix."""
    from gguf import TokenType

    added = {token["id"]: token for token in tokenizer.get("added_tokens", [])}
    by_id = {number: text for text, number in tokenizer["model"]["vocab"].items()}
    by_id |= {number: token["content"] for number, token in added.items()}
    if max(by_id) >= vocab_size:
        raise ArtifactError(
            f"{path} has token id {max(by_id)}, the model {vocab_size} embeddings.", "Use the model's own tokenizer."
        )
    types = []
    for number in range(vocab_size):
        if number not in by_id:
            types.append(TokenType.UNUSED)
        elif number not in added:
            types.append(TokenType.NORMAL)
        elif added[number]["special"] or (by_id[number].startswith("<|") and by_id[number].endswith("|>")):
            types.append(TokenType.CONTROL)
        else:
            types.append(TokenType.USER_DEFINED)
    return [by_id.get(number, f"[PAD{number}]") for number in range(vocab_size)], types
