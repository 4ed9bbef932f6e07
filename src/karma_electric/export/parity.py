"""Whether a GGUF file is the model it was made from: the same tokens in, the same distributions and tokens out.

transformers runs the checkpoint, llama.cpp the file, both in this process. What rounding to a smaller type may change
is a question of degree, so the figures are kept and `require_parity` holds them against limits for each type.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.artifact import canonical_json, hash_text, read_json
from karma_electric.core.errors import GateError, InputError
from karma_electric.core.extras import require
from karma_electric.core.messages import system as system_turn
from karma_electric.core.messages import user
from karma_electric.models.chat_template import prompt_text
from karma_electric.models.engines.llamacpp import LlamaCppEngine
from karma_electric.models.loading import load_model, load_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_FLOAT32_BELOW_BYTES = 2 << 30
_MAX_SLOTS = 8
_TOP = 256  # llama.cpp's likeliest tokens that are compared one by one; the others count as one
# Mean KL in nats, and how much likelier transformers may find its own choice where a greedy answer leaves it.
# Ten times the KL and three times the gap that correct files of the embedded model have, or more: what a wrong order
# of rows or a wrong rope does is of the order of nats.
LIMITS: dict[str, tuple[float, float]] = {
    "f32": (0.001, 0.05),
    "bf16": (0.01, 0.5),
    "f16": (0.01, 0.5),
    "q8_0": (0.05, 1.0),
}

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
    "https://example.org/a/b?q=1&r=%20#top",
    "someone@example.org, +44 20 7946 0000",
    '{"key": [1, 2.5e-3, null], "nested": {"a": "b\\n"}}',
    "<div class='x'>text &amp; more</div>",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "# Title\n\n- one\n- two\n  * three\n\n```python\nprint('x')\n```",
    "def f(x: int) -> str:\n\treturn f'{x:>10.2f}'\n\n\n",
    "SELECT * FROM t WHERE a >= 10 AND b LIKE '%x%';",
    '$ sudo rm -rf /tmp/x && echo "done" | tee -a log.txt',
    "\\frac{a}{b} + \\sum_{i=0}^{n} x_i^2 \u2264 \u221e",
    "0x1F 0b1010 1e10 1_000 12:34:56 2024-02-29",
    "A.B.C. e.g. i.e. Mr. O'Neill's rock'n'roll",
    "ALLCAPS MixedCASE lowerUPPER iPhone15",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "        deep indentation",
    "trailing newlines\n\n\n\n",
    "\n",
    " ",
    "שלום עולם, מה נשמע?",
    "வணக்கம் உலகம்",
    "Χαίρετε, κόσμε",
    "გამარჯობა მსოფლიო",
    "Xin chào thế giới",
    "\ufffd \ufeff \u00ad \u2028",
    "20% off €5.00 £3 ¥100 ₹50",
)


@dataclass(frozen=True)
class Parity:
    """How alike a checkpoint and its GGUF file are.

    Attributes:
        n_prompts: prompts compared.
        n_texts: texts whose token ids were compared: `UNICODE_TEXTS`, and the prompts.
        token_ids_equal: whether all of them give the same token ids, except for `beyond_llama_cpp`.
        differing_texts: those that do not.
        beyond_llama_cpp: texts that llama.cpp is known to cut otherwise for this kind of tokenizer, in any file:
            characters that are not composed, before a tokenizer that composes them; combining marks, for tekken.
        greedy_agreement: mean over prompts of the share of the file's answer before the two first part ways.
        first_token_agreement: share of prompts with the same first token.
        exact_matches: prompts with the same whole answer.
        largest_gap_nats: where answers part, how much likelier the checkpoint finds its own token; the largest.
        mean_kl_nats: mean KL(checkpoint || file) over the tokens of the answers, where all but llama.cpp's 256
            likeliest tokens count as one (which can only make it smaller).
        kl_tokens: tokens in that mean.
        max_new_tokens: tokens generated per prompt.
        dtype: of the checkpoint while it was compared.
        prompts_sha256: hash of the prompts, in their order.
        system: the system prompt of every one; None where none was sent.
    """

    n_prompts: int
    n_texts: int
    token_ids_equal: bool
    differing_texts: tuple[str, ...]
    beyond_llama_cpp: tuple[str, ...]
    greedy_agreement: float
    first_token_agreement: float
    exact_matches: int
    largest_gap_nats: float
    mean_kl_nats: float
    kl_tokens: int
    max_new_tokens: int
    dtype: str
    prompts_sha256: str
    system: str | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        texts = {"differing_texts": list(self.differing_texts), "beyond_llama_cpp": list(self.beyond_llama_cpp)}
        return asdict(self) | texts


@dataclass(frozen=True)
class _Answer:
    """What the file answered to a prompt, and at each token the log-probabilities of the likeliest."""

    prompt: list[int]
    tokens: list[int]
    top: list[dict[int, float]]


def check_parity(
    model_dir: Path, gguf_path: Path, *, prompts: Sequence[str], system: str | None, max_new_tokens: int = 32
) -> Parity:
    """Compare transformers on the checkpoint with llama.cpp on the file.

    llama.cpp's attention runs in float32, and the checkpoint too where it is small, so that the differences are the
    file's; a large checkpoint runs in bfloat16.

    Args:
        model_dir: Hugging Face folder that the file was made from.
        gguf_path: the file.
        prompts: user turns; continued as they are where the model has no chat template.
        system: system prompt of every one; an empty one is sent, None is not.
        max_new_tokens: tokens generated per prompt.

    Raises:
        InputError: no prompts.
    """
    require("gguf")
    if not prompts or max_new_tokens < 1:
        raise InputError("Parity needs at least one prompt and one token.", "Give prompts.")
    tokenizer = load_tokenizer(model_dir)
    before = [] if system is None else [system_turn(system)]
    chats = tokenizer.chat_template is not None
    texts = [prompt_text(tokenizer, [*before, user(prompt)]) if chats else prompt for prompt in prompts]
    expected = [_ids(tokenizer, text) for text in texts]
    checks = [*zip(texts, expected, strict=True), *((text, _ids(tokenizer, text)) for text in UNICODE_TEXTS)]
    engine = LlamaCppEngine(
        gguf_path,
        context=max(map(len, expected)) + max_new_tokens + 64,
        slots=min(len(prompts), _MAX_SLOTS),
        precision="exact",
    )
    try:
        differing = [text for text, ids in checks if engine.tokenize(text) != ids]
        whole = engine.tokenize("a")[0]
        answers = [
            _Answer(prompt, tokens, top or engine.top_along(prompt, tokens, _TOP, whole))
            for prompt, (tokens, top) in zip(expected, engine.greedy_top(expected, max_new_tokens, _TOP), strict=True)
        ]
    finally:
        engine.close()
    composes, cuts_marks = _habits(model_dir)
    beyond = [
        text
        for text in differing
        if (composes and not unicodedata.is_normalized("NFC", text))
        or (cuts_marks and any(unicodedata.category(character)[0] == "M" for character in text))
    ]
    size = sum(file.stat().st_size for file in model_dir.glob("*.safetensors"))
    dtype = "float32" if size < _FLOAT32_BELOW_BYTES else "bfloat16"
    agreed, gap, kl = _replay(model_dir, answers, dtype)
    shares = [n / len(answer.tokens) for n, answer in zip(agreed, answers, strict=True)]
    return Parity(
        n_prompts=len(prompts),
        n_texts=len(checks),
        token_ids_equal=len(differing) == len(beyond),
        differing_texts=tuple(text for text in differing if text not in beyond),
        beyond_llama_cpp=tuple(beyond),
        greedy_agreement=sum(shares) / len(prompts),
        first_token_agreement=sum(n > 0 for n in agreed) / len(prompts),
        exact_matches=sum(share == 1 for share in shares),
        largest_gap_nats=gap,
        mean_kl_nats=sum(kl) / len(kl),
        kl_tokens=len(kl),
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        prompts_sha256=_hash(prompts),
        system=system,
    )


def recorded_parity(figures: Mapping[str, Any], *, prompts: Sequence[str], system: str | None) -> Parity | None:
    """The comparison whose figures (`Parity.as_dict`) were kept; None where it asked something else, or did not say."""
    if figures.get("prompts_sha256") != _hash(prompts) or figures["system"] != system:
        return None
    texts = {key: tuple(figures[key]) for key in ("differing_texts", "beyond_llama_cpp")}
    return Parity(**{field.name: figures[field.name] for field in fields(Parity)} | texts)


def _hash(prompts: Sequence[str]) -> str:
    return hash_text(canonical_json(list(prompts)))


def require_parity(parity: Parity, file_type: str, *, max_kl: float | None = None) -> None:
    """Hold a comparison against the limits of the file's type.

    Args:
        parity: what was measured.
        file_type: type of the matrices.
        max_kl: mean KL in nats that is still good, instead of the type's own limit.

    Raises:
        GateError: token ids, greedy tokens or distributions differ by more than the type explains.
    """
    kl_limit, gap_limit = LIMITS[file_type]
    kl_limit = kl_limit if max_kl is None else max_kl
    if not parity.token_ids_equal:
        raise GateError(
            f"llama.cpp reads {len(parity.differing_texts)} of {parity.n_texts} texts as other tokens than "
            f"transformers, the first {parity.differing_texts[0][:60]!r}.",
            "The file's tokenizer is wrong (tokenizer.ggml.pre?); if karma wrote it, report it.",
        )
    if not parity.mean_kl_nats <= kl_limit:
        raise GateError(
            f"The file differs from the checkpoint by a mean KL of {parity.mean_kl_nats:.3g} nats, at most "
            f"{kl_limit:g} was expected of {file_type}.",
            "Compare with --type f32: if that differs too, the conversion is wrong; else raise --max-kl.",
        )
    if max_kl is None and not parity.largest_gap_nats <= gap_limit:
        raise GateError(
            f"A greedy answer of the file leaves the checkpoint's where that was sure by {parity.largest_gap_nats:.3g} "
            f"nats, at most {gap_limit:g} was expected of {file_type}.",
            "Compare with --type f32: if that differs too, the conversion is wrong.",
        )


def _habits(model_dir: Path) -> tuple[bool, bool]:
    """Whether a tokenizer composes characters first, and whether it keeps combining marks with their letters.

    llama.cpp does neither: it never composes, and its own pattern for tekken cuts at combining marks.
    """
    file = model_dir / "tokenizer.json"
    if not file.is_file():
        return False, False
    described = read_json(file)
    composes = (described.get("normalizer") or {}).get("type") == "NFC"
    return composes, "\\p{M}" in str((described.get("pre_tokenizer") or {}).get("pretokenizers", ""))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def _replay(model_dir: Path, answers: Sequence[_Answer], dtype: str) -> tuple[list[int], float, list[float]]:
    """The checkpoint along the file's answers: leading tokens it would have chosen, the largest gap, KL per token.

    Up to the first difference both have read the same tokens, so one forward pass over prompt and answer tells what
    generating would: the checkpoint's greedy token at every step. KL is of every token, on the file's path.
    """
    import torch

    model = load_model(model_dir, dtype=dtype)
    agreed, gap, kl = [], 0.0, []
    for answer in answers:
        ids = torch.tensor([answer.prompt + answer.tokens[:-1]], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids, logits_to_keep=len(answer.tokens), use_cache=False).logits[0]
        logp = logits.float().log_softmax(dim=-1).cpu()  # [answer, vocabulary]
        best = logp.max(dim=-1)
        given = logp.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
        differs = (best.indices != torch.tensor(answer.tokens)).nonzero()
        first = int(differs[0]) if len(differs) else len(answer.tokens)
        agreed.append(first)
        if first < len(answer.tokens):
            gap = max(gap, float(best.values[first] - given[first]))
        kl += [_kl(row, top) for row, top in zip(logp, answer.top, strict=True)]
    return agreed, gap, kl


def _kl(logp: torch.Tensor, top: dict[int, float]) -> float:
    """KL(p || q) where `top` is q's likeliest tokens, and all others are one.

    Args:
        logp: log-probabilities of p, [vocabulary].
        top: token -> log-probability of q.
    """
    import torch

    p = logp[list(top)].double()
    q = torch.tensor(list(top.values()), dtype=torch.float64)
    rest_p = (1 - p.exp().sum()).clamp(min=0.0)
    rest_q = (1 - q.exp().sum()).clamp(min=1e-12)
    rest = rest_p * (rest_p.clamp(min=1e-300).log() - rest_q.log()) if len(top) < len(logp) else 0.0
    return max(float((p.exp() * (p - q)).sum() + rest), 0.0)
