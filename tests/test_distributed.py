"""Several processes train what one trains: real ones, over gloo, as `accelerate launch` starts them with our files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from karma_electric.core.errors import InputError
from karma_electric.core.recipe import TrainSection
from karma_electric.core.resources import find
from karma_electric.train.distributed import Share, shared_section
from karma_electric.train.trajectory import read_trajectory
from test_chain import ENVIRONMENT, write_workplace

CONFIGS = {name: find("recipes", f"recipes/accelerate/{name}.yaml") for name in ("cpu", "ddp", "fsdp", "zero3")}
# 8 examples in batches of 3, 3 and 2: in the second step of every epoch, the second process has nothing to do.
SETTINGS = ("batch_size=3", "gradient_accumulation=2", "dropout=0.0", "learning_rate=2e-3", "save_steps=3")
EPOCHS = 20  # 40 steps: long enough to be killed in the middle


# How steps are shared


@pytest.mark.parametrize(
    ("batch", "accumulation", "count", "expected"),
    [
        (2, 8, 1, (2, 8)),
        (2, 8, 4, (2, 2)),
        (4, 1, 2, (2, 1)),  # no accumulation to share: batches are split
        (2, 8, 16, (1, 1)),  # both
        (6, 1, 2, (3, 1)),
        (4, 3, 6, (2, 1)),
    ],
)
def test_the_examples_of_a_step_stay_as_many(batch: int, accumulation: int, count: int, expected: object) -> None:
    section = TrainSection(batch_size=batch, gradient_accumulation=accumulation)
    shared = shared_section(section, count)
    assert (shared.batch_size, shared.gradient_accumulation) == expected
    assert shared.batch_size * shared.gradient_accumulation * count == batch * accumulation


def test_steps_that_cannot_be_shared_are_refused_with_what_to_set() -> None:
    with pytest.raises(InputError, match=r"takes 15 examples .* which 2 processes cannot share evenly") as caught:
        shared_section(TrainSection(batch_size=3, gradient_accumulation=5), 2)
    assert "train.gradient_accumulation to a multiple of 2" in caught.value.hint


@given(
    n=st.integers(1, 40),
    batch=st.integers(1, 6),
    rounds=st.integers(1, 4),
    count=st.integers(1, 5),
    order=st.randoms(use_true_random=False),
)
def test_every_step_has_the_examples_that_one_process_would_see(
    n: int, batch: int, rounds: int, count: int, order: Any
) -> None:
    """Whatever the order of the sampler: each example once per epoch, in the same step, and as many steps for all."""
    examples = list(range(n))
    order.shuffle(examples)
    shares = [Share(BatchSampler(examples, batch, drop_last=False), index=i, count=count, idle=n) for i in range(count)]
    rows = [list(share) for share in shares]
    assert {len(row) for row in rows} == {len(share) for share in shares} == {-(-n // (batch * count))}
    size = batch * count * rounds  # examples of an optimiser step
    for step, start in enumerate(range(0, n, size)):
        seen = [e for row in rows for part in row[step * rounds : (step + 1) * rounds] for e in part]
        assert sorted(e for e in seen if e != n) == sorted(examples[start : start + size])


# Two processes


@pytest.fixture(scope="module")
def workplace(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe on the tiny model, with 8 examples to train on and 2 held out."""
    folder = tmp_path_factory.mktemp("work")
    write_workplace(folder, tiny_path)
    return folder


def command(run: str, epochs: int, settings: Sequence[str]) -> list[str]:
    overrides = [part for setting in (*settings, f"epochs={epochs}") for part in ("--set", f"train.{setting}")]
    return ["-m", "karma_electric", "train", "tiny.toml", "--run-dir", run, *overrides]


def launched(*arguments: str, config: Path = CONFIGS["cpu"]) -> list[str]:
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), *arguments]


def finish(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, check=False, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def alone(workplace: Path) -> Path:
    """The adapter that one process trains."""
    done = finish([sys.executable, *command("alone", EPOCHS, SETTINGS)], workplace)
    assert done.returncode == 0, done.stderr
    return workplace / "alone" / "adapter"


def same_training(found: Path, expected: Path) -> None:
    """The same records, and weights that differ by no more than the order of sums accounts for.

    float32 sums in another order differ by about 1e-7 a step; 40 steps of Adam, which divides by the gradient's own
    size, make 1e-5 of that.
    """
    records, wanted = (read_trajectory(folder / "trajectory.jsonl") for folder in (found, expected))
    assert [(r["split"], r["step"]) for r in records] == [(r["split"], r["step"]) for r in wanted]
    for key in ("loss", "accuracy"):
        assert [r[key] for r in records] == pytest.approx([r[key] for r in wanted], rel=1e-4)
    steps, wanted = ([r for r in rows if r["split"] == "train"] for rows in (records, wanted))
    assert [r["grad_norm"] for r in steps] == pytest.approx([r["grad_norm"] for r in wanted], rel=1e-3)
    assert [r["learning_rate"] for r in steps] == [r["learning_rate"] for r in wanted]
    adapter, other = weights(found), weights(expected)
    assert adapter.keys() == other.keys()
    for name, tensor in other.items():
        torch.testing.assert_close(adapter[name], tensor, rtol=1e-3, atol=1e-5)
    assert sorted(p.name for p in found.iterdir()) == sorted(p.name for p in expected.iterdir())


def weights(adapter: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(adapter / "adapter_model.safetensors")


@pytest.mark.slow
def test_two_processes_train_what_one_trains(workplace: Path, alone: Path) -> None:
    done = finish(launched(*command("two", EPOCHS, SETTINGS)), workplace)
    assert done.returncode == 0, done.stderr
    assert "2 processes, each with 1 x 3 of the 6 examples of a step" in done.stderr
    assert done.stderr.count("[2/2] adapter: done") == 1, "one writes and speaks"
    same_training(workplace / "two" / "adapter", alone)
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (workplace / "two/adapter", alone)]
    assert manifests[0]["id"] == manifests[1]["id"]


@pytest.mark.slow
def test_a_launcher_that_is_killed_takes_its_processes_along_and_the_same_command_goes_on(
    workplace: Path, alone: Path
) -> None:
    kill_and_continue(launched(*command("killed", EPOCHS, SETTINGS)), workplace, "killed")
    same_training(workplace / "killed" / "adapter", alone)


FSDP_ON_CPU = """\
import contextlib, os, sys
import torch.distributed
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp._flat_param import FlatParamHandle

# accelerate offers FSDP on GPUs only; torch's works over gloo as well
os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
torch.distributed.init_process_group("gloo")
PartialState._prepare_backend = lambda self, *arguments: ("gloo", DistributedType.MULTI_GPU)
PartialState.wait_for_everyone = lambda self: torch.distributed.barrier()
FlatParamHandle.to_cpu = contextlib.contextmanager(lambda self: (yield))  # it is there: moving would free it

from karma_electric.cli.main import main
main()
"""


@pytest.mark.slow
def test_fsdp_trains_what_one_process_trains_and_goes_on_after_a_kill(workplace: Path, alone: Path) -> None:
    """The shipped file, but for one key that wants a GPU. Names inside FSDP's wrappers once left adapters empty."""
    config, script = workplace / "fsdp.yaml", workplace / "fsdp_on_cpu.py"
    text = CONFIGS["fsdp"].read_text()
    config.write_text(text.replace("fsdp_sync_module_states: true", "fsdp_sync_module_states: false"))
    script.write_text(FSDP_ON_CPU)
    _, _, *words = command("fsdp", EPOCHS, SETTINGS)
    kill_and_continue(launched(str(script), *words, config=config), workplace, "fsdp")
    same_training(workplace / "fsdp" / "adapter", alone)


def kill_and_continue(arguments: Sequence[str], folder: Path, run: str) -> None:
    """SIGKILL the launcher after the second checkpoint, and give the same command again."""
    partial = folder / run / ".partial" / "adapter"
    with subprocess.Popen(arguments, cwd=folder, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as launcher:
        wait_for(lambda: len(list(partial.glob("checkpoints/*/trainer_state.json"))) > 1)
        workers = psutil.Process(launcher.pid).children(recursive=True)
        launcher.send_signal(signal.SIGKILL)
    assert len(workers) == 2
    assert psutil.wait_procs(workers, timeout=10)[1] == [], "they would hold the run"
    assert not (folder / run / "adapter").exists()
    done = finish(arguments, folder)
    assert done.returncode == 0, done.stderr
    assert "continuing where the last attempt stopped" in done.stderr


def wait_for(condition: Callable[[], bool], timeout_s: float = 300) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.slow
def test_what_one_process_cannot_do_is_said_once(workplace: Path) -> None:
    """The launcher adds its own report, and ends with 1 whatever the reason."""
    done = finish(launched(*command("refused", 1, ("batch_size=3", "gradient_accumulation=1"))), workplace)
    assert done.returncode == 1
    (message,) = errors(done.stderr)
    assert message.startswith("error: An optimiser step takes 3 examples")


def errors(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("error:")]


MEMBER = """\
import os, sys, time
from karma_electric.cli.main import guarded
from karma_electric.core.errors import InputError
from karma_electric.models.processes import joined

def work(index):
    if index == 1:
        {failure}
    return index

def main():
    with joined() as processes:
        {action}
        print("not reached", file=sys.stderr)

guarded(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "action", "messages"),
    [
        ('raise InputError("Only here.", "Do this.")', "processes.together(lambda: work(processes.index))", 1),
        ('raise InputError("Only here.", "Do this.")', "work(processes.index); processes.wait()", 1),
        ("os._exit(9)", "work(processes.index); processes.wait()", 0),
    ],
    ids=["while all prepare", "while the other waits", "without a word"],
)
def test_the_process_that_fails_says_why_and_the_others_end_silently(
    tmp_path: Path, failure: str, action: str, messages: int
) -> None:
    script = tmp_path / "member.py"
    script.write_text(MEMBER.format(failure=failure, action=action))
    done = finish(launched(str(script)), tmp_path)
    assert done.returncode == 1
    assert errors(done.stderr) == ["error: Only here. Do this."] * messages
    assert "not reached" not in done.stderr


# The files for accelerate


@pytest.fixture
def launch_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Variables of the launcher are this test's own."""
    for name in [n for n in os.environ if n.startswith(("ACCELERATE_", "FSDP_"))]:
        monkeypatch.delenv(name)
    yield
    for name in [n for n in os.environ if n.startswith(("ACCELERATE_", "FSDP_"))]:
        del os.environ[name]


def environment_of(name: str) -> dict[str, str]:
    """What accelerate's launcher would start the processes with."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    parser = launch_command_parser()
    asked = parser.parse_args(["--config_file", str(CONFIGS[name]), "-m", "karma_electric", "train", "x.toml"])
    arguments, _, _ = _validate_launch_command(asked)
    assert arguments.num_processes == 2
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ""
        return dict(prepare_deepspeed_cmd_env(arguments)[1])
    assert arguments.multi_gpu or arguments.use_fsdp, "the launchers that start several"
    return dict(prepare_multi_gpu_env(arguments))


@pytest.mark.parametrize("name", CONFIGS)
def test_accelerate_reads_the_shipped_files(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(CONFIGS[name]))
    assert config.num_processes == 2
    assert config.mixed_precision == "no"
    text = CONFIGS[name].read_text()
    keys = [line for line in text.splitlines() if line.startswith("  ") and ":" in line]
    assert all("#" in line for line in keys), "each key says what it costs"
    assert f"recipes/accelerate/{name}.yaml -m karma_electric train" in text


def test_the_cpu_file_hides_gpus(launch_environment: None) -> None:
    assert environment_of("cpu")["CUDA_VISIBLE_DEVICES"] == "-1,-1"
    assert "CUDA_VISIBLE_DEVICES" not in environment_of("ddp") or "CUDA_VISIBLE_DEVICES" in os.environ


def test_the_fsdp_file_makes_the_plugin_that_adapters_on_4_bit_weights_need(
    launch_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import BackwardPrefetch, ShardingStrategy, StateDictType
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    from karma_electric.train.distributed import sharded

    environment = environment_of("fsdp")
    assert environment["FSDP_SYNC_MODULE_STATES"] == "true"
    # the one thing that the plugin asks a GPU for
    for key, value in {**environment, "FSDP_SYNC_MODULE_STATES": "false"}.items():
        monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.use_orig_params) == (1, False)
    assert plugin.sharding_strategy == ShardingStrategy.FULL_SHARD
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT
    assert plugin.backward_prefetch == BackwardPrefetch.BACKWARD_PRE
    assert not plugin.cpu_ram_efficient_loading
    assert sharded()


def test_the_zero3_file_makes_the_plugin(launch_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import DeepSpeedPlugin

    from karma_electric.train.distributed import sharded

    for key, value in environment_of("zero3").items():
        monkeypatch.setenv(key, value)
    config = DeepSpeedPlugin().deepspeed_config
    assert config["zero_optimization"]["stage"] == 3
    assert config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
    assert config["gradient_accumulation_steps"] == "auto", "the recipe's, divided by the processes"
    assert config["gradient_clipping"] == "auto", "the recipe's"
    assert sharded()


@pytest.mark.parametrize("name", ["cpu", "ddp"])
def test_ddp_is_not_sharded(launch_environment: None, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from karma_electric.train.distributed import sharded

    for key, value in environment_of(name).items():
        monkeypatch.setenv(key, value)
    assert not sharded()
