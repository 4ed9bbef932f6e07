"""Small random checkpoints of every architecture and kind of tokenizer that is exported as GGUF.

Used by the tests, and by benchmarks/check_gguf.py beside llama.cpp's own converter.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

import tiny
from karma_electric.export.gguf_vocab import _LLAMA3_PATTERN, _QWEN2_PATTERN, _TEKKEN_PATTERN
from karma_electric.export.parity import UNICODE_TEXTS

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "llama3-rope": {"tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE},
    "linear-rope": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}},
    "mistral": {"model_type": "mistral", "head_dim": 32, "num_attention_heads": 4, "sliding_window": None},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 1},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": False},
}


def pre_tokenizer(name: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "gpt-2":
        return words
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    pattern = Regex({"llama-bpe": _LLAMA3_PATTERN, "tekken": _TEKKEN_PATTERN, "qwen2": _QWEN2_PATTERN}[name])
    cut = pre_tokenizers.Split(pattern, "isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def write_tokenizer(folder: Path, pre: str) -> None:
    """A byte-level BPE of 600 tokens that has learned numbers, runs of spaces and several scripts."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(ignore_merges=pre in ("llama-bpe", "tekken")))
    tokenizer.pre_tokenizer = pre_tokenizer(pre)
    tokenizer.normalizer = normalizers.NFC() if pre == "qwen2" else None
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(tiny.SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    generator = random.Random(0)
    lines = [*(tiny.sentence(generator) for _ in range(100)), *UNICODE_TEXTS * 20]
    tokenizer.train_from_iterator([*lines, "  \n\n   2024 1999\n\n\n 3's" * 20], trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=tiny.SPECIAL[1], eos_token=tiny.SPECIAL[2], pad_token=tiny.SPECIAL[0]
    )
    fast.chat_template = tiny.CHAT_TEMPLATE
    fast.save_pretrained(folder)


def write_model(folder: Path, *, shard: str = "1GB", model_type: str = "llama", **settings: Any) -> Path:
    """A random model of 2 blocks with weights large enough for positions and attention to decide tokens."""
    from transformers import AutoConfig, AutoModelForCausalLM

    defaults: dict[str, Any] = {
        "vocab_size": 640,  # more embeddings than tokens
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = AutoConfig.for_model(model_type, **(defaults | settings))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float()
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def write_sentencepiece(folder: Path) -> None:
    """A SentencePiece BPE of 600 pieces with byte fallback, as Llama 2's, and what transformers makes of it."""
    import sentencepiece
    from transformers import LlamaTokenizer

    generator = random.Random(0)
    lines = [*(tiny.sentence(generator) for _ in range(200)), *(t for t in UNICODE_TEXTS if "<" not in t)]
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines), model_prefix=str(folder / "tokenizer"), vocab_size=600, model_type="bpe",
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, character_coverage=0.98, minloglevel=2, num_threads=1,
    )  # fmt: skip
    tokenizer = LlamaTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.vocab").unlink()
