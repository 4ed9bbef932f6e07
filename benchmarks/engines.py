"""Tokens/s of each engine, for one request and for 16 at once, beside a plain transformers loop.

The plain loop calls `generate` for one request after another; `static` is one padded batch of all of them (what
`HfEngine.generate` does), which no new request can join. `live` and `live-capped` are the live transformers engine,
without a cap and with requests of four strengths in one batch; `llamacpp` is the live llama.cpp engine on the Q8_0
file. All take turns in one process on the same greedy requests, and every ratio is to the plain loop of its round: the
median over the rounds. For transformers it is also counted how many answers are those of the plain loop: in bfloat16 a
batch rounds the last bits otherwise, and two tokens that are as good as equal may change places.

    python benchmarks/engines.py [--rounds 5] [--tokens 64] [--requests 16] [--out FILE.json] [--note TEXT]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
import xllamacpp

from karma_electric.core.artifact import write_json
from karma_electric.core.messages import Conversation, system, user
from karma_electric.export.gguf import export_gguf
from karma_electric.models.blocks import decoder_blocks, hidden_size
from karma_electric.models.chat_template import prompt_ids
from karma_electric.models.engines.hf import HfEngine
from karma_electric.models.engines.live import LiveEngine, LiveRequest
from karma_electric.models.engines.live_hf import LiveHf
from karma_electric.models.engines.live_llamacpp import LiveLlamaCpp
from karma_electric.models.engines.protocol import Sampling
from karma_electric.models.loading import end_of_turn_ids, load_model, load_tokenizer, pick_device, pick_dtype
from karma_electric.models.refs import BUILTIN, resolve
from karma_electric.steer.live import live_cap
from karma_electric.steer.spec import Cap, CapSpec

PLAIN = "plain loop"
STRENGTHS = (None, 0.0, 0.25, 1.0)
TOPICS = ("bread", "a garden", "the sea", "an old letter", "rain", "a bridge", "patience", "a lost dog")
Answers = tuple[int, list[str]]  # tokens that were generated, and the texts


def main() -> int:
    options = _options()
    device = options.device or pick_device()
    folder = resolve(options.model).path
    model = load_model(folder, dtype=pick_dtype(options.dtype, device), device=device)
    tokenizer = load_tokenizer(folder)
    cap = _cap(model)
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "model.gguf"
        export_gguf(folder, file, file_type="q8_0", name="benchmark")
        llamacpp = LiveLlamaCpp(file, rows=options.requests, context=512, queue=0)
        sides: dict[str, Callable[[list[Conversation], Sampling], Answers]] = {
            PLAIN: partial(plain, model, tokenizer),
            "static": partial(static, HfEngine(model, tokenizer)),
            "live": partial(live, lambda: LiveHf(model, tokenizer)),
            "live-capped": partial(live, lambda: LiveHf(model, tokenizer, intervention=partial(live_cap, cap=cap))),
            "llamacpp": partial(live, lambda: llamacpp),
        }
        cells = [cell for n in (1, options.requests) for cell in _measure(sides, n, options)]
        llamacpp.close()
    settings = {
        "model": options.model,
        "device": torch.cuda.get_device_name() if model.device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "tokens": options.tokens,
        "rounds": options.rounds,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "xllamacpp": xllamacpp.__version__,
        "note": options.note,
    }
    print(", ".join(f"{key} {value}" for key, value in settings.items()))
    if options.out is not None:
        write_json(options.out, {"settings": settings, "cells": cells})
    return 0


def _measure(sides: dict[str, Any], n: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every side on the same `n` requests, in rotating order."""
    requests = [[system("Be brief."), user(f"Tell me about {TOPICS[i % 8]}, part {i}.")] for i in range(n)]
    sampling = Sampling(max_new_tokens=options.tokens)
    names = list(sides)
    speeds: dict[str, list[float]] = {name: [] for name in names}
    texts: dict[str, list[str]] = {}
    for name in names:  # warm
        sides[name](requests[:1], Sampling(max_new_tokens=4))
    for round_ in range(options.rounds):
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            started = time.perf_counter()
            n_tokens, texts[name] = sides[name](requests, sampling)
            speeds[name].append(n_tokens / (time.perf_counter() - started))
    cells = []
    for name in names:
        ratios = [speed / plain_speed for speed, plain_speed in zip(speeds[name], speeds[PLAIN], strict=True)]
        same = sum(a == b for a, b in zip(texts[name], texts[PLAIN], strict=True))
        cell = {
            "engine": name,
            "requests": n,
            "tokens_per_s": statistics.median(speeds[name]),
            "ratio": statistics.median(ratios),
            "ratios": ratios,
            "same_answers": same if name in ("static", "live") else None,
        }
        cells.append(cell)
        print(f"{name:<12}{n:>3} at once {cell['tokens_per_s']:>8.1f} tok/s   ratio {cell['ratio']:.2f}", flush=True)
    return cells


def plain(model: Any, tokenizer: Any, requests: list[Conversation], sampling: Sampling) -> Answers:
    """What one would write first."""
    n_tokens, texts = 0, []
    stops = set(end_of_turn_ids(model, tokenizer))
    for conversation in requests:
        ids = torch.tensor([prompt_ids(tokenizer, conversation)], device=model.device)
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(stops),
            pad_token_id=tokenizer.pad_token_id,
        )
        answer = [token for token in output[0, ids.shape[1] :].tolist() if token not in stops]
        n_tokens += len(answer)
        texts.append(tokenizer.decode(answer, skip_special_tokens=True).strip())
    return n_tokens, texts


def static(engine: HfEngine, requests: list[Conversation], sampling: Sampling) -> Answers:
    """One padded batch."""
    completions = engine.generate(requests, sampling)
    return sum(c.usage.completion_tokens for c in completions), [c.text for c in completions]


def live(start: Callable[[], LiveEngine], requests: list[Conversation], sampling: Sampling) -> Answers:
    """All at once, each with its own strength where the engine can."""
    engine = start()
    try:
        answers = [
            engine.submit(LiveRequest(r, sampling, alpha=STRENGTHS[i % 4] if engine.can_alpha else None))
            for i, r in enumerate(requests)
        ]
        for answer in answers:
            for _ in answer:
                pass
        completions = [answer.completion for answer in answers]
    finally:
        if isinstance(engine, LiveHf):
            engine.close()
    return sum(c.usage.completion_tokens for c in completions), [c.text.strip() for c in completions]


def _cap(model: Any) -> Cap:
    """Seven blocks along random directions: what it costs depends on neither directions nor thresholds."""
    first = int(0.7 * len(decoder_blocks(model)))
    layers = tuple(range(first, min(first + 7, len(decoder_blocks(model)))))
    vectors = torch.randn(len(layers), hidden_size(model), generator=torch.Generator().manual_seed(0))
    directions = dict(zip(layers, vectors / vectors.norm(dim=-1, keepdim=True), strict=True))
    return Cap(CapSpec("", "mlp", layers, dict.fromkeys(layers, 0.0), 0.5), directions)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=BUILTIN)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--note", default="", help="what else ran on the machine, for the table")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
