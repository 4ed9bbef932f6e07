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
from karma_electric.models.loading import end_of_turn_ids, load_model, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FLOAT32_BELOW_BYTES = 2 << 30
_MAX_BATCH = 8

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
        greedy_agreement: mean over prompts of the share of tokens before the two first part ways.
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

    The checkpoint runs in float32 where it is small, so that differences are the file's, else in bfloat16.

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
        slots=min(len(prompts), _MAX_BATCH),
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
    ends = {answer[-1] for answer in answers if len(answer) < max_new_tokens}
    reference = _greedy(model_dir, tokenizer, expected, max_new_tokens=max_new_tokens, dtype=dtype, ends=ends)
    pairs = list(zip(reference, answers, strict=True))
    return Parity(
        n_prompts=len(prompts),
        token_ids_equal=not differing,
        differing_texts=differing,
        greedy_agreement=sum(_shared(a, b) / max(len(a), len(b)) for a, b in pairs) / len(pairs),
        first_token_agreement=sum(a[0] == b[0] for a, b in pairs) / len(pairs),
        exact_matches=sum(a == b for a, b in pairs),
        max_new_tokens=max_new_tokens,
        dtype=dtype,
    )


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def _greedy(
    model_dir: Path,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    dtype: str,
    ends: set[int],
) -> list[list[int]]:
    """Greedy answers of the checkpoint, an end-of-turn token included.

    `ends` are tokens at which llama.cpp has stopped: it knows more of them than a model's own configuration.
    """
    import torch
    from transformers import GenerationConfig

    model = load_model(model_dir, dtype=dtype)
    stops = ends | set(end_of_turn_ids(model, tokenizer))
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(stops),
        pad_token_id=tokenizer.pad_token_id,
    )
    answers: list[list[int]] = []
    for first in range(0, len(prompts), _MAX_BATCH):
        batch = prompts[first : first + _MAX_BATCH]
        width = max(map(len, batch))
        ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + p for p in batch])  # [batch, width]
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch])
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=settings,
            )
        for row in output[:, width:].tolist():
            end = next((place + 1 for place, token in enumerate(row) if token in stops), len(row))
            answers.append(row[:end])
    return answers


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
