"""Builds the pieces of a training run: the adapted model, and a trl trainer whose loss skips what is not learned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.errors import InputError
from karma_electric.core.recipe import TrainSection
from karma_electric.models.loading import load_model, nf4_config, pick_device
from karma_electric.train.tokenize import IGNORED, TokenizedSplit

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Data:
    """Both splits, tokenised."""

    train: TokenizedSplit
    validation: TokenizedSplit


def adapted_model(base: Path, section: TrainSection, compute: torch.dtype) -> PeftModel:
    """The base model, in NF4 if the recipe says so, with fresh LoRA adapters (seed them beforehand).

    Raises:
        InputError: the model has no such linear layers, or is of a shape at which NF4 crashes on a CPU.
        MissingError: NF4 needs bitsandbytes, which is not installed.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    quantisation = nf4_config(base, compute) if section.quantisation == "nf4" else None
    model = load_model(base, dtype=compute, quantisation=quantisation)
    if quantisation is not None and section.gradient_checkpointing:
        model = prepare_model_for_kbit_training(model)
    require_targets([name for name, _ in model.named_modules()], section.target_modules)
    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=section.target_modules,
        bias="none",
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    if section.fused and pick_device() == "cpu":
        from karma_electric.train.fused import fuse_projections

        fuse_projections(adapted)
    return adapted


def require_targets(modules: Iterable[str], targets: Sequence[str]) -> None:
    """Raise `InputError` unless every target is the last part of some module's dotted name."""
    names = {name.rsplit(".", 1)[-1] for name in modules}
    unknown = [target for target in targets if target not in names]
    if unknown:
        linear = sorted(n for n in names if n.endswith("proj") or n.startswith("fc"))
        raise InputError(f"train.target_modules: the model has no {unknown[0]!r}.", f"It has {', '.join(linear)}.")


def build_trainer(
    trainer_class: Any,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Data,
    section: TrainSection,
    checkpoints: Path,
    compute: torch.dtype,
    *,
    callbacks: Sequence[Any] = (),
) -> Any:
    """A trl trainer with the recipe's hyper-parameters, on tokenised data, silent but for `callbacks`."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig

    def dataset(split: TokenizedSplit) -> Any:
        return Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels} for e in split.examples])

    device = pick_device()
    arguments = SFTConfig(
        output_dir=str(checkpoints),
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
        logging_nan_inf_filter=False,  # it would log a diverged loss as 0
        save_steps=section.save_steps,
        save_total_limit=2,
        eval_strategy="epoch",
        eval_on_start=True,
        prediction_loss_only=True,  # validation logits are not kept
        seed=section.seed,
        data_seed=section.seed,
        report_to=[],
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=False,
    )
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=dataset(data.train),
        eval_dataset=dataset(data.validation),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)  # progress is reported by callbacks of ours
    return trainer


def labelled_only(trainer_class: Any, section: TrainSection) -> Any:
    """A trainer whose vocabulary projection and loss cover the labelled positions only, with batches of like length.

    The same loss as trl's `nll`; prompt and padding positions, most of a batch, are never projected.
    """
    import torch

    from karma_electric.train.batches import LikeLengths
    from karma_electric.train.head_loss import head_loss

    def _loss(head: Any, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss and correct tokens; in chunks where the head is a plain, frozen layer."""
        if type(head) is torch.nn.Linear and head.bias is None and not head.weight.requires_grad:
            return head_loss(hidden.to(head.weight.dtype), head.weight, targets)
        logits = head(hidden).float()
        loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        return loss, (logits.argmax(-1) == targets).sum()

    class LabelledOnly(trainer_class):  # type: ignore[misc]
        def compute_loss(
            self,
            model: Any,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            causal_lm = self.accelerator.unwrap_model(model).get_base_model()
            with self.compute_loss_context_manager():
                # no mask: padding is on the right, where a causal model's other positions do not see it, and without
                # one attention computes only the half that is not masked anyway
                hidden = causal_lm.get_decoder()(input_ids=inputs["input_ids"], use_cache=False).last_hidden_state
                targets = inputs["labels"][:, 1:]
                learned = targets != IGNORED
                total, correct = _loss(causal_lm.get_output_embeddings(), hidden[:, :-1][learned], targets[learned])
            targets = targets[learned]
            count = targets.numel() if num_items_in_batch is None else num_items_in_batch
            loss = total / count
            mode = "train" if self.model.training else "eval"
            self._metrics[mode]["mean_token_accuracy"].append(correct.item() / max(1, targets.numel()))
            return (loss, {}) if return_outputs else loss

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            if not section.group_by_length:
                return super()._get_train_sampler(train_dataset)
            data = self.train_dataset if train_dataset is None else train_dataset
            lengths = [len(ids) for ids in data["input_ids"]]
            step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            return LikeLengths(lengths, step, self.args.data_seed)

        def evaluate(self, *arguments: Any, **keywords: Any) -> Any:
            """Leave the random state as it was: a run resumed at the end of an epoch skips that validation."""
            with torch.random.fork_rng():
                return super().evaluate(*arguments, **keywords)

    return LabelledOnly
