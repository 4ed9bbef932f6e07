"""Loads models and tokenizers, quietly, in the right number format, with a pad token that is safe to mask."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging as logging_
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.errors import ArtifactError, InputError, MissingError
from karma_electric.core.extras import is_present

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the libraries' progress bars, warnings and advice while loading or saving; errors still raise."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    libraries = [logging_.getLogger(name) for name in ("bitsandbytes", "peft", "accelerate")]
    levels = [library.level for library in libraries]
    for library in libraries:
        library.setLevel(logging_.CRITICAL)

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, old in zip(libraries, levels, strict=True):
            library.setLevel(old)
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def import_quietly(*modules: str) -> None:
    """Import modules whose import prints advice (bitsandbytes looks for optional kernels)."""
    with quiet_transformers():
        for module in modules:
            importlib.import_module(module)


def pick_device() -> str:
    """cuda where there is one, else mps, else cpu."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def pick_dtype(name: str, device: str) -> torch.dtype:
    """The dtype a recipe asks for; `auto` is bfloat16 where the hardware multiplies it natively."""
    import torch

    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    device = device.partition(":")[0]  # cuda:1 and cpu:0, as several processes name theirs
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device == "cpu":
        return torch.bfloat16 if torch.backends.mkldnn.is_available() and _cpu_has_bfloat16() else torch.float32
    return torch.float32


def _cpu_has_bfloat16() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "avx512_bf16" in text or "amx_bf16" in text or " bf16" in text


def load_model(
    path: Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | None = None,
    quantisation: Any = None,
    place: bool = True,
) -> PreTrainedModel:
    """Load a causal language model for evaluation.

    Args:
        path: a Hugging Face model folder; or a GGUF file, which is dequantised: its weights keep what was rounded away.
        dtype: a torch dtype, or `auto`, `bfloat16`, `float32`.
        device: where to put it; the best there is when None.
        quantisation: a transformers quantisation config, such as `nf4_config`.
        place: whether to put it there; whoever shards the model over several devices does that piece by piece.

    Raises:
        MissingError: no model there.
        ArtifactError: files that are damaged or not a causal language model.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if not is_gguf(path) and not (path / "config.json").is_file():
        raise MissingError(f"{path} has no config.json.", "Give a Hugging Face model folder.")
    asked = None if device is None or quantisation is None or not place else {"": device}
    device = device or pick_device()
    dtype = dtype if isinstance(dtype, torch.dtype) else pick_dtype(dtype, device)
    source, gguf = _where(path)
    try:
        with quiet_transformers(), _quiet_gguf(path):
            model, report = AutoModelForCausalLM.from_pretrained(
                source,
                **gguf,
                dtype=dtype,
                quantization_config=quantisation,
                device_map=asked,  # 4-bit weights cannot be moved later
                local_files_only=True,
                ignore_mismatched_sizes=True,  # reported below, like what is missing
                output_loading_info=True,
            )
    except torch.OutOfMemoryError:
        raise InputError(f"{path} does not fit in memory.", "Use a smaller model or more memory.") from None
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ArtifactError(
            f"{path} could not be loaded as a model ({_first_line(error)}).",
            "Is it a whole, unchanged model folder?",
        ) from error
    # transformers fills these with random numbers and says so only in its log
    unfit = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    if unfit:
        raise ArtifactError(
            f"{path} could not be loaded as a model ({len(unfit)} weights are missing or of another shape: "
            f"{', '.join(sorted(unfit)[:3])}).",
            "Is it a whole, unchanged model folder?",
        )
    if quantisation is None and place:
        model.to(device)
    return model.eval()


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file."""
    return path.suffix == ".gguf" and path.is_file()


def _where(path: Path) -> tuple[Path, dict[str, str]]:
    """A model as transformers wants it named: a folder, or a folder and the GGUF file in it."""
    return (path.parent, {"gguf_file": path.name}) if is_gguf(path) else (path, {})


@contextlib.contextmanager
def _quiet_gguf(path: Path) -> Iterator[None]:
    """Silence the bar that transformers' GGUF reader draws without asking."""
    with contextlib.redirect_stderr(io.StringIO()) if is_gguf(path) else contextlib.nullcontext():
        yield


def restore_digit_splitting(tokenizer: Any) -> None:
    """SmolLM2 was trained with every digit a token of its own; transformers forgets that when it reads a GGUF file."""
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def read_gguf(path: Path) -> GGUFReader:
    """The header of a GGUF file.

    Raises:
        ArtifactError: it is torn, or no GGUF file.
    """
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except (struct.error, ValueError, IndexError, KeyError, OverflowError) as error:
        raise ArtifactError(f"{path} is not a whole GGUF file ({_first_line(error)}).", "Export it again.") from None


def _pre_tokenizer(gguf: Path) -> str:
    """The name a GGUF file gives to how text is cut before it is tokenised."""
    field = read_gguf(gguf).get_field("tokenizer.ggml.pre")
    return "" if field is None else str(field.contents())


def never_repack(model: torch.nn.Module) -> None:
    """Keep NF4 weights as they were loaded.

    On processors that multiply bfloat16, bitsandbytes packs them otherwise in the first pass without gradients, and
    rounds their scales: a training that validated first would go on with other weights than one that did not.
    """
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def nf4_config(path: Path, compute: torch.dtype) -> Any:
    """4-bit NF4 weights with double quantisation, multiplied in `compute`: a transformers quantisation config.

    Raises:
        MissingError: bitsandbytes is not installed.
        InputError: the model in `path` is of a shape at which NF4 crashes on a CPU.
    """
    if not is_present("bitsandbytes"):
        raise MissingError(
            "4-bit weights need bitsandbytes, which is not installed.",
            "Install it, in the checkout, with: pip install -c constraints.txt -e '.[train]'",
        )
    if pick_device() == "cpu":
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        odd = [key for key in ("hidden_size", "intermediate_size") if int(config.get(key) or 0) % 64]
        if odd:
            raise InputError(
                f"{path}: {odd[0]} is {config[odd[0]]}, and NF4 on a CPU needs a multiple of 64.",
                'Leave the weights as they are: train.quantisation = "none", or no --load-in.',
            )
    import_quietly("bitsandbytes")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer with a chat template, and a pad token that is not the end of a turn.

    Padding with the end-of-turn token and masking the padding would teach a model never to stop, so another
    special token is taken for padding when the two are the same.
    """
    from transformers import AutoTokenizer

    source, gguf = _where(path)
    try:
        with quiet_transformers(), _quiet_gguf(path):
            tokenizer = AutoTokenizer.from_pretrained(source, **gguf, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(
            f"{path} has no usable tokenizer ({_first_line(error)}).", "Give a whole model folder."
        ) from error
    if gguf and _pre_tokenizer(path) == "smollm":
        restore_digit_splitting(tokenizer)
    if tokenizer.chat_template is None:
        raise ArtifactError(f"The tokenizer in {path} has no chat template.", "Use an instruct model.")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = _safe_pad_token(tokenizer)
    return tokenizer


def _safe_pad_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """A special token of the vocabulary that no template writes, preferring those made for padding."""
    preferred = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|endoftext|>", "<unk>")
    avoid = {tokenizer.eos_token, tokenizer.bos_token}
    vocabulary = tokenizer.get_vocab()
    for token in (*preferred, *tokenizer.all_special_tokens):
        if token in vocabulary and token not in avoid and token not in tokenizer.chat_template:
            return str(token)
    raise ArtifactError(
        "The tokenizer has no special token that could serve for padding.",
        "Set pad_token in tokenizer_config.json.",
    )


def end_of_turn_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """All token ids that end an answer (Llama 3.1 has three)."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({int(i) for i in (*ids, tokenizer.eos_token_id) if i is not None})


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
