"""Asking a suite: `karma redteam run` against the original's loop, on the same model, prompts and token limit.

The original's loop, written here from its description and from nothing else: one conversation at a time, one turn after
the other, transformers' own `generate` on the whole history so far. Ours is the package's runner and engine with its
files, judging included. Both sample as the recipes do (or are greedy, with one seed), stop at the same tokens and
after as many, so that what is compared is speed; the tokens that each has written are printed. With several seeds both
answer every scenario under each; a scenario under a seed is counted as one. Loading the model is not counted.

Both run in one process, in turns, so that both see the same machine: ours is stopped after every batch, its clock with
it, and the loop does scenarios until it has answered as many turns.

    python benchmarks/redteam.py [--scenarios 12] [--seeds 5] [--batch 64] [--out results/benchmarks/redteam.json]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from karma_electric.arm_stages import remember_bytes
from karma_electric.core.artifact import code_version, hardware, write_json
from karma_electric.core.extras import version_of
from karma_electric.core.jsonl import read_jsonl
from karma_electric.core.progress import Silent
from karma_electric.core.recipe import load_recipe
from karma_electric.core.resources import find
from karma_electric.models.engines.hf import HfEngine
from karma_electric.models.engines.protocol import Sampling
from karma_electric.models.loading import end_of_turn_ids, load_model, load_tokenizer
from karma_electric.models.refs import resolve
from karma_electric.redteam.runner import COMPLETIONS
from karma_electric.redteam.scenario import Scenario, load_suite
from karma_electric.redteam.seeds import run_seeds
from karma_electric.redteam.suite_file import spread

TARGET_RATIO = 8.0


class Original:
    """The original's loop. Nothing of the package is used here but the list of stop tokens."""

    def __init__(
        self, model: Any, tokenizer: Any, system: str, sampling: Sampling, suite: Sequence[Scenario], seeds: int
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.system, self.sampling = system, sampling
        self.stops = end_of_turn_ids(model, tokenizer)
        self.waiting = [(scenario, seed) for seed in range(seeds) for scenario in suite]
        self.texts: dict[tuple[str, int, int], str] = {}
        self.tokens = 0
        self.seconds = 0.0

    def until(self, turns: int) -> None:
        """Do scenarios until so many turns are answered."""
        while self.waiting and len(self.texts) < turns:
            self.scenario(*self.waiting.pop(0))

    def scenario(self, scenario: Scenario, seed: int) -> None:
        """One conversation, turn by turn."""
        started = time.perf_counter()
        torch.manual_seed(seed)
        sampled = self.sampling.temperature > 0
        messages = [{"role": "system", "content": self.system}]
        for number, turn in enumerate(scenario.turns, 1):
            messages.append({"role": "user", "content": turn})
            inputs = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).to(self.model.device)
            with torch.no_grad():
                output = self.model.generate(
                    **inputs,
                    max_new_tokens=self.sampling.max_new_tokens,
                    do_sample=sampled,
                    temperature=self.sampling.temperature if sampled else None,
                    top_p=self.sampling.top_p if sampled else None,
                    top_k=0 if sampled else None,
                    eos_token_id=self.stops,
                    pad_token_id=self.tokenizer.pad_token_id,
                )
            new = output[0, inputs["input_ids"].shape[1] :].tolist()
            self.tokens += sum(token not in self.stops for token in new)
            text = self.tokenizer.decode(new, skip_special_tokens=True).strip()
            self.texts[scenario.id, number, seed] = text
            messages.append({"role": "assistant", "content": text})
        self.seconds += time.perf_counter() - started


class Turns(Silent):
    """Stops our clock after every batch, and lets the other side answer as many turns."""

    def __init__(self, other: Callable[[int], None]) -> None:
        self.other = other
        self.theirs = 0.0
        self.answered = 0
        self.started = time.perf_counter()

    def update(self, done: int, total: int, note: str = "") -> None:
        if done == self.answered:
            return
        self.answered = done
        began = time.perf_counter()
        self.other(done)
        self.theirs += time.perf_counter() - began
        ours = time.perf_counter() - self.started - self.theirs
        print(f"  {done:>4} of {total} turns: {self.theirs:7.1f} s one by one, {ours:7.1f} s ours", flush=True)

    def say(self, text: str) -> None:
        print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin:smollm2-135m", help="a model folder or hub id")
    parser.add_argument("--suite", default="standard-58.jsonl", help="scenarios")
    parser.add_argument("--scenarios", type=int, help="only so many of them, spread over the suite")
    parser.add_argument("--seeds", type=int, default=5, help="answers per scenario; 1 is greedy")
    parser.add_argument("--max-new-tokens", type=int, default=96, help="longest answer")
    parser.add_argument("--batch", type=int, default=64, help="conversations that ours answers together")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch, for both sides")
    parser.add_argument("--dtype", default="auto", help="auto, bfloat16 or float32, for both sides")
    parser.add_argument("--device", help="cpu or cuda, for both sides")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    recipe = load_recipe("demo.toml")
    base = resolve(asked.model)
    model, tokenizer = load_model(base.path, dtype=asked.dtype, device=asked.device), load_tokenizer(base.path)
    suite = spread(load_suite(find("suites", asked.suite)), asked.scenarios)
    system = recipe.persona.system_prompt
    sampling = Sampling(
        temperature=0.7 if asked.seeds > 1 else 0.0,
        top_p=0.9 if asked.seeds > 1 else 1.0,
        max_new_tokens=asked.max_new_tokens,
    )
    original = Original(model, tokenizer, system, sampling, suite, asked.seeds)
    warm = Original(model, tokenizer, system, replace(sampling, max_new_tokens=2), suite, 1)
    warm.scenario(suite[0], 0)  # the first pass of a process is slower
    with tempfile.TemporaryDirectory() as folder:
        turns = Turns(original.until)
        run_seeds(
            HfEngine(model, tokenizer, remember_bytes=remember_bytes(model)),
            suite,
            Path(folder),
            arm="ours",
            system_prompt=system,
            sampling=sampling,
            seeds=asked.seeds,
            batch_size=asked.batch,
            progress=turns,
        )
        ours = time.perf_counter() - turns.started - turns.theirs
        rows = [row for path in Path(folder).rglob(COMPLETIONS) for _, row in read_jsonl(path)]
    assert not original.waiting
    assert len(rows) == len(original.texts)
    answered, asked_scenarios = len(original.texts), len(suite) * asked.seeds
    tokens = sum(row["completion_tokens"] for row in rows)
    figures: dict[str, Any] = {
        "suite": asked.suite,
        "scenarios": len(suite),
        "seeds": asked.seeds,
        "turns": answered,
        "max_new_tokens": asked.max_new_tokens,
        "batch": asked.batch,
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": asked.threads,
        "seconds_one_by_one": round(original.seconds, 1),
        "seconds_ours": round(ours, 1),
        "scenarios_per_minute_one_by_one": round(60 * asked_scenarios / original.seconds, 2),
        "scenarios_per_minute_ours": round(60 * asked_scenarios / ours, 2),
        "ratio": round(original.seconds / ours, 2),
        "tokens_one_by_one": original.tokens,
        "tokens_ours": tokens,
        "ratio_per_token": round(original.seconds / original.tokens / (ours / tokens), 2),
    }
    for name, seconds, written in (("one by one", original.seconds, original.tokens), ("ours", ours, tokens)):
        rate = 60 * asked_scenarios / seconds
        print(
            f"{name:<11}{seconds:8.1f} s {rate:8.2f} scenarios/min {written:7} tokens {written / seconds:7.1f} tokens/s"
        )
    print(f"ratio      {figures['ratio']:8.2f}  (target: at least {TARGET_RATIO:g})")
    print(f"per token  {figures['ratio_per_token']:8.2f}")
    if asked.out:
        packages = {name: version_of(name) for name in ("torch", "transformers")}
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(asked.out, {**figures, "hardware": hardware(), "packages": packages, "code": code_version()})
    if figures["ratio"] < TARGET_RATIO:
        raise SystemExit("the target is missed")


if __name__ == "__main__":
    main()
