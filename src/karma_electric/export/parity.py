"""Whether a GGUF file is the model it was made from: the same tokens in, and the same greedy tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.errors import InputError
from karma_electric.core.extras import require
from karma_electric.core.messages import system as system_turn
from karma_electric.core.messages import user
from karma_electric.models.chat_template import prompt_text
from karma_electric.models.engines.llamacpp import LlamaCppEngine
from karma_electric.models.loading import load_model, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FLOAT32_BELOW_BYTES = 2 << 30
_MAX_SLOTS = 8

# What pre-tokenizers of BPE disagree on: numbers, runs of spaces and newlines, contractions, scripts, emoji.
UNICODE_TEXTS: tuple[str, ...] = (
    "Hello world",
    " leading and trailing ",
    "a  b   c    d",
    "tabs\tand\t\ttabs",
    "line\nbreaks\n\nand\r\nmore\n\n\n  indented",
    "year 2024, 3.14159, 1,000,000 and 00017",
    "two  3s,   40 and\n\n 5",
    "I'm you're they'll we'd it's DON'T I'VE 'tis",
    "snake_case camelCase kebab-case path/to/file.txt",
    "if (x != y) { return a[i]->b && !c; }",
    "¿Qué tal? Ça va, naïve café, Übergröße, İstanbul",
    "Привет, как дела? Добрый день 2024",
    "你好，世界。今天是2024年。",
    "こんにちは世界、カタカナ",
    "안녕하세요 세계",
    "مرحبا بالعالم ١٢٣",
    "नमस्ते दुनिया १२३",
    "สวัสดีชาวโลก",
    "🙂 👍🏽 👩‍👩‍👧‍👦 🇫🇷",
    "½ ² ₃ Ⅳ ①",
    "e\u0301 versus \u00e9",
    "non\u00a0breaking\u2003and\u200bzero width",
    "\u201cquotes\u201d \u2018and\u2019 \u2014 dashes\u2026",
    "a<|im_end|>b <|not_special|>",
    "!!!???...---===",
)


@dataclass(frozen=True)
class Parity:
    """How alike a checkpoint and its GGUF file are.

    Attributes:
        n_prompts: prompts compared.
        token_ids_equal: whether every prompt and every one of `UNICODE_TEXTS` gives the same token ids.
        differing_texts: those that do not.
        greedy_agreement: mean over prompts of the share of the file's answer before the two first part ways.
        first_token_agreement: share of prompts with the same first token.
        exact_matches: prompts with the same whole answer.
        max_new_tokens: tokens generated per prompt.
        dtype: of the checkpoint while it was compared.
    """

    n_prompts: int
    token_ids_equal: bool
    differing_texts: tuple[str, ...]
    greedy_agreement: float
    first_token_agreement: float
    exact_matches: int
    max_new_tokens: int
    dtype: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"differing_texts": list(self.differing_texts)}


def check_parity(
    model_dir: Path, gguf_path: Path, *, prompts: Sequence[str], system: str, max_new_tokens: int = 32
) -> Parity:
    """Compare transformers on the checkpoint with llama.cpp on the file.

    llama.cpp's attention runs in float32, and the checkpoint too where it is small, so that the differences are the
    file's; a large checkpoint runs in bfloat16.

    Args:
        model_dir: Hugging Face folder that the file was made from.
        gguf_path: the file.
        prompts: user turns.
        system: system prompt of every one; may be empty, and is then still sent.
        max_new_tokens: tokens generated per prompt.

    Raises:
        InputError: no prompts.
    """
    require("gguf")
    if not prompts or max_new_tokens < 1:
        raise InputError("Parity needs at least one prompt and one token.", "Give prompts.")
    tokenizer = load_tokenizer(model_dir)
    texts = [prompt_text(tokenizer, [system_turn(system), user(prompt)]) for prompt in prompts]
    expected = [_ids(tokenizer, text) for text in texts]
    engine = LlamaCppEngine(
        gguf_path,
        context=max(map(len, expected)) + max_new_tokens + 64,
        slots=min(len(prompts), _MAX_SLOTS),
        precision="exact",
    )
    try:
        checks = [
            *zip(texts, expected, strict=True),
            *((text, _ids(tokenizer, text)) for text in UNICODE_TEXTS),
        ]
        differing = tuple(text for text, ids in checks if engine.tokenize(text) != ids)
        answers = engine.greedy_tokens(texts, max_new_tokens)
    finally:
        engine.close()
    size = sum(file.stat().st_size for file in model_dir.glob("*.safetensors"))
    dtype = "float32" if size < _FLOAT32_BELOW_BYTES else "bfloat16"
    agreed = _agreed(model_dir, expected, answers, dtype)
    lengths = [len(answer) for answer in answers]
    return Parity(
        n_prompts=len(prompts),
        token_ids_equal=not differing,
        differing_texts=differing,
        greedy_agreement=sum(n / length for n, length in zip(agreed, lengths, strict=True)) / len(prompts),
        first_token_agreement=sum(n > 0 for n in agreed) / len(prompts),
        exact_matches=sum(n == length for n, length in zip(agreed, lengths, strict=True)),
        max_new_tokens=max_new_tokens,
        dtype=dtype,
    )


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def _agreed(model_dir: Path, prompts: list[list[int]], answers: list[list[int]], dtype: str) -> list[int]:
    """How many leading tokens of each answer the checkpoint would have chosen itself.

    Up to the first difference both have read the same tokens, so one forward pass over prompt and answer tells what
    generating would: the checkpoint's greedy token at every step.
    """
    import torch

    model = load_model(model_dir, dtype=dtype)
    agreed = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt + answer[:-1]], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids, logits_to_keep=len(answer), use_cache=False).logits[0]  # [answer, vocabulary]
        chosen = logits.argmax(dim=-1).tolist()
        differs = (place for place, (a, b) in enumerate(zip(chosen, answer, strict=True)) if a != b)
        agreed.append(next(differs, len(answer)))
    return agreed
