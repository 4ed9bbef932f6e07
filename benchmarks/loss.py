"""Forward and backward of one training batch: trl's own loss against loss on the labelled positions only.

The same adapter, batch and arithmetic on both sides, alternating in one process. Prints tokens/s of each, the ratio,
and the difference of the losses (which should be rounding).

    python benchmarks/loss.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from trl import SFTTrainer

from karma_electric.core.recipe import load_recipe
from karma_electric.core.resources import find
from karma_electric.data.release import write_release
from karma_electric.models.loading import load_tokenizer, pick_device, pick_dtype, quiet_transformers
from karma_electric.models.refs import resolve
from karma_electric.train import trainer
from karma_electric.train.tokenize import read_split, tokenize_split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    recipe = load_recipe("demo.toml")
    base = resolve(recipe.model.base).path
    compute = pick_dtype("auto", pick_device())
    tokenizer = load_tokenizer(base)
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        write_release(recipe.release, find("corpus", "corpus"), recipe.persona.system_prompt, Path(folder))
        split = tokenize_split(read_split(Path(folder) / "train.jsonl"), tokenizer, recipe.train.max_length)
        data = trainer.Data(split, split)
        sides = {}
        for name, wrap in (("trl", lambda plain: plain), ("labelled only", trainer.labelled_only)):
            torch.manual_seed(0)
            model = trainer.adapted_model(base, recipe.train, compute)
            sides[name] = trainer.build_trainer(
                wrap(SFTTrainer), model, tokenizer, data, recipe.train, Path(folder) / name, compute
            )
        rows = [{"input_ids": e.input_ids, "labels": e.labels} for e in split.examples[: recipe.train.batch_size]]
        tokens = sum(len(row["input_ids"]) for row in rows)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        losses = {}
        for side in sides.values():
            side.current_gradient_accumulation_steps = 1  # set by train(), which is not called here
        for _ in range(repeats + 1):  # the first round warms up
            for name, side in sides.items():
                torch.manual_seed(1)  # the same dropout
                side.model.train()
                batch = side.data_collator(rows)
                started = time.perf_counter()
                loss = side.training_step(side.model, batch)
                seconds[name].append(time.perf_counter() - started)
                side.model.zero_grad(set_to_none=True)
                losses[name] = float(loss)
    speed = {name: tokens / statistics.median(times[1:]) for name, times in seconds.items()}
    for name, value in speed.items():
        print(f"{name:<14} {value:7.1f} tokens/s (median of {repeats}), loss {losses[name]:.5f}")
    print(f"ratio          {speed['labelled only'] / speed['trl']:7.2f}")
    print(f"loss difference {abs(losses['labelled only'] / losses['trl'] - 1):.2e} relative")


if __name__ == "__main__":
    main()
