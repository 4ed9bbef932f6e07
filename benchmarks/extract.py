"""Extraction of an axis against the original's method, on the embedded model and the 200 contrast prompts, in float32.

The original's method, written here from its description and from nothing else: one prompt at a time, a hook per block,
a whole forward pass with its logits, four system prompts (the persona and three generic ones) for every user prompt,
the last token. Both sites are hooked, so that all directions can be compared.

Both run in one process, in turns, so that both see the same machine: our extraction is stopped after every chunk, its
clock with it, and the other side does the same prompts. Everything that either does is counted, our rendering, shared
prefixes, chunk files and second pass included; loading the model is not.

    python benchmarks/extract.py [--prompts 200] [--parts] [--out results/benchmarks/extract.json]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from karma_electric.core.artifact import code_version, hardware, write_json
from karma_electric.core.extras import version_of
from karma_electric.core.progress import Silent
from karma_electric.core.recipe import load_recipe
from karma_electric.core.resources import find
from karma_electric.models import arithmetic
from karma_electric.models.loading import load_model, load_tokenizer
from karma_electric.models.refs import resolve
from karma_electric.steer.activations import all_sites
from karma_electric.steer.contrast import ContrastSet, load_prompts
from karma_electric.steer.extract import _CHUNK as CHUNK
from karma_electric.steer.extract import extract
from karma_electric.steer.prefix import WHOLE, Reading, common_prefix, read, share
from karma_electric.steer.reader import by_length

TARGET_RATIO, TARGET_COSINE = 5.0, 0.99999


class Original:
    """The original's method. Nothing of the package is used here."""

    def __init__(self, model: Any, tokenizer: Any, toward: str, away: Sequence[str]) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.systems = [toward, *away]
        self.sums: dict[str, torch.Tensor] = {}
        self.n = 0

    def add(self, prompts: Sequence[str]) -> None:
        """Extract from some more user prompts."""
        for prompt in prompts:
            sides = [self.last_token(text, prompt) for text in self.systems]
            for site in ("mlp", "block"):
                away = torch.stack([side[site] for side in sides[1:]]).mean(0)
                self.sums[site] = self.sums.get(site, 0) + (away - sides[0][site])
            self.n += 1

    def last_token(self, system: str, prompt: str) -> dict[str, torch.Tensor]:
        """Residual streams [blocks, hidden] at the last token, float64."""
        seen: dict[str, list[torch.Tensor]] = {"mlp": [], "block": []}

        def after_block(module: Any, inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            seen["block"].append(hidden[0, -1].detach().clone())

        def before_mlp(module: Any, inputs: Any) -> None:
            seen["mlp"].append(inputs[0][0, -1].detach().clone())

        handles = []
        for layer in self.model.model.layers:
            handles.append(layer.register_forward_hook(after_block))
            handles.append(layer.post_attention_layernorm.register_forward_pre_hook(before_mlp))
        messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            self.model(**inputs)
        for handle in handles:
            handle.remove()
        return {site: torch.stack(values).double() for site, values in seen.items()}


class Turns(Silent):
    """Stops our clock after every chunk of the first pass, and lets the other side do the same prompts."""

    def __init__(self, other: Callable[[Sequence[str]], None], prompts: Sequence[str]) -> None:
        self.other, self.prompts = other, prompts
        self.done = 0
        self.theirs = 0.0
        self.slices: list[dict[str, float]] = []
        self.started = time.perf_counter()

    def update(self, done: int, total: int, note: str = "") -> None:
        if "contrast prompts" not in note:
            return
        began = time.perf_counter()
        ours = began - self.started - self.theirs
        part = self.prompts[self.done : self.done + CHUNK]
        self.other(part)
        self.done += len(part)
        theirs = time.perf_counter() - began
        self.theirs += theirs
        before = sum(slice_["seconds_ours"] for slice_ in self.slices)
        self.slices.append({"prompts": len(part), "seconds_one_by_one": theirs, "seconds_ours": ours - before})
        print(f"  {self.done:>4} prompts: {theirs:6.1f} s one by one, {ours - before:6.1f} s ours", flush=True)

    def say(self, text: str) -> None:
        print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=200, help="how many of the contrast prompts")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch, for both sides")
    parser.add_argument(
        "--parts", action="store_true", help="also what each of our measures gives alone, on 25 prompts"
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    recipe = load_recipe("demo.toml")
    base = resolve(recipe.model.base)
    model, tokenizer = load_model(base.path, dtype="float32", device="cpu"), load_tokenizer(base.path)
    prompts = load_prompts(find("suites", recipe.axis.contrast))[: asked.prompts]
    contrast = ContrastSet(prompts, recipe.persona.system_prompt, tuple(recipe.persona.away))
    ordered, _ = by_length(tokenizer, contrast, None)  # ours goes by length: let both do the same prompts in turn
    texts = [prompt.text for prompt in ordered.prompts]
    original = Original(model, tokenizer, contrast.toward, contrast.away)
    original.last_token(contrast.toward, texts[0])  # the first pass of a process is slower
    with tempfile.TemporaryDirectory() as folder:
        turns = Turns(original.add, texts)
        axis = extract(model, tokenizer, contrast, Path(folder), fingerprint=base.fingerprint, progress=turns)
        ours = time.perf_counter() - turns.started - turns.theirs
    assert original.n == axis.n == len(texts)
    cosine = {
        site: torch.nn.functional.cosine_similarity(original.sums[site], axis.directions[site].double(), dim=-1)
        for site in ("mlp", "block")
    }
    figures: dict[str, Any] = {
        "n": axis.n,
        "system_prompts": len(original.systems),
        "dtype": "float32",
        "threads": asked.threads,
        "seconds_one_by_one": round(turns.theirs, 2),
        "seconds_ours": round(ours, 2),
        "ratio": round(turns.theirs / ours, 2),
        "median_ratio_of_slices": round(
            statistics.median(s["seconds_one_by_one"] / s["seconds_ours"] for s in turns.slices), 2
        ),
        "min_cosine": min(float(values.min()) for values in cosine.values()),
    }
    print(f"one by one  {turns.theirs:8.1f} s")
    print(f"ours        {ours:8.1f} s")
    print(f"ratio       {figures['ratio']:8.2f}  (target: at least {TARGET_RATIO:g})")
    print(f"of slices   {figures['median_ratio_of_slices']:8.2f}  (median; preparation is in the first slice)")
    print(f"min cosine  {figures['min_cosine']:.9f} over {2 * axis.n_layers} directions (target: {TARGET_COSINE})")
    if asked.parts:
        figures["parts"] = parts(model, tokenizer, contrast)
    if asked.out:
        packages = {name: version_of(name) for name in ("torch", "transformers")}
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(asked.out, {**figures, "hardware": hardware(), "packages": packages, "code": code_version()})
    if figures["ratio"] < TARGET_RATIO or figures["min_cosine"] < TARGET_COSINE:
        raise SystemExit("a target is missed")


def parts(model: Any, tokenizer: Any, contrast: ContrastSet) -> dict[str, float]:
    """Seconds for the first 25 prompts, one measure added after another, and printed with the gain of each."""
    prompts = contrast.prompts[:25]
    keys = all_sites(model.config.num_hidden_layers)
    by_system: list[list[Reading]] = []
    for system in (contrast.toward, *contrast.away):
        rendered = [
            tokenizer.apply_chat_template(
                [{"role": "system", "content": system}, {"role": "user", "content": prompt.text}],
                add_generation_prompt=True,
                return_dict=True,
            )["input_ids"]
            for prompt in prompts
        ]
        by_system.append([Reading(ids, len(ids) - 1, len(ids)) for ids in rendered])

    def run(batch_tokens: int, shared: bool, onednn: bool) -> None:
        with mock.patch.object(arithmetic, "_onednn_is_faster", return_value=onednn and kernel):
            for readings in by_system:
                prefix = WHOLE
                if shared:
                    ids, longest = common_prefix(readings)
                    prefix = share(model, ids, keys, longest=longest, sample=None)
                read(model, readings, keys, prefix, batch_tokens=batch_tokens)

    kernel = arithmetic._onednn_is_faster()
    original = Original(model, tokenizer, contrast.toward, contrast.away)
    steps: dict[str, Callable[[], None]] = {
        "one by one, whole model": lambda: original.add([prompt.text for prompt in prompts]),
        "no vocabulary projection": lambda: run(1, shared=False, onednn=False),
        "batches by length": lambda: run(4096, shared=False, onednn=False),
        "shared prefixes": lambda: run(4096, shared=True, onednn=False),
        "oneDNN on this processor": lambda: run(4096, shared=True, onednn=True),
    }
    seconds: dict[str, float] = {}
    before = None
    for name, step in steps.items():
        started = time.perf_counter()
        step()
        seconds[name] = round(time.perf_counter() - started, 2)
        gain = f"  x{before / seconds[name]:.2f}" if before else ""
        print(f"  {name:<26}{seconds[name]:7.2f} s{gain}")
        before = seconds[name]
    return seconds


if __name__ == "__main__":
    main()
