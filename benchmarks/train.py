"""Training: a plain TRL script of the recipe against `karma train`, from the same release, seeds and effective batch.

Both train in processes of their own and take turns, a step at a time, so that whatever else the machine does falls on
both. The plain script is what the documentation of trl and peft shows for QLoRA: `SFTTrainer` on the messages, loss on
the assistant's tokens. Prints tokens/s (padding not counted), peak memory (above what the imports take; of a GPU, what
torch had taken of it), and the loss per learned token of the validation split at the end, by one function for both.

    python benchmarks/train.py [RECIPE] [--steps 0] [--set KEY=VALUE] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from karma_electric.core.artifact import code_version, hardware, write_json
from karma_electric.core.extras import version_of
from karma_electric.core.recipe import Recipe, load_recipe
from karma_electric.core.resources import find
from karma_electric.data.release import write_release
from karma_electric.models.loading import import_quietly, load_tokenizer, pick_device, pick_dtype, quiet_transformers
from karma_electric.models.refs import resolve

SIDES = ("plain", "karma")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="demo.toml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe")
    parser.add_argument("--steps", type=int, default=0, help="stop after so many steps; 0: the whole run")
    parser.add_argument("--warmup", type=int, default=2, help="steps left out of the speed")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    recipe = load_recipe(asked.recipe, asked.set)
    if asked.side:
        one_side(asked.side, recipe, asked.folder, asked.steps)
        return
    with tempfile.TemporaryDirectory() as folder:
        source = find("corpus", recipe.release.corpus)
        (Path(folder) / "release").mkdir()
        write_release(recipe.release, source, recipe.persona.system_prompt, Path(folder) / "release")
        sides = {side: Child(side, Path(folder)) for side in SIDES}
        found = in_turns(sides, asked.warmup)
    found |= {"recipe": recipe.name, "threads": torch.get_num_threads(), "hardware": hardware()}
    packages = {name: version_of(name) for name in ("torch", "transformers", "peft", "trl", "bitsandbytes")}
    found |= {"packages": packages, "code": code_version()}
    report(found)
    if asked.out:
        write_json(asked.out, found)


class Child:
    """One side in a process of its own, which does a step when it is told to."""

    def __init__(self, side: str, folder: Path) -> None:
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folder", str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.hear()  # ready

    def hear(self) -> dict[str, Any]:
        """The next thing it says.

        Raises:
            SystemExit: it ended instead.
        """
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("@"):
                said: dict[str, Any] = json.loads(line[1:])
                return said
        raise SystemExit(f"error: a side ended with code {self._process.wait()}; what it printed is above")

    def go(self) -> dict[str, Any]:
        """Let it do one step, and wait for what it reports."""
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self.hear()


def in_turns(sides: dict[str, Child], warmup: int) -> dict[str, Any]:
    """Step by step, first one side and then the other; the order swaps every time."""
    steps: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    ends: dict[str, dict[str, Any]] = {}
    turn = 0
    while len(ends) < len(sides):
        for side in sorted(sides, reverse=bool(turn % 2)):
            if side in ends:
                continue
            said = sides[side].go()
            if "peak_bytes" in said:
                ends[side] = said
            else:
                steps[side].append(said)
        turn += 1
        if steps["karma"] and steps["plain"]:
            last = {side: taken[-1] for side, taken in steps.items()}
            print(
                f"  step {turn}: "
                + ", ".join(
                    f"{s} {v['tokens'] / v['seconds']:.0f} tokens/s, loss {v['loss']:.3f}" for s, v in last.items()
                ),
                file=sys.stderr,
                flush=True,
            )
    found: dict[str, Any] = {"steps": {side: len(taken) for side, taken in steps.items()}, "sides": {}}
    for side, taken in steps.items():
        timed = taken[warmup:]
        found["sides"][side] = {
            "tokens_per_second": sum(s["tokens"] for s in timed) / sum(s["seconds"] for s in timed),
            "padded_tokens_per_second": sum(s["padded"] for s in timed) / sum(s["seconds"] for s in timed),
            "padding": 1 - sum(s["tokens"] for s in timed) / sum(s["padded"] for s in timed),
            "loss_last_tenth": statistics.mean(s["loss"] for s in taken[-max(1, len(taken) // 10) :]),
            "mean_loss": statistics.mean(s["loss"] for s in taken),
            **ends[side],
        }
    plain, ours = found["sides"]["plain"], found["sides"]["karma"]
    found["ratio"] = ours["tokens_per_second"] / plain["tokens_per_second"]
    found["validation_loss_difference"] = ours["validation_loss"] / plain["validation_loss"] - 1
    found["memory_ratio"] = ours["peak_bytes"] / plain["peak_bytes"]
    return found


def report(found: dict[str, Any]) -> None:
    for side, row in found["sides"].items():
        print(
            f"{side:<6} {row['tokens_per_second']:7.1f} tokens/s, padding {row['padding']:.0%}, peak "
            f"{row['peak_bytes'] / 1e9:.2f} GB above {row['imports_bytes'] / 1e9:.2f} GB of imports, loss "
            f"{row['mean_loss']:.4f} (mean), validation {row['validation_loss']:.4f}"
        )
    print(f"ratio of tokens/s        {found['ratio']:.2f}")
    print(f"ratio of peak memory     {found['memory_ratio']:.2f}")
    print(f"validation loss          {found['validation_loss_difference']:+.2%}")


def one_side(side: str, recipe: Recipe, folder: Path, steps: int) -> None:
    """Train one side; a step waits for a line on standard input, and everything is reported on standard output."""
    import_quietly("bitsandbytes", "trl", "peft", "transformers.models.llama.modeling_llama")
    from transformers import set_seed

    peak = Peak()
    base = resolve(recipe.model.base, recipe.model.revision).path
    set_seed(recipe.train.seed)
    with quiet_transformers():
        trainer = (plain_trainer if side == "plain" else our_trainer)(base, recipe, folder)
        trainer.add_callback(turns_callback(trainer, steps))
        say({"ready": side})
        trainer.train()
        heard()
        peak_bytes = peak.stop()
        loss = validation_loss(trainer.model, base, recipe, folder)
    say({"validation_loss": loss, "peak_bytes": peak_bytes, "imports_bytes": peak.before})


def validation_loss(model: Any, base: Path, recipe: Recipe, folder: Path) -> float:
    """Nats per learned token, one conversation at a time: trainers differ in how they average batches."""
    from karma_electric.train.tokenize import IGNORED, read_split, tokenize_split

    conversations = read_split(folder / "release" / "validation.jsonl")
    split = tokenize_split(conversations, load_tokenizer(base), recipe.train.max_length)
    total, learned = 0.0, 0
    model.eval()
    with torch.no_grad():
        for example in split.examples:
            ids, labels = (torch.tensor([row], device=model.device) for row in (example.input_ids, example.labels))
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum"))
            learned += int((labels[0, 1:] != IGNORED).sum())
    return total / learned


def plain_trainer(base: Path, recipe: Recipe, folder: Path) -> Any:
    """QLoRA as the documentation of trl and peft has it, with the recipe's numbers."""
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    from karma_electric.models.chat_template import training_template

    section = recipe.train
    compute = pick_dtype(recipe.model.dtype, pick_device())
    tokenizer = load_tokenizer(base)  # its pad token is not the end of a turn
    tokenizer.chat_template = training_template(tokenizer)
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=compute, quantization_config=quantisation if section.quantisation == "nf4" else None
    )
    files = {name: str(folder / "release" / f"{name}.jsonl") for name in ("train", "validation")}
    data = load_dataset("json", data_files=files, cache_dir=str(folder / "cache")).select_columns(["messages"])
    return SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder / "plain"),
            num_train_epochs=section.epochs,
            per_device_train_batch_size=section.batch_size,
            per_device_eval_batch_size=section.batch_size,
            gradient_accumulation_steps=section.gradient_accumulation,
            learning_rate=section.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=section.warmup_fraction,
            weight_decay=section.weight_decay,
            max_grad_norm=section.max_grad_norm,
            optim="paged_adamw_8bit" if pick_device() == "cuda" else "adamw_torch",
            max_length=section.max_length,
            assistant_only_loss=True,
            activation_checkpointing=section.gradient_checkpointing,
            bf16=compute.itemsize == 2,
            use_cpu=pick_device() == "cpu",
            logging_steps=1,
            save_strategy="no",
            seed=section.seed,
            data_seed=section.seed,
            report_to=[],
            disable_tqdm=True,
            prediction_loss_only=True,
        ),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=section.rank,
            lora_alpha=section.alpha,
            lora_dropout=section.dropout,
            target_modules=section.target_modules,
            task_type="CAUSAL_LM",
        ),
    )


def our_trainer(base: Path, recipe: Recipe, folder: Path) -> Any:
    """What `karma train` builds, without its checkpoints and validations on the way."""
    from karma_electric.train import qlora

    release = folder / "release"
    trainer, _ = qlora.new_trainer(base, release, recipe.train, folder / "karma", dtype=recipe.model.dtype)
    trainer.args.save_strategy = trainer.args.eval_strategy = "no"
    trainer.args.eval_on_start = False
    return trainer


def turns_callback(trainer: Any, steps: int) -> Any:
    """Waits before each step, and says afterwards how long it took, over how many tokens."""
    from transformers import PrinterCallback, TrainerCallback

    trainer.remove_callback(PrinterCallback)

    class Turns(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            heard()
            self.started, counted[:] = time.perf_counter(), [0, 0]

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # what was only queued is not done
            self.seconds = time.perf_counter() - self.started
            if steps and state.global_step >= steps:
                control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" in logs:
                say({"seconds": self.seconds, "tokens": counted[0], "padded": counted[1], "loss": logs["loss"]})

    counted = [0, 0]
    step = trainer.training_step

    def training_step(model: Any, inputs: dict[str, torch.Tensor], *rest: Any) -> Any:
        mask = inputs["attention_mask"]
        counted[0] += int(mask.sum())
        counted[1] += mask.numel()
        return step(model, inputs, *rest)

    trainer.training_step = training_step
    return Turns()


class Peak:
    """Highest memory: of a GPU what torch allocated, else what resides above the start, sampled every 20 ms."""

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self.before = self._highest = self._process.memory_info().rss
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(0.02):
            self._highest = max(self._highest, self._process.memory_info().rss)

    def stop(self) -> int:
        """Bytes above the start, at the highest."""
        self._stopped.set()
        self._thread.join()
        if torch.cuda.is_available():
            return int(torch.cuda.max_memory_allocated())
        return int(self._highest - self.before)


def heard() -> None:
    if not sys.stdin.readline():
        raise SystemExit(1)  # the other side, or whoever asked, is gone


def say(what: dict[str, Any]) -> None:
    print("@" + json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
