"""QLoRA fine-tuning with peft and trl: LoRA adapters on a 4-bit base, loss on the assistant's tokens only.

QLoRA: Dettmers et al. 2023, arXiv 2305.14314. Resumes from the newest whole checkpoint in the output folder.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from karma_electric.core.artifact import read_json, write_json
from karma_electric.core.errors import InputError
from karma_electric.core.extras import require
from karma_electric.core.progress import Progress, Silent
from karma_electric.core.recipe import TrainSection
from karma_electric.models.loading import (
    import_quietly,
    load_tokenizer,
    pick_device,
    pick_dtype,
    quiet_transformers,
)
from karma_electric.models.processes import ALONE, Processes
from karma_electric.train.distributed import (
    Task,
    Team,
    find_adapters_in_fsdp,
    save_adapter,
    sharded,
    shared_section,
)
from karma_electric.train.last_good import FOLDER, checkpoint_steps, divergence, keep_last_good
from karma_electric.train.tokenize import read_split, tokenize_split
from karma_electric.train.trainer import Data, adapted_model, build_trainer, labelled_only
from karma_electric.train.trajectory import FILE, Diverged, Trajectory, plot_trajectory, read_trajectory

SUMMARY = "training.json"
_CHECKPOINTS = "checkpoints"
_CLOCK = "clock.json"
_NO_MEMORY = ("DefaultCPUAllocator", "out of memory", "_ALLOC_FAILED", "Cannot allocate memory")


def train_adapter(
    base: Path,
    release: Path,
    section: TrainSection,
    out: Path,
    *,
    dtype: str = "auto",
    report_to: Sequence[str] = (),
    name: str | None = None,
    team: Team | None = None,
    progress: Progress | None = None,
    diverged: Path | None = None,
) -> dict[str, Any]:
    """Train a LoRA adapter; writes adapter, trajectory.jsonl, loss.png and training.json to `out`.

    Args:
        base: folder of the base model.
        release: folder with train.jsonl and validation.jsonl.
        section: hyper-parameters.
        out: where everything goes; a checkpoint left there by a killed run is continued.
        dtype: arithmetic, `auto`, `bfloat16` or `float32`.
        report_to: trackers that are told every step too: `tensorboard`, `trackio`, `wandb`.
        name: what the trackers call the run.
        team: the processes that train together; the first one writes.
        progress: told about every optimiser step.
        diverged: where the adapter of the last good checkpoint goes if training diverges; `out/diverged` when None.

    Returns:
        The summary that was written to training.json.

    Raises:
        GateError: training diverged. DataError: no example fits. InputError: out of memory, or the examples of a step
            cannot be shared by so many processes.
    """
    if (out / SUMMARY).exists():
        return _tidied(out)
    import torch

    team = team or Team()
    processes = team.processes
    shared = shared_section(section, processes.count)
    team.call(Task(base, release, section, out, dtype))
    processes.together(_import_libraries)
    progress = progress or Silent()
    checkpoint = processes.tell(_newest_checkpoint(out / _CHECKPOINTS) if processes.first else None)
    resume_at = int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else 0
    with _memory_explained(section, out / _CHECKPOINTS):
        trainer, data = processes.together(
            lambda: new_trainer(
                base,
                release,
                section,
                out / _CHECKPOINTS,
                dtype=dtype,
                callbacks=[_recorder(out, resume_at, progress)] if processes.first else [],
                report_to=report_to if processes.first else (),
                name=name,
                processes=processes,
            )
        )
    trainable, total = trainer.model.get_nb_trainable_parameters()
    if processes.count > 1:
        progress.say(
            f"  {processes.count} processes, each with {shared.gradient_accumulation} x {shared.batch_size} of the "
            f"{section.gradient_accumulation * section.batch_size} examples of a step"
        )
    try:
        with (
            _memory_explained(section, out / _CHECKPOINTS),
            quiet_transformers(),
            contextlib.redirect_stdout(sys.stderr),  # trackers print; that is for --json
        ):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except Diverged as error:  # in the first process: it has the trajectory
        kept = keep_last_good(out / _CHECKPOINTS, out / FILE, error.sound, diverged or out / FOLDER)
        raise divergence(error, section, out / _CHECKPOINTS, kept) from None
    save_adapter(trainer, out, first=processes.first)
    if not processes.first:
        return {}
    (out / "README.md").unlink(missing_ok=True)  # peft's card template; ours is rendered from measurements
    records = read_trajectory(out / FILE)
    summary = {
        **_summary(records, data, section, (trainable, total), _elapsed(out)),
        "compute_dtype": str(pick_dtype(dtype, pick_device())).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "processes": processes.count,
    }
    plot_trajectory(records, out / "loss.png")
    write_json(out / SUMMARY, summary)
    return _tidied(out)


def help_train(team: Team) -> None:
    """In all processes but the first: train along when it does."""
    task = team.wait()
    if task is not None:
        train_adapter(task.base, task.release, task.section, task.out, dtype=task.dtype, team=team)


def new_trainer(
    base: Path,
    release: Path,
    section: TrainSection,
    checkpoints: Path,
    *,
    dtype: str = "auto",
    callbacks: Sequence[Any] = (),
    report_to: Sequence[str] = (),
    name: str | None = None,
    processes: Processes = ALONE,
) -> tuple[Any, Data]:
    """A trainer that has not begun, and the tokenised data it will see; arguments as for `train_adapter`."""
    _import_libraries()
    import torch
    from transformers import set_seed
    from trl import SFTTrainer

    if sharded():
        find_adapters_in_fsdp()
    tokenizer = load_tokenizer(base)
    data = Data(
        tokenize_split(read_split(release / "train.jsonl"), tokenizer, section.max_length),
        tokenize_split(read_split(release / "validation.jsonl"), tokenizer, section.max_length),
    )
    set_seed(section.seed)
    compute = pick_dtype(dtype, pick_device())
    with quiet_transformers():
        model = adapted_model(base, section, compute, device=processes.device)
    with quiet_transformers():
        trainer = build_trainer(
            labelled_only(SFTTrainer, section),
            model,
            tokenizer,
            data,
            section,
            checkpoints,
            compute,
            callbacks=callbacks,
            report_to=report_to,
            name=name,
            processes=processes,
        )
    if processes.index:
        torch.manual_seed(section.seed + processes.index)  # dropout of its own
    return trainer, data


def _import_libraries() -> None:
    """Before anything else imports them, and with their advice."""
    require("train")
    import_quietly("bitsandbytes", "trl")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, numpy, bitsandbytes or the system says that memory ran out, on a GPU or a CPU."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):  # numpy's is a MemoryError
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)


@contextlib.contextmanager
def _memory_explained(section: TrainSection, checkpoints: Path) -> Iterator[None]:
    """Where memory runs out while loading or training: say what stays, and what to lower."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not out_of_memory(error):
            raise
        there = checkpoint_steps(checkpoints)
        again = (
            f"With more memory free, the same command goes on from step {there[-1]}; a changed key begins anew."
            if there
            else "No checkpoint had been saved yet."
        )
        packed = "" if section.quantisation == "nf4" else 'set train.quantisation = "nf4", '
        raise InputError(
            f"Training ran out of memory. {again}",
            f"Lower train.batch_size from {section.batch_size} (and raise train.gradient_accumulation by the same "
            f"factor), lower train.max_length, {packed}or set train.gradient_checkpointing = true; if the base alone "
            "does not fit, take a smaller one. karma train RECIPE --dry-run estimates each.",
        ) from None


def _tidied(out: Path) -> dict[str, Any]:
    """Remove what only a continuation needs; the summary is there already, so a kill in here costs nothing."""
    shutil.rmtree(out / _CHECKPOINTS, ignore_errors=True)
    (out / _CLOCK).unlink(missing_ok=True)
    summary: dict[str, Any] = read_json(out / SUMMARY)
    return summary


def _recorder(out: Path, resume_at: int, progress: Progress) -> Any:
    """A trainer callback that writes the trajectory and reports progress."""
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.trajectory = Trajectory(out / FILE, resume_at=resume_at)
            self.validated = {r["step"] for r in read_trajectory(out / FILE) if r["split"] == "validation"}
            self.seconds_before = _elapsed(out) if resume_at else 0.0
            self.started = time.monotonic()

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
        ) -> None:
            logs = logs or {}
            if "loss" in logs:
                split, prefix = "train", ""
            elif "eval_loss" in logs:
                split, prefix = "validation", "eval_"
            else:
                return
            if split == "validation":
                # a resumed run begins with a validation of its own: kept only where the run itself would have one
                planned = float(state.epoch or 0).is_integer() or state.global_step == state.max_steps
                if not planned or state.global_step in self.validated:
                    return
                self.validated.add(state.global_step)
            record = {
                "step": state.global_step,
                "split": split,
                "loss": float(logs[f"{prefix}loss"]),
                "accuracy": float(logs[f"{prefix}mean_token_accuracy"]),
            }
            if split == "train":
                record |= {
                    "learning_rate": float(logs["learning_rate"]),
                    "grad_norm": float(logs["grad_norm"]),
                }
                progress.update(state.global_step, state.max_steps, f"steps, loss {record['loss']:.3f}")
            self.trajectory.append(record)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._write_clock()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._write_clock()

        def _write_clock(self) -> None:
            write_json(out / _CLOCK, {"seconds": self.seconds_before + time.monotonic() - self.started})

    return Recorder()


def _elapsed(out: Path) -> float:
    """Training seconds up to the last checkpoint or the end, over all attempts."""
    return float(read_json(out / _CLOCK)["seconds"]) if (out / _CLOCK).exists() else 0.0


def _newest_checkpoint(folder: Path) -> Path | None:
    """The last whole checkpoint; half-written ones are removed (trainer_state.json is written last)."""
    if not folder.is_dir():
        return None
    whole = []
    for candidate in folder.glob("checkpoint-*"):
        try:
            state = read_json(candidate / "trainer_state.json")
        except Exception:  # torn by a kill: whatever is wrong with it, it cannot be continued
            shutil.rmtree(candidate)
            continue
        whole.append((int(state["global_step"]), candidate))
    return max(whole)[1] if whole else None


def _summary(
    records: list[dict[str, Any]], data: Data, section: TrainSection, parameters: tuple[int, int], seconds: float
) -> dict[str, Any]:
    train = [r for r in records if r["split"] == "train"]
    validation = [r for r in records if r["split"] == "validation"]
    last = train[-max(1, len(train) // 10) :]
    trainable, total = parameters
    return {
        "steps": train[-1]["step"],
        "epochs": section.epochs,
        "final_loss": train[-1]["loss"],
        "loss_last_tenth": sum(r["loss"] for r in last) / len(last),
        "mean_loss": sum(r["loss"] for r in train) / len(train),
        "best_step_loss": min(r["loss"] for r in train),
        "accuracy_last_tenth": sum(r["accuracy"] for r in last) / len(last),
        "validation_loss_before": validation[0]["loss"],
        "validation_loss": validation[-1]["loss"],
        "validation_accuracy": validation[-1]["accuracy"],
        "tokens": data.train.tokens,
        "learned_tokens": data.train.learned_tokens,
        "examples": len(data.train.examples),
        "cut": data.train.cut + data.validation.cut,
        "dropped": data.train.dropped + data.validation.dropped,
        "trainable_parameters": trainable,
        "parameters": total,
        "quantisation": section.quantisation,
        "seconds": round(seconds, 1),
    }
