"""Training on the tiny model, for real: it learns, its loss is the full one, and a kill changes nothing."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import pytest
import torch

import karma_electric
import tiny
from karma_electric.core.errors import DataError, GateError, InputError
from karma_electric.core.messages import as_dicts
from karma_electric.core.recipe import TrainSection
from karma_electric.models.loading import load_model, quiet_transformers
from karma_electric.train.distributed import share
from karma_electric.train.qlora import train_adapter
from karma_electric.train.tokenize import IGNORED, read_split, tokenize_split
from karma_electric.train.trainer import Data, adapted_model, build_trainer, labelled_only
from karma_electric.train.trajectory import Trajectory, read_trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SECTION = TrainSection(
    quantisation="none",
    rank=8,
    alpha=16,
    dropout=0.1,  # so that a resumed run must restore the random state as well
    epochs=3,
    batch_size=2,
    gradient_accumulation=2,
    learning_rate=5e-3,
    max_grad_norm=1.0,
    max_length=256,
    save_steps=2,
)  # 8 examples: 2 steps per epoch, 6 in all, checkpoints after 2, 4 and 6


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


class Reaper:
    """A progress that raises `error` when step `at` is reported."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.at, self.error = at, error

    def update(self, done: int, total: int, note: str = "") -> None:
        if done == self.at:
            raise self.error

    def say(self, text: str) -> None:
        """Ignore."""


def write_split(path: Path, n: int, seed: int) -> None:
    lines = [json.dumps({"id": f"e{i}", "messages": as_dicts(c)}) for i, c in enumerate(tiny.chats(n, seed=seed))]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    write_split(folder / "train.jsonl", 8, seed=1)
    write_split(folder / "validation.jsonl", 3, seed=2)
    return folder


def train(tiny_path: Path, release: Path, out: Path, progress: Any = None, **changes: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    section = SECTION.model_copy(update=changes)
    return train_adapter(tiny_path, release, section, out, dtype="float32", progress=progress)


@pytest.fixture(scope="module")
def trained(tiny_path: Path, release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter trained for 6 steps without interruption."""
    out = tmp_path_factory.mktemp("adapter")
    train(tiny_path, release, out)
    return out


def records_of(out: Path, split: str) -> list[dict[str, Any]]:
    return [r for r in read_trajectory(out / "trajectory.jsonl") if r["split"] == split]


def adapter_of(out: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(out / "adapter_model.safetensors")


def nll(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, release: Path, split: str = "train") -> float:
    """Mean loss per learned token of a split, from full logits, one example at a time."""
    total, count = 0.0, 0
    for example in tokenize_split(read_split(release / f"{split}.jsonl"), tokenizer, 256).examples:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([example.input_ids])).logits[0, :-1]
        targets = torch.tensor(example.labels)[1:]
        total += float(torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum"))
        count += int((targets != IGNORED).sum())
    return total / count


# Learning


def test_a_small_corpus_is_learned(
    tiny_path: Path, release: Path, trained: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Measured from outside: the saved adapter on the base model, with full logits."""
    from peft import PeftModel

    before = nll(model, tokenizer, release)
    with quiet_transformers():
        adapted = PeftModel.from_pretrained(load_model(tiny_path, dtype="float32", device="cpu"), str(trained))
    after = nll(adapted.eval(), tokenizer, release)
    assert after < 0.8 * before
    losses = [r["loss"] for r in records_of(trained, "train")]
    assert losses[-1] < losses[0]
    assert losses[-1] == pytest.approx(after, rel=0.3)
    validation = records_of(trained, "validation")
    heldout = nll(adapted, tokenizer, release, "validation")  # 3 examples, in batches of 2 and 1
    assert validation[-1]["loss"] == pytest.approx(heldout, rel=1e-4), "per learned token, not a mean of batch means"


def test_the_trajectory_has_every_step_once(trained: Path) -> None:
    train_records, validation = records_of(trained, "train"), records_of(trained, "validation")
    assert [r["step"] for r in train_records] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in validation] == [0, 2, 4, 6], "before training and after each epoch"
    assert all(0 <= r["accuracy"] <= 1 and r["grad_norm"] > 0 for r in train_records)
    rates = [r["learning_rate"] for r in train_records]
    assert rates[0] < rates[1] > rates[2] > rates[-1], "one step of warm-up, then cosine decay"


def test_the_summary_says_what_was_trained(
    trained: Path, release: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    summary = json.loads((trained / "training.json").read_text())
    split = tokenize_split(read_split(release / "train.jsonl"), tokenizer, 256)
    losses = [r["loss"] for r in records_of(trained, "train")]
    validation = [r["loss"] for r in records_of(trained, "validation")]
    assert (summary["steps"], summary["examples"], summary["quantisation"]) == (6, 8, "none")
    assert (summary["tokens"], summary["learned_tokens"]) == (split.tokens, split.learned_tokens)
    assert summary["trainable_parameters"] == sum(t.numel() for t in adapter_of(trained).values())
    assert summary["parameters"] - summary["trainable_parameters"] == model.num_parameters()
    assert (summary["final_loss"], summary["best_step_loss"]) == (losses[-1], min(losses))
    assert (summary["validation_loss_before"], summary["validation_loss"]) == (validation[0], validation[-1])
    assert (summary["threads"], summary["processes"]) == (torch.get_num_threads(), 1)
    assert summary["compute_dtype"] in ("float32", "bfloat16")


def test_what_is_left_is_the_adapter_and_its_record(trained: Path) -> None:
    found = sorted(p.name for p in trained.iterdir())
    assert found == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "loss.png",
        "training.json",
        "trajectory.jsonl",
    ]
    assert (trained / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_loss_and_its_gradient_are_those_of_full_logits(
    tiny_path: Path, release: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, checkpointing: bool
) -> None:
    from trl import SFTTrainer

    section = SECTION.model_copy(
        update={"dropout": 0.0, "gradient_checkpointing": checkpointing, "group_by_length": False}  # padding is wanted
    )
    split = tokenize_split(read_split(release / "train.jsonl"), tokenizer, 256)
    torch.manual_seed(0)
    with quiet_transformers():
        model = adapted_model(tiny_path, section, torch.float32)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, which would leave lora_A without a gradient
            torch.nn.init.normal_(parameter, std=0.02)
    with quiet_transformers():
        trainer = build_trainer(
            labelled_only(SFTTrainer, section), model, tokenizer, Data(split, split), section, tmp_path, torch.float32
        )
    batch = next(iter(trainer.get_train_dataloader()))
    assert (batch["attention_mask"] == 0).any(), "a batch with padding"
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = trainer.compute_loss(model, batch, num_items_in_batch=torch.tensor(40))
    gradients = torch.autograd.grad(loss, parameters)

    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = (
        torch.nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], ignore_index=IGNORED, reduction="sum"
        )
        / 40
    )
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for found, wanted in zip(gradients, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
    mean = trainer.compute_loss(model, batch)  # without a count: the mean over the batch's own learned tokens
    torch.testing.assert_close(mean, expected * 40 / (batch["labels"][:, 1:] != IGNORED).sum())


def test_a_process_without_an_example_left_adds_nothing(
    tiny_path: Path, release: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Its last batch has no learned token: a loss and gradients of zero, for every parameter, as DDP wants them."""
    from trl import SFTTrainer

    split = tokenize_split(read_split(release / "train.jsonl"), tokenizer, 256)
    with quiet_transformers():
        model = adapted_model(tiny_path, SECTION, torch.float32)
        trainer = build_trainer(
            labelled_only(SFTTrainer, SECTION), model, tokenizer, Data(split, split), SECTION, tmp_path, torch.float32
        )
    batches = list(share(trainer.get_train_dataloader(), index=2, count=3))  # 4 batches of 2: 0 and 3 | 1 | 2
    assert [len(batch["labels"]) for batch in batches] == [2, 1]
    assert (batches[1]["labels"] == IGNORED).all()
    model.train()
    loss = trainer.compute_loss(model, batches[1], num_items_in_batch=torch.tensor(40))
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert float(loss.detach()) == 0
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(loss, parameters))


def test_padding_of_a_batch_is_masked_and_never_the_end_of_a_turn(
    tiny_path: Path, release: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    from trl import SFTTrainer

    split = tokenize_split(read_split(release / "train.jsonl"), tokenizer, 256)
    with quiet_transformers():
        model = adapted_model(tiny_path, SECTION, torch.float32)
        trainer = build_trainer(SFTTrainer, model, tokenizer, Data(split, split), SECTION, tmp_path, torch.float32)
    for batch in trainer.get_train_dataloader():
        padding = batch["attention_mask"] == 0
        assert (batch["labels"][padding] == IGNORED).all()
        assert (batch["input_ids"][padding] == tokenizer.pad_token_id).all()
        ends = (batch["input_ids"] == tokenizer.eos_token_id) & ~padding
        assert (batch["labels"][ends] == tokenizer.eos_token_id).sum() == len(batch["labels"]), "each answer's end"


def test_accumulated_batches_learn_what_one_large_batch_learns(tiny_path: Path, release: Path, tmp_path: Path) -> None:
    same = {"dropout": 0.0, "epochs": 1.0}
    train(tiny_path, release, tmp_path / "small", batch_size=1, gradient_accumulation=4, **same)
    train(tiny_path, release, tmp_path / "large", batch_size=4, gradient_accumulation=1, **same)
    for key in ("loss", "grad_norm"):
        small, large = ([r[key] for r in records_of(tmp_path / size, "train")] for size in ("small", "large"))
        assert len(small) == 2
        assert small == pytest.approx(large, rel=1e-3)


# Kills


@pytest.mark.parametrize(("save_steps", "at"), [(2, 4), (3, 5)])  # a checkpoint at the end of an epoch, and within one
def test_a_killed_run_continues_as_if_nothing_had_happened(
    tiny_path: Path, release: Path, trained: Path, tmp_path: Path, save_steps: int, at: int
) -> None:
    with pytest.raises(Killed):
        train(tiny_path, release, tmp_path, Reaper(at, Killed()), save_steps=save_steps)
    steps_before = [r["step"] for r in records_of(tmp_path, "train")]
    assert steps_before == list(range(1, at)), "steps after the checkpoint are on record, and must go"
    with (tmp_path / "trajectory.jsonl").open("a") as file:
        file.write('{"step": ')  # torn by the kill
    torn = tmp_path / "checkpoints" / "checkpoint-99"
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"global_step": 9')
    calls: list[int] = []

    class Watch(Reaper):
        def update(self, done: int, total: int, note: str = "") -> None:
            calls.append(done)

    train(tiny_path, release, tmp_path, Watch(0, Killed()), save_steps=save_steps)
    assert calls == list(range(save_steps + 1, 7)), "only what came after the checkpoint is done again"
    whole, again = (read_trajectory(folder / "trajectory.jsonl") for folder in (trained, tmp_path))
    assert [(r["split"], r["step"]) for r in again] == [(r["split"], r["step"]) for r in whole]
    for key in ("loss", "accuracy"):
        assert [r[key] for r in again] == pytest.approx([r[key] for r in whole], abs=1e-4)
    for name, tensor in adapter_of(trained).items():
        torch.testing.assert_close(adapter_of(tmp_path)[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fused", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_killed_run_on_four_bits_continues_as_well(release: Path, tmp_path: Path, fused: bool) -> None:
    """peft makes the adapter's parameters anew when it loads a checkpoint, in another type than trl trains."""
    base = tiny.write_checkpoint(tmp_path / "base", intermediate=192)
    keys = {"quantisation": "nf4", "fused": fused, "save_steps": 2}
    train(base, release, tmp_path / "whole", **keys)
    with pytest.raises(Killed):
        train(base, release, tmp_path / "cut", Reaper(4, Killed()), **keys)
    train(base, release, tmp_path / "cut", **keys)
    whole, again = (read_trajectory(tmp_path / name / "trajectory.jsonl") for name in ("whole", "cut"))
    assert all(record["grad_norm"] > 0 for record in again if record["split"] == "train")
    for key in ("step", "loss", "accuracy"):
        assert [r[key] for r in again] == pytest.approx([r[key] for r in whole], abs=1e-4)
    for name, tensor in adapter_of(tmp_path / "whole").items():
        torch.testing.assert_close(adapter_of(tmp_path / "cut")[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_run_killed_in_its_last_validation_still_ends_with_one(
    tiny_path: Path, release: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint is written before the last validation: nothing is left to train when it is resumed."""
    append = Trajectory.append

    def dying(self: Trajectory, record: dict[str, Any]) -> None:
        if (record["split"], record["step"]) == ("validation", 6):
            raise Killed
        append(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(Trajectory, "append", dying)
        with pytest.raises(Killed):
            train(tiny_path, release, tmp_path)
    summary = train(tiny_path, release, tmp_path)
    assert summary["validation_loss"] == pytest.approx(records_of(trained, "validation")[-1]["loss"], abs=1e-4)
    assert [r["step"] for r in records_of(tmp_path, "validation")] == [0, 2, 4, 6]


def test_resuming_forgets_the_steps_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "trajectory.jsonl"
    whole = [{"step": step, "split": "train", "loss": 1.0} for step in (1, 2, 3)]
    path.write_text("".join(json.dumps(r) + "\n" for r in whole) + '{"step": 4, "lo')
    assert read_trajectory(path) == whole
    trajectory = Trajectory(path, resume_at=2)
    trajectory.append({"step": 3, "split": "train", "loss": 0.5})
    assert [(r["step"], r["loss"]) for r in read_trajectory(path)] == [(1, 1.0), (2, 1.0), (3, 0.5)]


def test_starting_over_forgets_everything(tmp_path: Path) -> None:
    path = tmp_path / "trajectory.jsonl"
    path.write_text('{"step": 1, "split": "train", "loss": 1.0}\n')
    Trajectory(path, resume_at=0)
    assert read_trajectory(path) == []


# What goes wrong


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_not_recorded(tmp_path: Path, loss: float) -> None:
    trajectory = Trajectory(tmp_path / "trajectory.jsonl", resume_at=0)
    with pytest.raises(GateError, match="at step 3: training diverged"):
        trajectory.append({"step": 3, "split": "train", "loss": loss})
    assert read_trajectory(tmp_path / "trajectory.jsonl") == []


def test_a_loss_that_rises_far_above_its_best_is_an_error(tmp_path: Path) -> None:
    """Ten steps at a time: single hard batches are no divergence, and neither is a run that was continued."""
    losses = [2.0] * 10 + [1.0] * 10 + [9.0] + [1.0] * 9
    path = tmp_path / "trajectory.jsonl"
    trajectory = Trajectory(path, resume_at=0)
    for step, loss in enumerate(losses, 1):
        trajectory.append({"step": step, "split": "train", "loss": loss})
    continued = Trajectory(path, resume_at=len(losses))
    rising = ({"step": step, "split": "train", "loss": 4.0} for step in range(31, 60))
    with pytest.raises(GateError, match=r"mean loss of the last 10 steps is 2\.\d+ at step 3\d, after a best of 1"):
        deque(map(continued.append, rising), maxlen=0)
    assert len(read_trajectory(path)) < 40


def no_memory() -> RuntimeError:
    """A CPU's error is a plain RuntimeError; here a real one, of a tensor that no machine holds."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    return caught.value


def test_running_out_of_memory_says_what_to_lower(tiny_path: Path, release: Path, tmp_path: Path) -> None:
    """What stays is said as it is: a changed key makes another stage, which begins anew."""
    with pytest.raises(
        InputError, match=r"No checkpoint had been saved yet\. Lower train\.batch_size from 2 .*max_length"
    ):
        train(tiny_path, release, tmp_path, Reaper(1, no_memory()))
    with pytest.raises(InputError, match=r"goes on from step 2; a changed key begins anew\."):
        train(tiny_path, release, tmp_path, Reaper(3, no_memory()))
    with pytest.raises(RuntimeError, match="something else"):
        train(tiny_path, release, tmp_path / "other", Reaper(1, RuntimeError("something else")))


def test_numpy_without_memory_says_the_same(tiny_path: Path, release: Path, tmp_path: Path) -> None:
    """Dropout's bits are numpy's, whose error is no RuntimeError."""
    with pytest.raises(MemoryError) as caught:
        numpy.empty(1 << 60, dtype=numpy.uint8)
    with pytest.raises(InputError, match=r"ran out of memory.*Lower train\.batch_size"):
        train(tiny_path, release, tmp_path, Reaper(1, caught.value))


def test_a_base_that_does_not_fit_into_memory_says_the_same(
    tiny_path: Path, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **keywords: Any) -> None:
        raise no_memory()

    monkeypatch.setattr("karma_electric.train.trainer.load_model", full)
    with pytest.raises(InputError, match=r'ran out of memory.*quantisation = "nf4".*take a smaller one'):
        train(tiny_path, release, tmp_path)


def test_a_training_that_diverges_ends_with_an_error(tiny_path: Path, release: Path, tmp_path: Path) -> None:
    """At once, not at the next validation: the trainer's own filter would log a loss of 0 until then."""
    with pytest.raises(GateError, match="at step 2: training diverged"):
        train(tiny_path, release, tmp_path, learning_rate=1e30, warmup_fraction=0.0, gradient_accumulation=1)
    assert [r["step"] for r in records_of(tmp_path, "train")] == [1]
    assert not (tmp_path / "training.json").exists()


def test_an_unknown_target_module_is_named(tiny_path: Path, release: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no 'c_attn'.* It has .*q_proj"):
        train(tiny_path, release, tmp_path, target_modules=["q_proj", "c_attn"])


def test_a_release_that_does_not_fit_is_an_error(tiny_path: Path, release: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No example fits in 20 tokens"):
        train(tiny_path, release, tmp_path, max_length=20)


def test_four_bit_weights_train(release: Path, tmp_path: Path) -> None:
    base = tiny.write_checkpoint(tmp_path / "base", intermediate=192)  # bitsandbytes quantises in blocks of 64
    out = tmp_path / "adapter"
    summary = train(base, release, out, quantisation="nf4", epochs=1.0)
    assert summary["quantisation"] == "nf4"
    assert summary["steps"] == 2
    assert summary["validation_loss"] < summary["validation_loss_before"]


def test_nf4_on_a_cpu_refuses_widths_that_would_crash(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 64, "intermediate_size": 96}')
    with pytest.raises(InputError, match="intermediate_size is 96"):
        adapted_model(tmp_path, TrainSection(quantisation="nf4"), torch.float32)


def test_what_nf4_means_is_said_in_one_place() -> None:
    """Training, calibration and chat must read the same 4-bit weights."""
    source = Path(karma_electric.__file__).parent
    files = [file for file in source.rglob("*.py") if "BitsAndBytesConfig(" in file.read_text(encoding="utf-8")]
    assert [file.relative_to(source).as_posix() for file in files] == ["models/loading.py"]
