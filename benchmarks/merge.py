"""Merging: peft's merge_and_unload against the streamed merge, and what the choice of base weights costs.

Each merge runs in a process of its own, alternating; time and peak memory are from after the imports. Prints both, the
ratio, and the largest difference between the two results. With --release it also tells, for both bases, how the merged
model does on the held-out split: loss on the answers, and KL from the adapter on the 4-bit base it was trained on.

    python benchmarks/merge.py BASE ADAPTER [--release runs/demo/release] [--repeats 3] [--json FILE]

BASE and ADAPTER default to builtin:smollm2-135m and runs/demo/adapter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from karma_electric.core.artifact import code_version, hardware, write_json
from karma_electric.core.recipe import MergeSection
from karma_electric.models.loading import import_quietly, load_model, load_tokenizer, quiet_transformers
from karma_electric.models.refs import resolve
from karma_electric.models.weights import checkpoint_tensors
from karma_electric.train.merge import merge_adapter
from karma_electric.train.merge_check import adapter_on_base
from karma_electric.train.tokenize import IGNORED, read_split, tokenize_split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", nargs="?", default="builtin:smollm2-135m")
    parser.add_argument("adapter", nargs="?", type=Path, default=Path("runs/demo/adapter"))
    parser.add_argument("--release", type=Path, help="folder with validation.jsonl")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--one", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    base = resolve(asked.base).path
    if asked.one:
        print(json.dumps(measured(SIDES[asked.one], base, asked.adapter, asked.out)))
        return
    with tempfile.TemporaryDirectory() as folder:
        results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(asked.repeats):
            for side in SIDES:
                command = [sys.executable, __file__, asked.base, asked.adapter, "--one", side]
                done = subprocess.run(
                    [*command, "--out", Path(folder) / side], capture_output=True, text=True, check=True
                )
                results[side].append(json.loads(done.stdout.splitlines()[-1]))
        found: dict[str, Any] = {"repeats": asked.repeats, **compare(results, Path(folder))}
        if asked.release:
            found["choices"] = choices(base, asked.adapter, asked.release, Path(folder))
    if asked.json:
        write_json(asked.json, {**found, "hardware": hardware(), "code": code_version()})


def with_peft(base: Path, adapter: Path, out: Path) -> None:
    """The whole model in float32, merged by peft, rounded and saved."""
    from peft import PeftModel

    with quiet_transformers():
        model = PeftModel.from_pretrained(load_model(base, dtype="float32", device="cpu"), str(adapter))
        model.merge_and_unload(safe_merge=True).to(torch.bfloat16).save_pretrained(out)


def streamed(base: Path, adapter: Path, out: Path) -> None:
    merge_adapter(base, adapter, MergeSection(), out)


SIDES = {"peft": with_peft, "streamed": streamed}


def measured(merge: Any, base: Path, adapter: Path, out: Path) -> dict[str, float]:
    """Seconds and peak MB of one merge, above what the process held after its imports."""
    import_quietly("bitsandbytes", "peft", "transformers.models.llama.modeling_llama")
    for stale in out.glob("*"):
        stale.unlink()
    reset_peak()
    before, started = memory_mb("VmRSS"), time.perf_counter()
    merge(base, adapter, out)
    return {"seconds": time.perf_counter() - started, "peak_mb": memory_mb("VmHWM") - before}


def reset_peak() -> None:
    """Linux: from here on VmHWM is measured anew."""
    Path("/proc/self/clear_refs").write_text("5")


def memory_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(key))


def compare(results: dict[str, list[dict[str, float]]], folder: Path) -> dict[str, Any]:
    medians = {
        side: {key: statistics.median(run[key] for run in runs) for key in ("seconds", "peak_mb")}
        for side, runs in results.items()
    }
    for side, found in medians.items():
        print(f"{side:>9}: {found['seconds']:6.2f} s, peak {found['peak_mb']:7.0f} MB (median of {len(results[side])})")
    one, other = medians["peft"], medians["streamed"]
    ratios = {key: one[key] / other[key] for key in one}
    print(f"    ratio: {ratios['seconds']:.1f} times the speed, 1/{ratios['peak_mb']:.0f} of the memory")
    peft, ours = (checkpoint_tensors(folder / side) for side in SIDES)
    assert peft.keys() == ours.keys()
    pairs = [(peft[name].read(), ours[name].read()) for name in peft]
    largest = max(float((a.float() - b.float()).abs().max()) for a, b in pairs)
    different = sum(int((a != b).sum()) for a, b in pairs)
    numbers = sum(a.numel() for a, _ in pairs)
    print(f"largest difference {largest:g}; {different} of {numbers} numbers differ")
    return {"sides": medians, "largest_difference": largest, "different": different, "numbers": numbers}


def choices(base: Path, adapter: Path, release: Path, folder: Path) -> list[dict[str, Any]]:
    """Loss on held-out answers and KL from the trained model, for both bases."""
    import_quietly("bitsandbytes", "peft")
    tokenizer = load_tokenizer(base)
    examples = tokenize_split(read_split(release / "validation.jsonl"), tokenizer, 512).examples
    trained = adapter_on_base(base, adapter, "float32", "dequantised-nf4")
    reference = [logits(trained, example) for example in examples]
    rows = [report("adapter on the 4-bit base, as trained", reference, reference, examples)]
    del trained
    for weights in ("bf16", "dequantised-nf4"):
        out = folder / weights
        merge_adapter(base, adapter, MergeSection(base=weights), out)
        model = load_model(out, dtype="float32", device="cpu")
        found = [logits(model, example) for example in examples]
        rows.append(report(f"merged, `{weights}`", found, reference, examples))
        del model
    plain = load_model(base, dtype="float32", device="cpu")
    found = [logits(plain, example) for example in examples]
    rows.append(report("the base, without the adapter", found, reference, examples))
    return rows


def logits(model: Any, example: Any) -> torch.Tensor:
    """Log-probabilities at the positions that answers are predicted from, [learned, vocabulary]."""
    learned = torch.tensor(example.labels)[1:] != IGNORED
    with torch.inference_mode():
        found = model(input_ids=torch.tensor([example.input_ids])).logits[0, :-1][learned]
    return found.float().log_softmax(-1).half()  # [learned, vocabulary]; half: they are all kept


def report(name: str, found: list[torch.Tensor], reference: list[torch.Tensor], examples: list[Any]) -> dict[str, Any]:
    nll, kl, tokens = 0.0, 0.0, 0
    for a, b, example in zip(reference, found, examples, strict=True):
        targets = torch.tensor([label for label in example.labels[1:] if label != IGNORED])
        a, b = a.float(), b.float()
        nll -= float(b.gather(1, targets[:, None]).sum())
        kl += float((a.exp() * (a - b)).sum())
        tokens += len(targets)
    print(f"{name:>36}: loss {nll / tokens:.4f}, KL from trained {kl / tokens:.5f} nats ({tokens} tokens)")
    return {"model": name, "loss": nll / tokens, "kl": kl / tokens, "tokens": tokens, "conversations": len(examples)}


if __name__ == "__main__":
    main()
