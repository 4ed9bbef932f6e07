"""QLoRA fine-tuning with peft and trl: LoRA adapters on a 4-bit base, loss on the assistant's tokens only.

QLoRA: Dettmers et al. 2023, arXiv 2305.14314. Resumes from the newest whole checkpoint in the output folder.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.artifact import read_json, write_json
from karma_electric.core.errors import InputError
from karma_electric.core.extras import require
from karma_electric.core.progress import Progress, Silent
from karma_electric.core.recipe import TrainSection
from karma_electric.models.loading import (
    load_model,
    load_tokenizer,
    pick_device,
    pick_dtype,
    quiet_transformers,
)
from karma_electric.train.tokenize import IGNORED, TokenizedSplit, read_split, tokenize_split
from karma_electric.train.trajectory import FILE, Trajectory, plot_trajectory, read_trajectory

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

SUMMARY = "training.json"
_CHECKPOINTS = "checkpoints"
_CLOCK = "clock.json"


@dataclass(frozen=True)
class _Data:
    train: TokenizedSplit
    validation: TokenizedSplit


def train_adapter(
    base: Path,
    release: Path,
    section: TrainSection,
    out: Path,
    *,
    dtype: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a LoRA adapter; writes adapter, trajectory.jsonl, loss.png and training.json to `out`.

    Args:
        base: folder of the base model.
        release: folder with train.jsonl and validation.jsonl.
        section: hyper-parameters.
        out: where everything goes; a checkpoint left there by a killed run is continued.
        dtype: arithmetic, `auto`, `bfloat16` or `float32`.
        progress: told about every optimiser step.

    Returns:
        The summary that was written to training.json.

    Raises:
        GateError: the loss diverged. DataError: no example fits. InputError: out of memory.
    """
    require("train")
    import torch
    from transformers import set_seed

    progress = progress or Silent()
    tokenizer = load_tokenizer(base)
    data = _Data(
        tokenize_split(read_split(release / "train.jsonl"), tokenizer, section.max_length),
        tokenize_split(read_split(release / "validation.jsonl"), tokenizer, section.max_length),
    )
    set_seed(section.seed)
    compute = pick_dtype(dtype, pick_device())
    with quiet_transformers():
        model = _adapted_model(base, section, compute)
    checkpoint = _newest_checkpoint(out / _CHECKPOINTS)
    trainer = _trainer(model, tokenizer, data, section, out, checkpoint, compute, progress)
    try:
        with quiet_transformers():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.OutOfMemoryError:
        raise InputError(
            "Training ran out of memory.",
            "Lower train.batch_size (and raise train.gradient_accumulation), "
            "or set train.gradient_checkpointing = true.",
        ) from None
    trainer.model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)  # peft's card template; ours is rendered from measurements
    records = read_trajectory(out / FILE)
    summary = _summary(records, data, section, trainer.model, _elapsed(out))
    plot_trajectory(records, out / "loss.png")
    shutil.rmtree(out / _CHECKPOINTS)
    (out / _CLOCK).unlink(missing_ok=True)
    write_json(out / SUMMARY, summary)
    return summary


def _adapted_model(base: Path, section: TrainSection, compute: torch.dtype) -> PeftModel:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    quantisation = None
    if section.quantisation == "nf4":
        quantisation = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    model = load_model(base, dtype=compute, quantisation=quantisation)
    if quantisation is not None and section.gradient_checkpointing:
        model = prepare_model_for_kbit_training(model)
    _check_targets(model, section.target_modules)
    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=section.target_modules,
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def _check_targets(model: Any, targets: list[str]) -> None:
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    unknown = [target for target in targets if target not in names]
    if unknown:
        linear = sorted(n for n in names if n.endswith("proj") or n.startswith("fc"))
        raise InputError(f"train.target_modules: the model has no {unknown[0]!r}.", f"It has {', '.join(linear)}.")


def _trainer(
    model: PeftModel,
    tokenizer: Any,
    data: _Data,
    section: TrainSection,
    out: Path,
    checkpoint: Path | None,
    compute: torch.dtype,
    progress: Progress,
) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    def dataset(split: TokenizedSplit) -> Any:
        return Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels} for e in split.examples])

    resume_at = int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else 0
    device = pick_device()
    arguments = SFTConfig(
        output_dir=str(out / _CHECKPOINTS),
        num_train_epochs=section.epochs,
        per_device_train_batch_size=section.batch_size,
        per_device_eval_batch_size=section.batch_size,
        gradient_accumulation_steps=section.gradient_accumulation,
        learning_rate=section.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=section.warmup_fraction,  # below 1 it is a share of all steps
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        optim="paged_adamw_8bit" if device == "cuda" else "adamw_torch",
        max_length=None,  # already cut, at turn boundaries
        gradient_checkpointing=section.gradient_checkpointing,
        bf16=compute.itemsize == 2,
        use_cpu=device == "cpu",
        logging_steps=1,
        save_steps=section.save_steps,
        save_total_limit=2,
        eval_strategy="epoch",
        eval_on_start=True,
        seed=section.seed,
        data_seed=section.seed,
        report_to=[],
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=False,
    )
    trainer = _labelled_only(SFTTrainer)(
        model=model,
        args=arguments,
        train_dataset=dataset(data.train),
        eval_dataset=dataset(data.validation),
        processing_class=tokenizer,
        callbacks=[_recorder(out, resume_at, progress)],
    )
    trainer.remove_callback(PrinterCallback)  # progress is reported by the recorder
    return trainer


def _labelled_only(trainer_class: Any) -> Any:
    """A trainer whose vocabulary projection and loss cover the labelled positions only.

    The same loss as trl's `nll`; prompt and padding positions, most of a batch, are never projected.
    """

    class LabelledOnly(trainer_class):  # type: ignore[misc]
        def compute_loss(
            self,
            model: Any,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            import torch

            causal_lm = self.accelerator.unwrap_model(model).get_base_model()
            with self.compute_loss_context_manager():
                hidden = causal_lm.get_decoder()(
                    input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
                ).last_hidden_state  # [batch, seq, hidden]
                targets = inputs["labels"][:, 1:]
                learned = targets != IGNORED
                logits = causal_lm.get_output_embeddings()(hidden[:, :-1][learned])  # [learned, vocabulary]
            targets = targets[learned]
            loss = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
            loss = loss / (targets.numel() if num_items_in_batch is None else num_items_in_batch)
            mode = "train" if self.model.training else "eval"
            accuracy = (logits.detach().argmax(-1) == targets).float().mean()
            self._metrics[mode]["mean_token_accuracy"].append(accuracy.item())
            return (loss, {"logits": logits.detach()}) if return_outputs else loss

    return LabelledOnly


def _recorder(out: Path, resume_at: int, progress: Progress) -> Any:
    """A trainer callback that writes the trajectory and reports progress."""
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.trajectory = Trajectory(out / FILE, resume_at=resume_at)
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
    records: list[dict[str, Any]], data: _Data, section: TrainSection, model: Any, seconds: float
) -> dict[str, Any]:
    train = [r for r in records if r["split"] == "train"]
    validation = [r for r in records if r["split"] == "validation"]
    last = train[-max(1, len(train) // 10) :]
    trainable, total = model.get_nb_trainable_parameters()
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
