"""What a cap costs: tokens/s of prefill and decode with and without hooks at 7 blocks, for one row and for a batch.

Bare model and both sites take turns in one process, in rotating order, and each capped run is compared with the bare
run of its round: the median of these ratios, with a 95% interval by bootstrap over the rounds. A capped run is what the
engines do: attach, run, read the meter, detach. The axis is random and its thresholds are the medians over the prompt,
since the cost depends on neither. Prints a verdict; exit code 1 if a cell is above the limit beyond doubt.

    python benchmarks/cap_overhead.py [--repeats 30] [--out FILE.json] [--device cuda] [--dtype bfloat16] [--compile]
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import StaticCache

from karma_electric.core.artifact import write_json
from karma_electric.models.blocks import SITES, Site, decoder_blocks, hidden_size, layer_range
from karma_electric.models.loading import load_model, pick_device, pick_dtype
from karma_electric.models.refs import BUILTIN, resolve
from karma_electric.steer.activations import picked, recording
from karma_electric.steer.cap import capped
from karma_electric.steer.spec import Cap, CapSpec

BARE = "bare"
N_LAYERS = 7
VARIANTS: tuple[str, ...] = (BARE, *SITES)


def main() -> int:
    options = _options()
    device = options.device or pick_device()
    model = load_model(resolve(options.model).path, dtype=pick_dtype(options.dtype, device), device=device)
    prompt = torch.randint(
        0, model.config.vocab_size, (max(options.batches), options.prompt_tokens), generator=_generator()
    ).to(device)
    caps = {site: _cap(model, prompt[:1], site) for site in SITES}
    fixed = {site: _fixed_cost_ms(model, cap) for site, cap in caps.items()}
    bench = Bench(model, caps, compiled=options.compile)
    settings = {
        "model": options.model,
        "blocks": list(caps["mlp"].spec.layers),
        "device": torch.cuda.get_device_name() if model.device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "compiled": options.compile,
        "prompt_tokens": options.prompt_tokens,
        "decode_tokens": options.decode_tokens,
        "repeats": options.repeats,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(", ".join(f"{key} {value}" for key, value in settings.items()))
    for site, costs in fixed.items():
        print(
            f"{site:<6} self-test {costs['self_test']:.0f} ms, once a process; "
            f"attach and detach {costs['attach']:.2f} ms"
        )
    print(f"{'site':<7}{'phase':<9}{'batch':>5}{'bare tok/s':>12}{'capped tok/s':>14}{'overhead':>10}   95% interval")
    cells = []
    for phase, n_tokens in (("decode", options.decode_tokens), ("prefill", options.prompt_tokens)):
        for batch in options.batches:
            seconds = bench.rounds(phase, prompt[:batch], n_tokens, options.repeats)
            for site in SITES:
                cell = _cell(site, phase, batch, n_tokens, seconds)
                cells.append(cell)
                low, high = cell["interval_95_percent"]
                print(
                    f"{site:<7}{phase:<9}{batch:>5}{cell['bare_tokens_per_s']:>12.1f}"
                    f"{cell['capped_tokens_per_s']:>14.1f}{cell['overhead_percent']:>+9.2f}%"
                    f"   [{low:+.2f}, {high:+.2f}]"
                )
    if options.out:
        write_json(options.out, {"settings": settings, "fixed_cost_ms": fixed, "cells": cells})
    above = [c for c in cells if c["interval_95_percent"][0] > options.limit]
    unsure = [c for c in cells if c not in above and c["interval_95_percent"][1] > options.limit]
    print(
        f"limit {options.limit:g}%: {len(cells) - len(above) - len(unsure)} of {len(cells)} cells below it, "
        f"{len(unsure)} undecided (more --repeats, or a quieter machine), {len(above)} above it"
    )
    return 1 if above else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=BUILTIN, help="a model folder or hub id")
    parser.add_argument("--device", help="cpu, cuda; the best there is when not given")
    parser.add_argument("--dtype", default="auto", help="auto, bfloat16, float16 or float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile and a static cache, on both sides")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--decode-tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=30, help="rounds that count; one more warms up")
    parser.add_argument("--limit", type=float, default=3.0, help="percent")
    parser.add_argument("--out", type=Path, help="write settings and figures as JSON")
    return parser.parse_args()


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _cap(model: Any, prompt: torch.Tensor, site: Site) -> Cap:
    """A soft cap at 7 blocks from 70% of the depth on, along random directions, with half of the tokens above."""
    n_layers = len(decoder_blocks(model))
    first = layer_range(n_layers, layers=None, depth=(0.7, 0.88))[0]
    first = max(0, min(first, n_layers - N_LAYERS))
    layers = tuple(range(first, min(first + N_LAYERS, n_layers)))
    vectors = torch.randn(len(layers), hidden_size(model), generator=_generator())
    directions = dict(zip(layers, vectors / vectors.norm(dim=-1, keepdim=True), strict=True))
    everything = picked(torch.ones(prompt.shape, dtype=torch.bool))
    with recording(model, [(site, layer) for layer in layers], everything) as seen, torch.inference_mode():
        model(input_ids=prompt)
    thresholds = {layer: float((seen[site, layer] @ directions[layer]).median()) for layer in layers}
    return Cap(CapSpec("", site, layers, thresholds, 0.5), directions)


def _fixed_cost_ms(model: Any, cap: Cap) -> dict[str, float]:
    """Opening the cap for the first time, which tests it, and after that."""
    times = []
    for _ in range(21):
        started = time.perf_counter()
        with capped(model, cap):
            pass
        times.append(1000 * (time.perf_counter() - started))
    attach = statistics.median(times[1:])
    return {"self_test": times[0] - attach, "attach": attach}


class Bench:
    """Times the bare model and both caps in turns."""

    def __init__(self, model: Any, caps: dict[Site, Cap], *, compiled: bool) -> None:
        self._model = model
        self._caps = caps
        self._compiled = compiled
        self._forward = model

    def rounds(self, phase: str, prompt: torch.Tensor, n_tokens: int, repeats: int) -> dict[str, list[float]]:
        """Seconds of each round, by variant."""
        seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        cache = None
        if self._compiled:  # anew for each cell: all of them together are more versions than torch keeps
            torch.compiler.reset()
            self._forward = torch.compile(self._model, dynamic=False)
        with torch.inference_mode():
            if phase == "decode":
                cache = self._cache(prompt.shape[1] + n_tokens)
                cache = self._forward(input_ids=prompt, past_key_values=cache, use_cache=True).past_key_values
            for number in range(-1 - 2 * self._compiled, repeats):  # compiled code settles after three calls
                for turn in range(len(VARIANTS)):
                    variant = VARIANTS[(number + turn) % len(VARIANTS)]
                    elapsed = self._seconds(variant, prompt, n_tokens, cache)
                    where = f"{phase} batch {prompt.shape[0]}: round {max(number, 0) + 1} of {repeats}"
                    print(f"\r{where:<50}", end="", file=sys.stderr, flush=True)
                    if number >= 0:
                        seconds[variant].append(elapsed)
        print(f"\r{'':<50}\r", end="", file=sys.stderr, flush=True)
        return seconds

    def _cache(self, length: int) -> Any:
        return StaticCache(config=self._model.config, max_cache_len=length) if self._compiled else None

    def _seconds(self, variant: str, prompt: torch.Tensor, n_tokens: int, prefilled: Any) -> float:
        """One run: the prompt, or tokens one by one after a prompt that is in the cache already."""
        batch = prompt.shape[0]
        cache = copy.deepcopy(prefilled) if prefilled is not None else self._cache(prompt.shape[1])
        token = prompt[:, :1]
        self._wait()
        started = time.perf_counter()
        if variant == BARE:
            self._run(prompt, token, n_tokens if prefilled is not None else 0, cache)
        else:
            with capped(self._model, self._caps[variant]) as meter:  # type: ignore[index]
                self._run(prompt, token, n_tokens if prefilled is not None else 0, cache)
            meter.response_rates([n_tokens] * batch)
        self._wait()
        return time.perf_counter() - started

    def _run(self, prompt: torch.Tensor, token: torch.Tensor, n_steps: int, cache: Any) -> None:
        if not n_steps:
            self._forward(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
        for _ in range(n_steps):
            logits = self._forward(input_ids=token, past_key_values=cache, use_cache=True).logits
            token = logits[:, -1:].argmax(-1)

    def _wait(self) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize()


def _cell(site: Site, phase: str, batch: int, n_tokens: int, seconds: dict[str, list[float]]) -> dict[str, Any]:
    bare, with_cap = np.array(seconds[BARE]), np.array(seconds[site])
    overhead = 100 * (with_cap / bare - 1)  # [repeats]
    resampled = np.random.default_rng(0).choice(overhead, (10_000, len(overhead)))
    return {
        "site": site,
        "phase": phase,
        "batch": batch,
        "bare_tokens_per_s": batch * n_tokens / float(np.median(bare)),
        "capped_tokens_per_s": batch * n_tokens / float(np.median(with_cap)),
        "overhead_percent": float(np.median(overhead)),
        "interval_95_percent": np.quantile(np.median(resampled, axis=1), [0.025, 0.975]).tolist(),
        "seconds": {BARE: bare.tolist(), "capped": with_cap.tolist()},
    }


if __name__ == "__main__":
    sys.exit(main())
