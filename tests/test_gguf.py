"""GGUF export: read back value by value, and run by llama.cpp with transformers' own tokens as the yardstick."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, TokenType, quants
from safetensors.torch import load_file, save_file

import tiny
from exported import VARIANTS, write_model, write_sentencepiece, write_tokenizer
from karma_electric.core.errors import ArtifactError, InputError, MissingError
from karma_electric.core.progress import Silent
from karma_electric.export import gguf as export
from karma_electric.export.gguf import export_gguf
from karma_electric.export.gguf_vocab import _PRE_TOKENIZERS
from karma_electric.export.parity import UNICODE_TEXTS, check_parity
from karma_electric.models.engines.llamacpp import LlamaCppEngine
from karma_electric.models.weights import StoredTensor


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # a matrix of 64 x 64 is not worth a second core


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint of a variant, written on first use. Read only."""
    made: dict[str, Path] = {}

    def get(variant: str) -> Path:
        if variant not in made:
            made[variant] = write_model(tmp_path_factory.mktemp(variant), **VARIANTS[variant])
            write_tokenizer(made[variant], "smollm")
        return made[variant]

    return get


@pytest.fixture
def changed(checkpoint: Callable[[str], Path], tmp_path: Path) -> Iterator[Path]:
    """A copy of the tied checkpoint, to be damaged."""
    folder = tmp_path / "changed"
    folder.mkdir()
    for file in checkpoint("tied").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    yield folder
    left = [file.name for file in tmp_path.rglob("*") if ".gguf" in file.name]
    assert left == [], "a refused export left something"


def write(folder: Path, out: Path, file_type: Any = "f32") -> GGUFReader:
    export_gguf(folder, out, file_type=file_type, name="tiny")
    return GGUFReader(out)


def values(reader: GGUFReader) -> dict[str, numpy.ndarray]:
    return {t.name: quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def to_transformers_rows(rows: numpy.ndarray, head_dim: int) -> numpy.ndarray:
    """Undo the rotary order row by row: llama.cpp's pair (2i, 2i+1) is transformers' (i, i + head_dim/2)."""
    undone = numpy.empty_like(rows)
    for place in range(len(rows)):
        head, row = divmod(place, head_dim)
        undone[head * head_dim + row // 2 + (row % 2) * (head_dim // 2)] = rows[place]
    return undone


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_is_there_with_its_values(variant: str, checkpoint, tmp_path: Path) -> None:
    folder = checkpoint(variant)
    config = json.loads((folder / "config.json").read_text())
    head_dim = config.get("head_dim") or 16
    found = values(write(folder, tmp_path / "x.gguf"))
    found.pop("rope_freqs.weight", None)
    parts = {
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers.": "blk.",
    }
    expected = load_file(folder / "model.safetensors")
    assert len(found) == len(expected)
    assert ("output.weight" in found) == (not config["tie_word_embeddings"])
    for name, tensor in expected.items():
        target = name
        for theirs, ours in parts.items():
            target = target.replace(theirs, ours)
        value = found[target]
        if not variant.startswith("qwen") and (".attn_q." in target or ".attn_k." in target):
            assert not numpy.array_equal(value, tensor.numpy())
            value = to_transformers_rows(value, head_dim)
        numpy.testing.assert_array_equal(value, tensor.numpy(), err_msg=target)


def test_q8_0_is_within_half_a_step_of_each_block(checkpoint, tmp_path: Path) -> None:
    exact = values(write(checkpoint("untied"), tmp_path / "a.gguf"))
    reader = write(checkpoint("untied"), tmp_path / "b.gguf", "q8_0")
    for tensor in reader.tensors:
        norm = tensor.name.endswith("norm.weight")
        assert tensor.tensor_type == (GGMLQuantizationType.F32 if norm else GGMLQuantizationType.Q8_0), tensor.name
        close = quants.dequantize(tensor.data, tensor.tensor_type)
        blocks = exact[tensor.name].reshape(-1, 32)
        largest = numpy.abs(blocks).max(axis=1, keepdims=True)
        # half a step of largest / 127, and the rounding of the step itself to float16
        tolerance = 0 if norm else largest * (0.5 / 127 + 2.0**-11)
        assert (numpy.abs(close.reshape(-1, 32) - blocks) <= tolerance).all(), tensor.name


@pytest.mark.parametrize(("file_type", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision_rounds_to_nearest(file_type: str, dtype: torch.dtype, checkpoint, tmp_path: Path) -> None:
    exact = values(write(checkpoint("tied"), tmp_path / "a.gguf"))
    reader = write(checkpoint("tied"), tmp_path / "b.gguf", file_type)
    assert reader.get_tensor(0).tensor_type.name == file_type.upper()
    for name, value in values(reader).items():
        rounded = torch.from_numpy(exact[name].copy())
        if rounded.dim() > 1:
            rounded = rounded.to(dtype).float()
        numpy.testing.assert_array_equal(value, rounded.numpy(), err_msg=name)


def test_llama3_frequencies_are_those_of_transformers(checkpoint, tmp_path: Path) -> None:
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = AutoConfig.from_pretrained(checkpoint("llama3-rope"))
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1.0 / 10_000.0 ** (torch.arange(0, 16, 2) / 16)
    factors = values(write(checkpoint("llama3-rope"), tmp_path / "x.gguf"))["rope_freqs.weight"]
    numpy.testing.assert_allclose(factors, (plain / scaled).numpy(), rtol=1e-5)
    assert len({round(float(f), 4) for f in factors}) >= 3, "low, high and blended frequencies are all there"


def test_shards_give_the_same_file(checkpoint, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "sharded", shard="100KB", **VARIANTS["tied"])
    assert len(list(folder.glob("*.safetensors"))) > 1
    write_tokenizer(folder, "smollm")
    write(folder, tmp_path / "a.gguf", "q8_0")
    write(checkpoint("tied"), tmp_path / "b.gguf", "q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_small_chunks_give_the_same_file(checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(checkpoint("mistral"), tmp_path / "a.gguf", "q8_0")
    monkeypatch.setattr(export, "_CHUNK_ELEMENTS", 5 * 64)  # 5 rows, and one head of 32 where rows are reordered
    write(checkpoint("mistral"), tmp_path / "b.gguf", "q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_padded_mlp_is_written_and_a_ragged_one_falls_back_to_f16(tmp_path: Path) -> None:
    types = {}
    for size in (96 + 32, 100):
        folder = write_model(tmp_path / str(size), intermediate_size=size)
        write_tokenizer(folder, "smollm")
        reader = write(folder, tmp_path / f"{size}.gguf", "q8_0")
        assert reader.fields["llama.feed_forward_length"].contents() == size
        types[size] = {t.name: t.tensor_type.name for t in reader.tensors}
    assert types[128]["blk.0.ffn_down.weight"] == "Q8_0"
    assert types[100]["blk.0.ffn_down.weight"] == "F16"
    assert types[100]["blk.0.ffn_up.weight"] == "Q8_0"


def test_metadata_and_vocabulary(checkpoint, tmp_path: Path) -> None:
    folder, out = checkpoint("tied"), tmp_path / "made" / "x.gguf"
    lineage = {"release": "abc123", "cap": "def456"}
    summary = export_gguf(folder, out, file_type="bf16", name="Karma", lineage=lineage, license_id="apache-2.0")
    reader = GGUFReader(out)
    assert (summary.path, summary.bytes, summary.n_tensors) == (out, out.stat().st_size, len(reader.tensors))
    fields = {key: field.contents() for key, field in reader.fields.items()}
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    expected = {
        "general.architecture": "llama",
        "general.name": "Karma",
        "general.license": "apache-2.0",
        "general.file_type": 32,
        "karma.release": "abc123",
        "karma.cap": "def456",
        "llama.block_count": 2,
        "llama.context_length": 512,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10_000.0,
        "llama.vocab_size": 640,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": tiny.CHAT_TEMPLATE,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in tokenizer["model"]["merges"]],
    }
    assert {key: fields[key] for key in expected} == expected
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == 640
    assert {t: i for i, t in enumerate(tokens) if types[i] == TokenType.NORMAL}.items() <= tokenizer["model"][
        "vocab"
    ].items()
    assert types[:3] == [TokenType.CONTROL] * 3
    assert types[tokens.index("<tool>")] == TokenType.USER_DEFINED
    assert types[601:] == [TokenType.UNUSED] * 39
    assert tokens[639] == "[PAD639]"


def greedy_by_transformers(folder: Path, prompts: list[list[int]], n: int) -> list[list[int]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    answers = []
    for prompt in prompts:
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(n):  # without a cache: the whole sequence every time
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        answers.append(ids[len(prompt) :])
    return answers


def greedy_by_llama_cpp(file: Path, prompts: list[str], n: int) -> list[list[int]]:
    engine = LlamaCppEngine(file, context=256, slots=2, threads=1, precision="exact")
    try:
        return engine.greedy_tokens(prompts, n)
    finally:
        engine.close()


PROMPTS = ["My neighbour lost the medicine today. What should I do?", "She hides 1999 letters since the war. " * 2]
N_TOKENS = 12


@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_cpp_continues_like_transformers(variant: str, checkpoint, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = checkpoint(variant)
    export_gguf(folder, tmp_path / "x.gguf", file_type="f32", name="tiny")
    ids = [Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids for text in PROMPTS]
    expected = greedy_by_transformers(folder, ids, N_TOKENS)
    assert len(set(map(tuple, expected))) == len(PROMPTS)
    assert greedy_by_llama_cpp(tmp_path / "x.gguf", PROMPTS, N_TOKENS) == expected


@pytest.mark.parametrize("differ", [True, False])
def test_an_output_embedding_is_written_where_it_is_another_than_the_tie_says(
    differ: bool, checkpoint, tmp_path: Path
) -> None:
    """transformers reads both from a checkpoint that holds both, and ties them only if they are equal."""
    folder = shutil.copytree(checkpoint("tied"), tmp_path / "both")
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding.flip(0).contiguous() if differ else embedding.clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    found = values(write(folder, tmp_path / "x.gguf"))
    if not differ:
        write(checkpoint("tied"), tmp_path / "tied.gguf")
        assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "tied.gguf").read_bytes()
        return
    numpy.testing.assert_array_equal(found["output.weight"], tensors["lm_head.weight"].numpy())
    parity = check_parity(folder, tmp_path / "x.gguf", prompts=PROMPTS, system=None)
    assert parity.mean_kl_nats < 1e-6


@pytest.mark.parametrize("mistake", ["rotary order", "rope factors"])
def test_the_comparison_sees_mistakes(
    mistake: str, checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_gguf(checkpoint("llama3-rope"), tmp_path / "right.gguf", file_type="f32", name="tiny")
    if mistake == "rotary order":
        monkeypatch.setattr(export, "interleave_rotary", lambda rows, _: rows)
    else:
        monkeypatch.setattr(export, "rope_factors", lambda _, dim: torch.ones(dim // 2))
    export_gguf(checkpoint("llama3-rope"), tmp_path / "wrong.gguf", file_type="f32", name="tiny")
    right, wrong = (greedy_by_llama_cpp(tmp_path / f"{name}.gguf", PROMPTS, N_TOKENS) for name in ("right", "wrong"))
    assert right != wrong


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "qwen2", "tekken"])
def test_llama_cpp_tokenizes_like_tokenizers(pre: str, checkpoint, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((checkpoint("tied") / name).read_bytes())
    write_tokenizer(folder, pre)
    assert write(folder, tmp_path / "x.gguf").fields["tokenizer.ggml.pre"].contents() == pre
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    engine = LlamaCppEngine(tmp_path / "x.gguf", context=256, slots=1)
    try:
        different = [t for t in UNICODE_TEXTS if engine.tokenize(t) != theirs.encode(t, add_special_tokens=False).ids]
        if pre == "tekken":  # llama.cpp's own pattern for it cuts at combining marks
            different = [text for text in different if not any(unicodedata.category(c)[0] == "M" for c in text)]
        if pre == "qwen2":  # llama.cpp does not compose characters
            assert "e\u0301 versus \u00e9" in different
            different = [text for text in different if unicodedata.is_normalized("NFC", text)]
    finally:
        engine.close()
    assert different == []


def test_parity_sees_a_wrong_pre_tokenizer(checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_PRE_TOKENIZERS, ("digits", "bytes+words"), "gpt-2")
    write(checkpoint("tied"), tmp_path / "x.gguf")
    parity = check_parity(checkpoint("tied"), tmp_path / "x.gguf", prompts=["a"], system="", max_new_tokens=1)
    assert not parity.token_ids_equal
    assert "two  3s,   40 and\n\n 5" in parity.differing_texts
    assert "Hello world" not in parity.differing_texts


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, InputError, "GemmaForCausalLM.*convert_hf_to_gguf.py"),
        ({"hidden_act": "gelu"}, InputError, "gelu"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, InputError, "quantised"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, InputError, "yarn.*convert_hf_to_gguf.py"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, ArtifactError, "factor"),
        ({"tie_word_embeddings": False}, ArtifactError, r"no tensor for output\.weight"),
        ({"num_hidden_layers": 3}, ArtifactError, r"no tensor for blk\.2"),
        ({"num_hidden_layers": 1}, InputError, r"model\.layers\.1\..*convert_hf_to_gguf.py"),
        ({"partial_rotary_factor": 0.5}, InputError, "part of each head.*convert_hf_to_gguf.py"),
        ({"num_attention_heads": "four"}, ArtifactError, "num_attention_heads 'four', expected a number"),
        ({"head_dim": None, "rms_norm_eps": "x"}, ArtifactError, "transformers cannot read"),
        ({"intermediate_size": 128}, ArtifactError, r"shape \[96, 64\].*\[128, 64\]"),
        ({"vocab_size": 300}, ArtifactError, "shape"),
        ({"rms_norm_eps": None}, ArtifactError, "rms_norm_eps"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changes, error, message: str, changed: Path, tmp_path: Path) -> None:
    edit_json(changed / "config.json", **changes)
    with pytest.raises(error, match=message):
        write(changed, tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace.*llama-bpe.*smollm"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"model": {"type": "Unigram", "vocab": []}}, "Unigram.*convert_hf_to_gguf.py"),
        ({"model": {"type": "BPE", "byte_fallback": True, "vocab": {}}}, "SentencePiece.*tokenizer.model"),
    ],
)
def test_an_unknown_tokenizer_is_refused(changes, message: str, changed: Path, tmp_path: Path) -> None:
    edit_json(changed / "tokenizer.json", **changes)
    with pytest.raises(InputError, match=message):
        write(changed, tmp_path / "x.gguf")


def test_defaults_of_transformers_are_filled_in(changed: Path, tmp_path: Path) -> None:
    config = json.loads((changed / "config.json").read_text())
    del config["head_dim"], config["rope_parameters"]  # as in config.json of Llama 2
    (changed / "config.json").write_text(json.dumps(config))
    reader = write(changed, tmp_path / "out" / "x.gguf")
    assert reader.fields["llama.attention.key_length"].contents() == 16
    assert reader.fields["llama.rope.freq_base"].contents() == 10_000.0
    shutil.rmtree(tmp_path / "out")


def test_a_sliding_window_is_said(checkpoint, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", model_type="mistral", head_dim=16, sliding_window=128)
    write_tokenizer(folder, "smollm")
    said = Said()
    export_gguf(folder, tmp_path / "x.gguf", file_type="f32", name="tiny", progress=said)
    assert any("last 128 tokens" in line for line in said.lines)


class Said(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_what_a_model_card_says_is_in_the_file(changed: Path, tmp_path: Path) -> None:
    card = "---\nlicense: apache-2.0\nbase_model: owner/Base-7B\nlanguage: [en, de]\ntags: [aligned]\n---\n# x\n"
    (changed / "README.md").write_text(card)
    fields = write(changed, tmp_path / "out" / "x.gguf").fields
    said = {
        key: fields[f"general.{key}"].contents() for key in ("license", "base_model.0.repo_url", "languages", "tags")
    }
    assert said == {
        "license": "apache-2.0",
        "base_model.0.repo_url": "https://huggingface.co/owner/Base-7B",
        "languages": ["en", "de"],
        "tags": ["aligned"],
    }
    shutil.rmtree(tmp_path / "out")


# SentencePiece vocabularies: Llama 2, Mistral before Nemo


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("spm"), model_type="mistral", head_dim=16, sliding_window=None)
    write_sentencepiece(folder)
    return folder


def test_a_sentencepiece_vocabulary_keeps_scores_and_types(spm: Path, tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    fields = {key: f.contents() for key, f in write(spm, tmp_path / "x.gguf").fields.items()}
    pieces = SentencePieceProcessor(model_file=str(spm / "tokenizer.model"))
    assert fields["tokenizer.ggml.model"] == "llama"
    assert fields["tokenizer.ggml.tokens"][300:600] == [pieces.IdToPiece(n) for n in range(300, 600)]
    assert fields["tokenizer.ggml.scores"][300:600] == [pieces.GetScore(n) for n in range(300, 600)]
    types = fields["tokenizer.ggml.token_type"]
    assert [types[n] for n in (3, 300, 639)] == [TokenType.BYTE, TokenType.NORMAL, TokenType.UNUSED]
    assert (fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.eos_token_id"]) == (1, 2)


def test_llama_cpp_reads_a_sentencepiece_vocabulary_like_sentencepiece(spm: Path, tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    write(spm, tmp_path / "x.gguf")
    pieces = SentencePieceProcessor(model_file=str(spm / "tokenizer.model"))
    engine = LlamaCppEngine(tmp_path / "x.gguf", context=256, slots=1)
    try:
        texts = [text for text in UNICODE_TEXTS if "<" not in text]
        assert [text for text in texts if engine.tokenize(text) != pieces.EncodeAsIds(text)] == []
    finally:
        engine.close()


def test_a_file_that_is_no_sentencepiece_model_is_refused(changed: Path, tmp_path: Path) -> None:
    (changed / "tokenizer.model").write_text("IQ== 0\n")  # tiktoken
    with pytest.raises(InputError, match=r"not a SentencePiece model.*tiktoken"):
        write(changed, tmp_path / "x.gguf")


# Memory: what is held does not grow with the model

PEAK = """
import sys
from pathlib import Path
from karma_electric.export import gguf
import torch, gguf as _, transformers, numpy

def peak():  # VmHWM, which clear_refs resets
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

small, large, out = map(Path, sys.argv[1:])
gguf.export_gguf(small, out, file_type="q8_0", name="x")  # what is loaded on first use
Path("/proc/self/clear_refs").write_text("5")
before = peak()
gguf.export_gguf(large, out, file_type="q8_0", name="x")
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured by Linux's own peak of memory")
def test_memory_is_that_of_one_tensor_whatever_the_model_weighs(tmp_path: Path) -> None:
    shapes = {"hidden_size": 256, "intermediate_size": 4096, "vocab_size": 1024}  # matrices of 4 MB
    folders = []
    for layers in (1, 6):
        folders.append(write_model(tmp_path / f"{layers}", shard="20MB", num_hidden_layers=layers, **shapes))
        write_tokenizer(folders[-1], "smollm")
    large = sum(file.stat().st_size for file in folders[1].glob("*.safetensors"))
    assert len(list(folders[1].glob("*.safetensors"))) > 2
    command = [sys.executable, "-c", PEAK, *map(str, folders), str(tmp_path / "x.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    grown = int(done.stdout)
    assert large > 70_000_000
    assert grown < 0.3 * large, f"{grown / 1e6:.0f} MB for {large / 1e6:.0f} MB of weights"


def test_a_training_template_is_refused(changed: Path, tmp_path: Path) -> None:
    (changed / "chat_template.jinja").write_text("{% generation %}{% endgeneration %}")
    with pytest.raises(InputError, match="training template"):
        write(changed, tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("value", "file_type", "error", "message"),
    [(float("nan"), "q8_0", ArtifactError, "NaN"), (-1e5, "f16", InputError, "exceeds float16")],
)
def test_a_value_the_file_cannot_hold_is_refused(
    value: float, file_type: str, error, message: str, changed: Path, tmp_path: Path
) -> None:
    tensors = load_file(changed / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][63, 5] = value
    save_file(tensors, changed / "model.safetensors")
    with pytest.raises(error, match=message):
        write(changed, tmp_path / "x.gguf", file_type)


def test_a_truncated_checkpoint_is_refused(changed: Path, tmp_path: Path) -> None:
    whole = (changed / "model.safetensors").read_bytes()
    (changed / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="not a whole safetensors file"):
        write(changed, tmp_path / "x.gguf")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"config\.json"):
        write(tmp_path, tmp_path / "x.gguf")


def test_a_failed_write_leaves_the_old_file(checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "x.gguf"
    out.write_text("old")
    read = StoredTensor.rows

    def fail(self: StoredTensor, first: int, last: int) -> torch.Tensor:
        if self.name.startswith("model.layers.1."):
            raise OSError("the disk went away")
        return read(self, first, last)

    monkeypatch.setattr(StoredTensor, "rows", fail)
    with pytest.raises(OSError, match="went away"):
        write(checkpoint("tied"), out)
    assert [file.name for file in tmp_path.iterdir()] == ["x.gguf"]
    assert out.read_text() == "old"


KILLED = """
import os, signal, sys
from pathlib import Path
from karma_electric.export import gguf
from karma_electric.models.weights import StoredTensor
StoredTensor.rows = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
gguf.export_gguf(Path(sys.argv[1]), Path(sys.argv[2]), file_type="f32", name="tiny")
"""


def test_a_kill_leaves_no_file_and_the_next_export_cleans_up(checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    done = subprocess.run([sys.executable, "-c", KILLED, str(checkpoint("tied")), str(out)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [file.name for file in tmp_path.iterdir()] == [".x.gguf.tmp"], "killed while writing"
    write(checkpoint("tied"), out)
    assert [file.name for file in tmp_path.iterdir()] == ["x.gguf"]
