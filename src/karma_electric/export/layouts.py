"""The architectures that are exported: what llama.cpp calls them, which tensors they have, which keys describe them.

llama.cpp has one graph for Llama and Mistral and one each for Qwen2 and Qwen3. They differ in the order of rotary
rows (only Llama's are reordered), in biases and norms of the attention, and in two keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.core.artifact import read_json
from karma_electric.core.errors import ArtifactError, InputError, MissingError
from karma_electric.core.progress import Progress
from karma_electric.export.gguf_vocab import USE_LLAMA_CPP

AGAIN = "Make the model again."
_NEEDED = (
    *("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"),
    *("vocab_size", "rms_norm_eps", "max_position_embeddings"),
)
_DEFAULTED = ("num_key_value_heads", "head_dim", "tie_word_embeddings")
_SCALINGS = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Architecture:
    """An architecture of llama.cpp.

    Attributes:
        name: llama.cpp's word, `general.architecture` and the prefix of the keys.
        reorders_rotary: whether rows of query and key projections go from halves to pairs (see `interleave_rotary`).
        head_norms: whether queries and keys are normalised per head.
        says_rope_dim: whether vocabulary size and rotary dimension have keys of their own.
    """

    name: str
    reorders_rotary: bool = False
    head_norms: bool = False
    says_rope_dim: bool = False


_LLAMA = Architecture("llama", reorders_rotary=True, says_rope_dim=True)
ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": Architecture("qwen2"),
    "Qwen3ForCausalLM": Architecture("qwen3", head_norms=True),
}


@dataclass(frozen=True)
class Model:
    """A checkpoint's configuration, checked.

    Attributes:
        architecture: what llama.cpp computes.
        config: config.json with transformers' defaults filled in.
        rope: `rope_type`, `rope_theta` and the parameters of the scaling, however the file spelled them.
        head_dim: rows per attention head.
    """

    architecture: Architecture
    config: Mapping[str, Any]
    rope: Mapping[str, Any]
    head_dim: int


def read_model(model_dir: Path) -> Model:
    """Read and check config.json.

    Raises:
        MissingError: there is none.
        InputError: an architecture or a setting this cannot write, naming what can.
        ArtifactError: a configuration that is not whole.
    """
    file = model_dir / "config.json"
    if not file.is_file():
        raise MissingError(f"{model_dir} has no config.json.", "Give a Hugging Face model folder.")
    raw: dict[str, Any] = read_json(file)
    found = (raw.get("architectures") or ["unknown"])[0]
    if found not in ARCHITECTURES:
        raise InputError(f"{model_dir} is a {found}, expected one of {', '.join(ARCHITECTURES)}.", USE_LLAMA_CPP)
    if raw.get("quantization_config"):
        raise InputError(f"{model_dir} holds quantised weights.", "Export the merged model in bfloat16.")
    if raw.get("hidden_act", "silu") != "silu":
        raise InputError(f"{model_dir} uses {raw['hidden_act']!r}, llama.cpp computes silu.", "Export another model.")
    for key in _NEEDED:
        if key in raw and raw[key] is None:
            raise ArtifactError(f"{file} has no {key!r}.", AGAIN)
    written = raw.get("rope_parameters") or raw.get("rope_scaling") or {}  # transformers 5, 4
    rope_type = written.get("rope_type") or written.get("type") or "default"
    if rope_type not in _SCALINGS:
        raise InputError(f"{model_dir} has rope scaling {rope_type!r}, expected {', '.join(_SCALINGS)}.", USE_LLAMA_CPP)
    if float(raw.get("partial_rotary_factor") or written.get("partial_rotary_factor") or 1.0) != 1.0:
        raise InputError(f"{model_dir} rotates only a part of each head.", USE_LLAMA_CPP)
    # Files of older versions leave out what was the default then. Asking costs a second: only where it is needed.
    complete = all(raw.get(key) is not None for key in (*_NEEDED, *_DEFAULTED)) and written.get("rope_theta")
    defaults = {} if complete else _defaults(model_dir, raw)
    config = {**defaults, **{key: value for key, value in raw.items() if value is not None}}
    for key in _NEEDED:
        if config.get(key) is None:
            raise ArtifactError(f"{file} has no {key!r}.", AGAIN)
        if not isinstance(config[key], int | float) or config[key] <= 0:
            raise ArtifactError(f"{file} has {key} {config[key]!r}, expected a number above 0.", AGAIN)
    theta = written.get("rope_theta") or raw.get("rope_theta")
    theta = theta or (defaults.get("rope_parameters") or {}).get("rope_theta") or 10_000.0
    heads = config["num_attention_heads"]
    config["num_key_value_heads"] = config.get("num_key_value_heads") or heads
    return Model(
        ARCHITECTURES[found],
        config,
        {**written, "rope_type": rope_type, "rope_theta": float(theta)},
        config.get("head_dim") or config["hidden_size"] // heads,
    )


def _defaults(model_dir: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers takes a configuration to say, with what the file leaves out."""
    from transformers import AutoConfig

    try:
        settings: dict[str, Any] = AutoConfig.from_pretrained(model_dir).to_dict()
    except Exception as error:  # validation of many kinds
        if raw.get("model_type") is None:
            raise ArtifactError(f"{model_dir / 'config.json'} has no 'model_type'.", AGAIN) from None
        lines = str(error).strip().splitlines()
        raise ArtifactError(f"transformers cannot read {model_dir / 'config.json'} ({lines[-1]}).", AGAIN) from None
    return settings


def say_window(model: Model, progress: Progress) -> None:
    """Tell where llama.cpp attends to more than the model does: it has no sliding window for these architectures."""
    window = model.config.get("sliding_window")
    used = model.config.get("use_sliding_window", True)
    if window and used and window < model.config["max_position_embeddings"]:
        progress.say(
            f"the model attends to the last {window} tokens, llama.cpp to all: they agree in conversations up to "
            f"{window} tokens (num_ctx)"
        )


def expected_tensors(model: Model) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of the file, in its order, without biases and rope frequencies."""
    config = model.config
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    query = config["num_attention_heads"] * model.head_dim
    key = config["num_key_value_heads"] * model.head_dim
    block: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "attn_q": (query, hidden),
        "attn_k": (key, hidden),
        "attn_v": (key, hidden),
        "attn_output": (hidden, query),
        "ffn_norm": (hidden,),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    if model.architecture.head_norms:
        block |= {"attn_q_norm": (model.head_dim,), "attn_k_norm": (model.head_dim,)}
    expected: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, hidden)}
    for layer in range(config["num_hidden_layers"]):
        expected |= {f"blk.{layer}.{part}.weight": shape for part, shape in block.items()}
    expected["output_norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings", False):
        expected["output.weight"] = (vocabulary, hidden)
    return expected


def add_parameters(writer: Any, model: Model) -> None:
    """Write the keys that describe the network into a `gguf.GGUFWriter`."""
    import gguf

    config, rope = model.config, model.rope
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if model.architecture.says_rope_dim:
        writer.add_vocab_size(config["vocab_size"])
        writer.add_rope_dimension_count(model.head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
