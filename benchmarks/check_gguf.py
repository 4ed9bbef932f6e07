"""Compares our GGUF export with llama.cpp's own converter, tensor for tensor and key for key.

The converter is not part of this repository: `make check-gguf` fetches it (tools/llama_converter.sh). Small random
models of every architecture and kind of tokenizer are compared in every type, then MODEL, if given, in --type.

    python benchmarks/check_gguf.py CONVERTER [MODEL] [--type q8_0] [--json FILE]        (make check-gguf)

llama.cpp knows the tokenizers of released models by a hash. For the small models, which nobody released, it is told
the name that we found; that the name is right is for the tests, which compare tokens. Of the embedded model it finds
the name itself. Exits 1 if a tensor differs, or a key that is not expected to.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy
from gguf import GGUFReader, quants

from karma_electric.core.artifact import code_version, write_json
from karma_electric.export.gguf import export_gguf
from karma_electric.models.loading import quiet_transformers
from karma_electric.models.refs import resolve

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from exported import VARIANTS, write_model, write_sentencepiece, write_tokenizer

TYPES = ("q8_0", "f16", "bf16", "f32")
# Always said by us, where the converter leaves llama.cpp's default.
OURS_ONLY = {"tokenizer.ggml.add_bos_token"}
NOT_COMPARED = {"GGUF.kv_count", "GGUF.version"}
# Stands in front of the converter: the name for vocabularies that nobody released.
NAMED = """
import os, runpy, sys
script = sys.argv[1]
sys.path.insert(0, os.path.dirname(script))
from conversion.base import TextModel
known = TextModel.get_vocab_base_pre
def named(self, tokenizer):
    try:
        return known(self, tokenizer)
    except NotImplementedError:
        return os.environ["PRE"]
TextModel.get_vocab_base_pre = named
sys.argv = sys.argv[1:]
runpy.run_path(script, run_name="__main__")
"""
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    **{f"{variant}, smollm": (settings, "smollm") for variant, settings in VARIANTS.items()},
    "llama 3, llama-bpe": ({**VARIANTS["llama3-rope"], "tie_word_embeddings": False}, "llama-bpe"),
    "mistral nemo, tekken": (VARIANTS["mistral"], "tekken"),
    "mistral with a window, sentencepiece": ({**VARIANTS["mistral"], "sliding_window": 128}, "sentencepiece"),
    "llama 2, sentencepiece": ({"tie_word_embeddings": False}, "sentencepiece"),
    "qwen 2, qwen2": (VARIANTS["qwen2"], "qwen2"),
    "qwen 3, qwen2": (VARIANTS["qwen3"], "qwen2"),
    "ragged rows": ({"intermediate_size": 100}, "gpt-2"),
}


def run_theirs(converter: Path, model_dir: Path, out: Path, file_type: str, pre: str) -> None:
    path = os.pathsep.join(filter(None, (str(converter.parent / "gguf-py"), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-c", NAMED, str(converter), str(model_dir), "--outfile", str(out)]
    done = subprocess.run(
        [*command, "--outtype", file_type, "--model-name", "checked"],
        env=os.environ | {"PYTHONPATH": path, "PRE": pre},
        check=False,  # the message below says more
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"the converter failed:\n{done.stderr[-2000:]}")


def compare_keys(ours: GGUFReader, theirs: GGUFReader) -> dict[str, Any]:
    mine = {key: field.contents() for key, field in ours.fields.items() if key not in NOT_COMPARED}
    other = {key: field.contents() for key, field in theirs.fields.items() if key not in NOT_COMPARED}
    types = {key for key in mine.keys() & other.keys() if ours.fields[key].types != theirs.fields[key].types}
    return {
        "equal": sum(mine[key] == other[key] for key in mine.keys() & other.keys()),
        "different": sorted(key for key in mine.keys() & other.keys() if mine[key] != other[key] or key in types),
        "only_ours": sorted(mine.keys() - other.keys() - OURS_ONLY),
        "only_theirs": sorted(other.keys() - mine.keys()),
    }


def compare_tensors(ours: GGUFReader, theirs: GGUFReader) -> dict[str, Any]:
    mine = {tensor.name: tensor for tensor in ours.tensors}
    other = {tensor.name: tensor for tensor in theirs.tensors}
    different = {}
    for name in sorted(mine.keys() & other.keys()):
        a, b = mine[name], other[name]
        if a.tensor_type != b.tensor_type or list(a.shape) != list(b.shape):
            different[name] = f"{a.tensor_type.name} {list(a.shape)} / {b.tensor_type.name} {list(b.shape)}"
        elif not numpy.array_equal(a.data.view(numpy.uint8), b.data.view(numpy.uint8)):
            gap = quants.dequantize(a.data, a.tensor_type) - quants.dequantize(b.data, b.tensor_type)
            different[name] = f"largest difference {numpy.abs(gap).max():.3g}"
    return {
        "identical": len(mine.keys() & other.keys()) - len(different),
        "different": different,
        "only_ours": sorted(mine.keys() - other.keys()),
        "only_theirs": sorted(other.keys() - mine.keys()),
    }


def compare(converter: Path, model_dir: Path, file_type: Any, pre: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "ours.gguf"), Path(folder, "theirs.gguf")
        export_gguf(model_dir, ours, file_type=file_type, name="checked")
        run_theirs(converter, model_dir, theirs, file_type, pre)
        readers = GGUFReader(ours), GGUFReader(theirs)
        found = {"keys": compare_keys(*readers), "tensors": compare_tensors(*readers)}
        found["tokenizer"] = readers[1].fields["tokenizer.ggml.pre"].contents()
        del readers
    return found


def differences(found: dict[str, Any]) -> list[str]:
    lines = [f"{what} {name}" for what in ("different", "only_ours", "only_theirs") for name in found["keys"][what]]
    lines += [f"{name}: {how}" for name, how in found["tensors"]["different"].items()]
    return lines + [f"{what} {name}" for what in ("only_ours", "only_theirs") for name in found["tensors"][what]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("converter", type=Path, help="llama.cpp's convert_hf_to_gguf.py, in its tree")
    parser.add_argument("model", nargs="?", help="a folder or builtin:smollm2-135m, compared beside the small models")
    parser.add_argument("--type", default="q8_0", choices=TYPES, help="type in which MODEL is compared")
    parser.add_argument("--json", type=Path, help="write the comparison to this JSON file")
    asked = parser.parse_args()
    quiet_transformers()
    converter = asked.converter.resolve()
    results: dict[str, dict[str, Any]] = {}

    def note(name: str, found: dict[str, Any]) -> None:
        results[name] = found
        wrong = differences(found)
        print(
            f"{name:<46} {found['tensors']['identical']:>4} tensors, {found['keys']['equal']:>3} keys  "
            f"{'the same' if not wrong else 'DIFFERENT: ' + '; '.join(wrong)}",
            flush=True,
        )

    with tempfile.TemporaryDirectory() as folder:
        for name, (settings, tokenizer) in MODELS.items():
            model = write_model(Path(folder, name.replace(",", "").replace(" ", "-")), **settings)
            if tokenizer == "sentencepiece":
                write_sentencepiece(model)
            else:
                write_tokenizer(model, tokenizer)
            for file_type in TYPES if name == "tied, smollm" else ("q8_0",):
                note(f"{name} ({file_type})", compare(converter, model, file_type, tokenizer))
    if asked.model:
        found = compare(converter, resolve(asked.model).path, asked.type, "unknown")
        note(f"{asked.model} ({asked.type})", found)
    if asked.json:
        write_json(asked.json, {"comparisons": results, "code": code_version()})
    return int(any(differences(found) for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
