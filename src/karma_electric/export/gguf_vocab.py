"""Writes a tokenizer into a GGUF file: tokens, merges or scores, special ids, chat template.

llama.cpp does not read a tokenizer's rules for cutting text into words: it knows some by name, and a wrong
name gives other tokens without any error. So the name is found by comparing the rules themselves. A vocabulary of
SentencePiece (Llama 2, Mistral before Nemo) has no such rules, but scores, which only its tokenizer.model has.
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
_QWEN2_PATTERN = _LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS: dict[tuple[str, ...], str] = {
    (f"split:{_LLAMA3_PATTERN}", "bytes"): "llama-bpe",
    (f"split:{_TEKKEN_PATTERN}", "bytes"): "tekken",
    (f"split:{_QWEN2_PATTERN}", "bytes"): "qwen2",
    ("digits", "bytes+words"): "smollm",
    ("bytes+words",): "gpt-2",
}


def add_tokenizer(writer: Any, model_dir: Path, vocab_size: int, *, spaced: bool) -> None:
    """Add the tokenizer of a model folder to a `gguf.GGUFWriter`.

    Args:
        writer: the writer.
        model_dir: folder with tokenizer.json, or with the tokenizer.model of SentencePiece.
        vocab_size: rows of the embedding matrix; ids without a token are named as unused.
        spaced: write `add_prefix_space` of tokenizer_config.json, where it is said.

    Raises:
        InputError: a tokenizer of another kind, or one whose rules llama.cpp has no known name for.
        ArtifactError: more tokens than the model has embeddings.
    """
    import gguf

    settings = model_dir / "tokenizer_config.json"
    if spaced and settings.is_file() and (prefix := read_json(settings).get("add_prefix_space")) is not None:
        writer.add_add_space_prefix(prefix)
    if (model_dir / "tokenizer.model").is_file():
        add_sentencepiece(writer, model_dir, vocab_size)
        return
    path = model_dir / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{model_dir} has no tokenizer.json, expected a byte-level BPE one.", USE_LLAMA_CPP)
    tokenizer = read_json(path)
    pre = _pre_tokenizer(tokenizer, path)
    tokens, types = _vocabulary(tokenizer, vocab_size, path)
    special = gguf.SpecialVocab(model_dir, load_merges=True)
    special.add_special_token.setdefault("bos", False)  # llama.cpp's own default depends on the pre-tokenizer
    _refuse_training_template(special.chat_template, model_dir)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    special.add_to_gguf(writer, quiet=True)


def _refuse_training_template(template: object, model_dir: Path) -> None:
    if re.search(r"{%-?\s*generation", str(template)):
        raise InputError(f"{model_dir} has a training template.", "Save the model's own chat template there.")


def add_sentencepiece(writer: Any, model_dir: Path, vocab_size: int) -> None:
    """Add the vocabulary of a tokenizer.model: pieces, scores and types, and the tokens that were added later."""
    import gguf

    tokens, scores, types = _pieces(model_dir, vocab_size)
    special = gguf.SpecialVocab(model_dir, n_vocab=vocab_size)
    _refuse_training_template(special.chat_template, model_dir)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    special.add_to_gguf(writer, quiet=True)


def _pieces(model_dir: Path, vocab_size: int) -> tuple[list[str], list[float], list[int]]:
    from gguf import TokenType
    from sentencepiece import SentencePieceProcessor

    path = model_dir / "tokenizer.model"
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromFile(str(path))
    except (OSError, RuntimeError):
        raise InputError(
            f"{path} is not a SentencePiece model.", f"A tiktoken vocabulary? Save tokenizer.json, or: {USE_LLAMA_CPP}"
        ) from None
    if processor.vocab_size() > vocab_size:
        raise ArtifactError(
            f"{path} has {processor.vocab_size()} pieces, the model {vocab_size} embeddings.",
            "Use the model's own tokenizer.",
        )
    tokens = [f"[PAD{number}]" for number in range(vocab_size)]
    scores = [-10000.0] * vocab_size
    types = [TokenType.UNUSED] * vocab_size
    for number in range(processor.vocab_size()):
        tokens[number], scores[number] = processor.IdToPiece(number), processor.GetScore(number)
        kinds = (
            (processor.IsUnknown, TokenType.UNKNOWN),
            (processor.IsControl, TokenType.CONTROL),
            (processor.IsUnused, TokenType.UNUSED),
            (processor.IsByte, TokenType.BYTE),
        )
        types[number] = next((kind for asked, kind in kinds if asked(number)), TokenType.NORMAL)
    for number, text, is_special in _added(model_dir):
        if number >= vocab_size:
            raise ArtifactError(
                f"{model_dir} adds token {text!r} as {number}, the model has {vocab_size} embeddings.",
                "Use the model's own tokenizer.",
            )
        scores[number] = -1000.0
        types[number] = TokenType.CONTROL if is_special else TokenType.USER_DEFINED
        tokens[number] = text if is_special else text.replace("\u2581", " ")
    return tokens, scores, types


def _added(model_dir: Path) -> list[tuple[int, str, bool]]:
    """Tokens that a folder adds to its SentencePiece vocabulary: id, text, whether it is a control token."""
    found: list[tuple[int, str, bool]] = []
    if (file := model_dir / "added_tokens.json").is_file():
        found += [(number, text, False) for text, number in read_json(file).items()]
    if (file := model_dir / "tokenizer_config.json").is_file():
        for number, token in read_json(file).get("added_tokens_decoder", {}).items():
            found.append(
                (int(number), token["content"], bool(token.get("special")) or _looks_special(token["content"]))
            )
    return found


def _looks_special(text: str) -> bool:
    return text.startswith("<|") and text.endswith("|>")


def _pre_tokenizer(tokenizer: Mapping[str, Any], path: Path) -> str:
    """llama.cpp's name for the way a tokenizer cuts text into words.

    Compared as written, not by hashing the tokens of a sample text as llama.cpp's converter does: added
    tokens change that hash, and tokenizers that differ only on other texts share it.
    """
    model = tokenizer["model"]
    if model.get("byte_fallback"):
        raise InputError(
            f"{path} was made from a SentencePiece vocabulary, whose scores are only in tokenizer.model; it is not a "
            "byte-level BPE tokenizer.",
            f"Put the model's tokenizer.model beside it, or: {USE_LLAMA_CPP}",
        )
    if model.get("type") != "BPE":
        raise InputError(f"{path} is not a byte-level BPE tokenizer ({model.get('type')}).", USE_LLAMA_CPP)
    pre = tokenizer.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    known = _PRE_TOKENIZERS.get(tuple(_step(step) for step in steps))
    # Qwen's composes characters (NFC) first; llama.cpp does not, and reads other tokens where a text is not composed.
    normal = tokenizer.get("normalizer") in (None, {"type": "NFC"} if known == "qwen2" else None)
    if known is None or not normal:
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
        elif added[number]["special"] or _looks_special(by_id[number]):
            types.append(TokenType.CONTROL)
        else:
            types.append(TokenType.USER_DEFINED)
    return [by_id.get(number, f"[PAD{number}]") for number in range(vocab_size)], types
