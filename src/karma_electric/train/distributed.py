"""Training in several processes gives what one gives: the same examples in every optimiser step, and sums over all.

This module knows how work is shared; what a step computes is the trainer's business.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.core.errors import ArtifactError, GateError, InputError
from karma_electric.core.recipe import TrainSection
from karma_electric.models.processes import ALONE, Processes
from karma_electric.models.weights import stored_tensors
from karma_electric.train.tokenize import IGNORED

_BEGIN_AGAIN = "Remove it: the training then begins again, or goes on from an earlier one."
_WRAPPER = "_fsdp_wrapped_module."


@dataclass(frozen=True)
class Task:
    """What the processes train together: the arguments of `train_adapter`."""

    base: Path
    release: Path
    section: TrainSection
    out: Path
    dtype: str


class Team:
    """The first process, which runs the stages, and the others, which wait until it needs them for training."""

    def __init__(self, processes: Processes = ALONE) -> None:
        self.processes = processes
        self._called = processes.count == 1

    def call(self, task: Task) -> None:
        """Let the others begin with what the first one begins with."""
        if not self._called:
            self._called = True
            self.processes.tell(task)

    def dismiss(self) -> None:
        """Let the others go, if they are still waiting: there is nothing to train, or it went wrong before."""
        if not self._called:
            self._called = True
            self.processes.tell(None)

    def wait(self) -> Task | None:
        """In the others: what there is to do, or None."""
        self._called = True
        task: Task | None = self.processes.tell(None)
        return task


def sharded() -> bool:
    """Whether the launcher asks for FSDP or DeepSpeed, where no process holds the whole model."""
    asked = (os.environ.get(name, "") for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"))
    return any(value.lower() in ("1", "true") for value in asked)


def shared_section(section: TrainSection, count: int) -> TrainSection:
    """The batch size and accumulation of each of `count` processes that together take the recipe's steps.

    Whole batches are shared out where accumulation allows; else batches are split.

    Raises:
        InputError: the examples of one step cannot be shared evenly.
    """
    step = section.batch_size * section.gradient_accumulation
    for size in range(section.batch_size, 0, -1):
        if section.batch_size % size == 0 and step % (size * count) == 0:
            return section.model_copy(update={"batch_size": size, "gradient_accumulation": step // (size * count)})
    raise InputError(
        f"An optimiser step takes {step} examples (train.batch_size {section.batch_size} x "
        f"train.gradient_accumulation {section.gradient_accumulation}), which {count} processes cannot share evenly.",
        f"Set train.gradient_accumulation to a multiple of {count}, or start another number of processes.",
    )


class Share:
    """The batches of one process: the i-th of every `count` that one process alone would take one after the other.

    Any sampler will do whose order is the same in all processes. Where the examples of an epoch run out before the last
    round is full, a process is given the idle example alone, so that all take as many steps and none is seen twice.
    """

    def __init__(self, batches: Any, *, index: int, count: int, idle: int) -> None:
        """`batches` is torch's BatchSampler over all examples; `idle` stands for the idle example."""
        self.batch_sampler = batches
        self.sampler = batches.sampler  # accelerate looks for it here to set the epoch, also in a run that is resumed
        self.batch_size = batches.batch_size
        self.drop_last = False
        self._index, self._count, self._idle = index, count, idle

    def __len__(self) -> int:
        return math.ceil(len(self.batch_sampler) / self._count)

    def __iter__(self) -> Iterator[list[int]]:
        number = -1
        mine = [self._idle]
        for number, batch in enumerate(self.batch_sampler):
            if number % self._count == self._index:
                mine = batch
            if number % self._count == self._count - 1:
                yield mine
                mine = [self._idle]
        if (number + 1) % self._count:
            yield mine


class _WithIdle:
    """A dataset and, behind its end, an example of two tokens that nothing is learned from."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        if index < len(self._dataset):
            example: dict[str, list[int]] = self._dataset[index]
            return example
        return {"input_ids": self._dataset[0]["input_ids"][:2], "labels": [IGNORED, IGNORED]}


def share(loader: Any, *, index: int, count: int) -> Any:
    """A data loader that gives a process its share of what `loader`, as accelerate prepared it for one, gives."""
    from accelerate.data_loader import DataLoaderShard

    prepared = loader.batch_sampler
    batches = getattr(prepared, "batch_sampler", prepared)  # without accelerate's own way of sharing them
    return DataLoaderShard(
        _WithIdle(loader.dataset),
        device=loader.device,
        batch_sampler=Share(batches, index=index, count=count, idle=len(loader.dataset)),
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
    )


def save_adapter(trainer: Any, out: Path, *, first: bool) -> None:
    """Write the adapter to `out`, in the first process; every process has to call this.

    Raises:
        GateError: there was nothing in it.
    """
    state = None
    if sharded():
        wrapped = trainer.deepspeed if trainer.is_deepspeed_enabled else trainer.model
        state = trainer.accelerator.get_state_dict(wrapped)
    if not first:
        return
    trainer.accelerator.unwrap_model(trainer.model).save_pretrained(out, state_dict=state)
    if not stored_tensors(out / "adapter_model.safetensors"):
        raise GateError(
            "No weights of the adapter could be gathered.", "Train with recipes/accelerate/ddp.yaml, and report this."
        )


def load_sharded_adapter(model: Any, checkpoint: Path) -> None:
    """Put the adapter of a checkpoint into a model that FSDP has cut; every process has to call this.

    accelerate's own way asks peft, which asks every process for names that the first one alone has: the pieces of the
    others would stay as they were initialised.

    Raises:
        ArtifactError: the checkpoint is of another adapter.
    """
    import torch
    from safetensors.torch import load_file
    from torch.distributed.fsdp import FullyShardedDataParallel

    with FullyShardedDataParallel.summon_full_params(model, recurse=False):
        state = load_file(checkpoint / "adapter_model.safetensors")  # in here, so that the whole model is the root
    for name, unit in model.named_modules():
        if ".lora_" in name and isinstance(unit, FullyShardedDataParallel):  # peft makes a unit of every factor
            key = f"{name.replace(_WRAPPER, '').replace('.default', '')}.weight"
            if key not in state:
                raise ArtifactError(f"{checkpoint} has no {key}.", _BEGIN_AGAIN)
            with torch.no_grad(), FullyShardedDataParallel.summon_full_params(unit, recurse=False):
                unit.module.get_parameter("weight").copy_(state.pop(key))
    if state:
        raise ArtifactError(
            f"{checkpoint} has {next(iter(state))}, the model has not.",
            _BEGIN_AGAIN,
        )


def find_adapters_in_fsdp() -> None:
    """Let peft see through FSDP's wrappers, of which it knows the outermost only (0.21.2).

    Else no name of an adapter is recognised: checkpoints and the adapter are saved empty, without a word.
    """
    from peft.tuners import tuners_utils

    original = tuners_utils._get_tuner_state_dict_key_prefixes

    def plain(*arguments: Any, **keywords: Any) -> set[str]:
        return {prefix.replace(_WRAPPER, "") for prefix in original(*arguments, **keywords)}

    tuners_utils._get_tuner_state_dict_key_prefixes = plain
