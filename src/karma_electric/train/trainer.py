"""Builds the pieces of a training run: the adapted model, and a trl trainer whose loss skips what is not learned."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.errors import InputError
from karma_electric.core.recipe import TrainSection
from karma_electric.models.loading import load_model, never_repack, nf4_config, pick_device
from karma_electric.models.processes import ALONE, Processes
from karma_electric.train.distributed import load_sharded_adapter, sharded, share, shared_section
from karma_electric.train.tokenize import IGNORED, TokenizedSplit
from karma_electric.train.trajectory import checkpoints_kept

# keys of a configuration whose model changes the logits after the head (Gemma, Cohere, Granite)
_LOGITS_CHANGED = ("final_logit_softcapping", "logit_scale", "logits_scaling")

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Data:
    """Both splits, tokenised."""

    train: TokenizedSplit
    validation: TokenizedSplit


def adapted_model(base: Path, section: TrainSection, compute: torch.dtype, *, device: str | None = None) -> PeftModel:
    """The base model, in NF4 if the recipe says so, with fresh LoRA adapters (seed them beforehand).

    `device` is where it goes, the best there is when None; a model that will be sharded is left where it is loaded.

    Raises:
        InputError: the model has no such linear layers, or is of a shape at which NF4 crashes on a CPU.
        MissingError: NF4 needs bitsandbytes, which is not installed.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    quantisation = nf4_config(base, compute) if section.quantisation == "nf4" else None
    if quantisation is not None and sharded():
        # FSDP and ZeRO-3 cut floating-point tensors only, and all of a block must be of one type
        quantisation.bnb_4bit_quant_storage = compute
    model = load_model(base, dtype=compute, device=device, quantisation=quantisation, place=not sharded())
    if quantisation is not None:
        never_repack(model)
    if quantisation is not None and section.gradient_checkpointing and not sharded():  # it would mix types
        model = prepare_model_for_kbit_training(model)
    require_targets(model, [name for name, _ in model.named_modules()], section.target_modules)
    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=section.target_modules,
        bias="none",
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    if section.fused and pick_device() == "cpu" and not sharded():
        from karma_electric.train.fused import fuse_projections

        fuse_projections(adapted)
    return adapted


def linear_layers(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """Name -> shape [out, in] of the linear layers of a model but its output head; GPT-2's Conv1D is one too."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()  # type: ignore[operator]
    found: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            found[name] = (module.out_features, module.in_features)
        elif isinstance(module, Conv1D):
            found[name] = (module.nf, module.nx)
    return found


def require_targets(model: torch.nn.Module, modules: Iterable[str], targets: Sequence[str]) -> None:
    """Raise `InputError` unless every target is the last part of some module's dotted name; says which could be."""
    from transformers.pytorch_utils import Conv1D

    names = {name.rsplit(".", 1)[-1] for name in modules}
    unknown = [target for target in targets if target not in names]
    if not unknown:
        return
    linear = sorted({name.rsplit(".", 1)[-1] for name in linear_layers(model)})
    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    kind = " (of the kind Conv1D in transformers)" if transposed else ""
    hint = (
        f"It has {', '.join(linear)}{kind}: set train.target_modules to those that get an adapter."
        if linear
        else "It has no linear layers, and nothing else can get an adapter: choose another model.base."
    )
    raise InputError(f"train.target_modules: the model has no {unknown[0]!r}.", hint)


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
    report_to: Sequence[str] = (),
    name: str | None = None,
    processes: Processes = ALONE,
) -> Any:
    """A trl trainer with the recipe's hyper-parameters, on tokenised data, silent but for `callbacks`.

    `report_to` names trackers that are told every step too, under the run's `name`.

    Raises:
        InputError: `processes` cannot share the examples of a step.
    """
    from datasets import Dataset
    from transformers import PrinterCallback

    def dataset(split: TokenizedSplit) -> Any:
        return Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels} for e in split.examples])

    trainer = trainer_class(
        model=model,
        args=training_arguments(section, checkpoints, compute, report_to=report_to, name=name, processes=processes),
        train_dataset=dataset(data.train),
        eval_dataset=dataset(data.validation),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)  # progress is reported by callbacks of ours
    return trainer


def training_arguments(
    section: TrainSection,
    checkpoints: Path,
    compute: torch.dtype,
    *,
    report_to: Sequence[str] = (),
    name: str | None = None,
    processes: Processes = ALONE,
) -> Any:
    """trl's configuration for the recipe's hyper-parameters on the best device there is.

    Raises:
        InputError: `processes` cannot share the examples of a step.
    """
    from trl import SFTConfig

    device = pick_device()
    shared = shared_section(section, processes.count)
    arguments = SFTConfig(
        output_dir=str(checkpoints),
        num_train_epochs=section.epochs,
        per_device_train_batch_size=shared.batch_size,
        per_device_eval_batch_size=shared.batch_size,
        gradient_accumulation_steps=shared.gradient_accumulation,
        learning_rate=section.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=section.warmup_fraction,  # below 1 it is a share of all steps
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        optim="paged_adamw_8bit" if device == "cuda" and not sharded() else "adamw_torch",
        max_length=None,  # already cut, at turn boundaries
        activation_checkpointing=section.gradient_checkpointing,
        bf16=compute.itemsize == 2,
        use_cpu=device == "cpu",
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would log a diverged loss as 0
        save_steps=section.save_steps,
        save_total_limit=checkpoints_kept(section.save_steps),
        eval_strategy="epoch",
        eval_on_start=True,
        prediction_loss_only=True,  # validation logits are not kept
        seed=section.seed,
        data_seed=section.seed,
        report_to=list(report_to),
        run_name=name,
        project="karma-electric",
        trackio_static_space_id=False,  # nothing is published
        ddp_find_unused_parameters=False,  # every adapter is used in every step
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process takes one GPU: more would enlarge the batch unasked
    return arguments


def labelled_only(trainer_class: Any, section: TrainSection) -> Any:
    """A trainer whose vocabulary projection and loss cover the labelled positions only, with steps of like length.

    The same loss as trl's `nll`; prompt and padding positions, most of a batch, are never projected.
    """
    import torch

    from karma_electric.train.batches import LikeLengths
    from karma_electric.train.head_loss import head_loss

    class LabelledOnly(trainer_class):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            self._sums: dict[str, Any] = {}  # since the last record: loss in nats, right tokens, learned tokens

        def compute_loss(
            self,
            model: Any,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            targets = inputs["labels"][:, 1:]
            learned = targets != IGNORED
            targets = targets[learned]
            causal_lm = self.accelerator.unwrap_model(model).get_base_model()
            head = causal_lm.get_output_embeddings()
            chunked = _is_frozen_linear(head, causal_lm.config) and not sharded()
            # Through the model itself, not its parts: that is where DDP and FSDP hang what keeps processes in step.
            # No mask: padding is on the right, where a causal model's other positions do not see it, and without one
            # attention computes only the half that is not masked anyway.
            with self.compute_loss_context_manager(), _seeing(head, learned, project=not chunked):
                out = model(input_ids=inputs["input_ids"], use_cache=False).logits
            if chunked:  # out is what the head would have seen, [learned, hidden]
                total, correct = head_loss(out.to(head.weight.dtype), head.weight, targets)
            else:  # [learned, vocabulary]
                total = torch.nn.functional.cross_entropy(out.float(), targets, reduction="sum")
                correct = (out.detach().argmax(-1) == targets).sum()
            self._count("train" if self.model.training else "eval", total.detach(), correct, targets.numel())
            if num_items_in_batch is None:
                loss = total / max(1, targets.numel())
            else:  # tokens of all processes, whose gradients are averaged, not added
                loss = total * self.args.world_size / num_items_in_batch
            return (loss, {}) if return_outputs else loss

        def _count(self, mode: str, total: Any, correct: Any, tokens: int) -> None:
            sums = torch.stack([total.float(), correct.float(), total.new_tensor(tokens, dtype=torch.float32)])
            self._sums[mode] = self._sums[mode] + sums if mode in self._sums else sums

        def log(self, logs: dict[str, float], *arguments: Any, **keywords: Any) -> None:
            """Token accuracy, and the loss of a validation, per learned token of all batches and processes."""
            mode = "train" if self.model.training else "eval"
            sums = self._sums.pop(mode, None)
            if sums is not None:
                total, correct, tokens = self.accelerator.gather(sums[None]).sum(0).tolist()
                self._metrics[mode]["mean_token_accuracy"] = [correct / tokens]
                if mode == "eval":
                    logs["eval_loss"] = total / tokens
            super().log(logs, *arguments, **keywords)

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            if not section.group_by_length:
                return super()._get_train_sampler(train_dataset)
            data = self.train_dataset if train_dataset is None else train_dataset
            lengths = [len(ids) for ids in data["input_ids"]]
            step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            return LikeLengths(lengths, step, self.args.data_seed)

        def get_train_dataloader(self) -> Any:
            return self._shared(super().get_train_dataloader())

        def get_eval_dataloader(self, *arguments: Any) -> Any:
            return self._shared(super().get_eval_dataloader(*arguments))

        def _shared(self, loader: Any) -> Any:
            count = self.args.world_size
            return share(loader, index=self.args.process_index, count=count) if count > 1 else loader

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            if self.is_fsdp_enabled:
                load_sharded_adapter(model, Path(resume_from_checkpoint))
                return
            # trl trains the adapter of a quantised base in bfloat16; peft loads it as float32, which trains otherwise
            types = {name: p.dtype for name, p in self.model.named_parameters() if p.requires_grad}
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            for name, parameter in self.model.named_parameters():
                if name in types:
                    parameter.data = parameter.data.to(types[name])

        def _save_rng_state(self, output_dir: str) -> None:
            """Every process saves its own, and the file that makes a checkpoint whole comes after all of them."""
            super()._save_rng_state(output_dir)
            self.accelerator.wait_for_everyone()

        def evaluate(self, *arguments: Any, **keywords: Any) -> Any:
            """Leave the random state as it was: a run resumed at the end of an epoch skips that validation."""
            with torch.random.fork_rng():
                return super().evaluate(*arguments, **keywords)

    return LabelledOnly


def _is_frozen_linear(head: Any, config: Any) -> bool:
    """Whether logits are `hidden @ W^T` and no more, with a W that is not trained."""
    import torch

    changed = any(getattr(config, key, None) not in (None, 1, 1.0) for key in _LOGITS_CHANGED)
    return type(head) is torch.nn.Linear and head.bias is None and not head.weight.requires_grad and not changed


@contextlib.contextmanager
def _seeing(head: Any, learned: torch.Tensor, *, project: bool) -> Iterator[None]:
    """Let the output head see only the positions before the `learned` targets, [batch, seq - 1], or hand them on."""
    if project:
        handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][:, :-1][learned],))
        try:
            yield
        finally:
            handle.remove()
        return
    head.forward = lambda hidden: hidden[:, :-1][learned]
    try:
        yield
    finally:
        del head.forward  # the class's own shows again
