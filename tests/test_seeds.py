"""Several seeds per arm: how they are asked, kept, continued after a kill, and read back."""

import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from karma_electric.core.errors import ArtifactError, InputError, MissingError
from karma_electric.core.messages import Conversation
from karma_electric.core.progress import Silent
from karma_electric.models.engines.protocol import Completion, Engine, Sampling
from karma_electric.models.engines.scripted import ScriptedEngine
from karma_electric.redteam.runner import COMPLETIONS, SUMMARY, VERDICTS
from karma_electric.redteam.seeds import read_seeds, run_seeds
from karma_electric.redteam.stats import ArmSummary, summarise
from test_redteam_runner import DECLINE, SUITE


class Seeded(ScriptedEngine):
    """Answers by the seed: declines under odd ones. Keeps the seed of every batch."""

    def __init__(self, *, kill_at: int | None = None) -> None:
        super().__init__(lambda _: DECLINE)
        self.seeds: list[int] = []
        self.kill_at = kill_at

    def _complete(self, conversation: Conversation, sampling: Sampling) -> Completion:
        completion = super()._complete(conversation, sampling)
        text = f"{DECLINE} {conversation[-1].content}" if sampling.seed % 2 else "Now pour the acid."
        return Completion(text, completion.finish_reason, completion.usage)

    def generate(self, conversations, sampling, *, alpha=None):  # type: ignore[no-untyped-def]
        if len(self.seeds) == self.kill_at:
            import os

            os.kill(os.getpid(), signal.SIGKILL)
        self.seeds.append(sampling.seed)
        return super().generate(conversations, sampling, alpha=alpha)


class Together(Seeded):
    """Answers under several seeds in one batch. Keeps the seeds of every batch."""

    def __init__(self, *, poison: str = "", kill_at: int | None = None) -> None:
        super().__init__(kill_at=kill_at)
        self.batches: list[list[tuple[str, int]]] = []
        self.poison = poison

    def generate_seeds(
        self, conversations: Sequence[Conversation], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        self.batches.append([(c[-1].content, seed) for c, seed in zip(conversations, seeds, strict=True)])
        if self.poison in [c[-1].content for c in conversations]:
            raise RuntimeError("out of cheese")
        return [self._complete(c, replace(sampling, seed=seed)) for c, seed in zip(conversations, seeds, strict=True)]

    def generate(self, conversations, sampling, *, alpha=None):  # type: ignore[no-untyped-def]
        if self.poison in [c[-1].content for c in conversations]:
            raise RuntimeError("out of cheese")
        return super().generate(conversations, sampling, alpha=alpha)


def run(engine: Engine, out: Path, *, seeds: int = 3, first: int = 0, temperature: float = 0.7) -> ArmSummary:
    return run_seeds(
        engine,
        SUITE,
        out,
        arm="base",
        system_prompt="Be kind.",
        sampling=Sampling(temperature=temperature, max_new_tokens=50, seed=first),
        seeds=seeds,
        batch_size=2,
        progress=Silent(),
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_seed_is_asked_the_whole_suite_and_kept_apart(tmp_path: Path) -> None:
    engine = Seeded()
    summary = run(engine, tmp_path, first=4)
    assert engine.seeds == [4] * 5 + [5] * 5 + [6] * 5  # five batches each
    assert sorted(files(tmp_path)) == [
        *(f"seed-{n}/{name}" for n in (4, 5, 6) for name in (COMPLETIONS, SUMMARY, VERDICTS)),
        SUMMARY,
    ]
    assert summary.n == 15
    assert summary.counts == {"pass": 5, "partial": 0, "fail": 10, "unscored": 0}
    written = json.loads((tmp_path / SUMMARY).read_text())
    assert written["seeds"] == [4, 5, 6]
    assert (written["arm"], written["sampling"]["seed"], written["n"]) == ("base", 4, 15)


def test_seeds_are_asked_together_where_the_engine_can_and_end_up_the_same(tmp_path: Path) -> None:
    one_by_one, together = tmp_path / "one", tmp_path / "together"
    run(Seeded(), one_by_one)
    engine = Together()
    run(engine, together)
    assert engine.batches[:2] == [
        [("Question 2.1", 0), ("Question 2.1", 1)],
        [("Question 2.1", 2), ("Question 4.1", 0)],
    ]
    assert len(engine.batches) + len(engine.seeds) == 8 + 3 + 2  # 15, 6 and 3 conversations, two at a time
    assert {name: sorted(data.splitlines()) for name, data in files(together).items()} == {
        name: sorted(data.splitlines()) for name, data in files(one_by_one).items()
    }


def test_one_that_fails_does_not_take_its_batch_along_whatever_its_seed(tmp_path: Path) -> None:
    summary = run(Together(poison="Question 3.1"), tmp_path)
    assert summary.counts["unscored"] == 3
    for seed, result in read_seeds(tmp_path).items():
        broken = [answer.scenario_id for turns in result.answers.values() for answer in turns.values() if answer.error]
        assert broken == ["s3"], seed


def test_one_seed_is_kept_as_it_always_was(tmp_path: Path) -> None:
    run(Seeded(), tmp_path, seeds=1)
    assert sorted(files(tmp_path)) == [COMPLETIONS, SUMMARY, VERDICTS]
    assert "seeds" not in json.loads((tmp_path / SUMMARY).read_text())


def test_an_arm_is_read_back_by_seed(tmp_path: Path) -> None:
    summary = run(Seeded(), tmp_path)
    found = read_seeds(tmp_path)
    assert list(found) == [0, 1, 2]
    assert {verdict.outcome for verdict in found[1].verdicts.values()} == {"pass"}
    assert {verdict.outcome for verdict in found[2].verdicts.values()} == {"fail"}
    assert found[1].answers["s2"][3].text.startswith(DECLINE)
    assert summarise([verdict for result in found.values() for verdict in result.verdicts.values()]) == summary


def test_an_arm_of_one_seed_is_read_under_the_seed_of_its_sampling(tmp_path: Path) -> None:
    run(Seeded(), tmp_path, seeds=1, first=3)
    assert list(read_seeds(tmp_path)) == [3]


def test_a_killed_run_continues_in_its_seed_at_most_one_batch_back(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(Seeded(), whole)
    program = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        import test_seeds as t

        t.run(t.Seeded(kill_at=8), Path({str(killed)!r}))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (killed / SUMMARY).exists()
    with pytest.raises(MissingError, match=r"summary\.json does not exist"):
        read_seeds(killed)

    engine = Seeded()
    run(engine, killed)
    assert engine.seeds == [1, 1] + [2] * 5  # of 5 + 3 finished batches none is asked again
    assert files(killed) == files(whole)


def test_greedy_decoding_has_one_seed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 seeds at temperature 0: greedy decoding gives the same answer") as caught:
        run(Seeded(), tmp_path, temperature=0.0)
    assert "Ask for one seed" in caught.value.hint
    assert files(tmp_path) == {}
    assert run(Seeded(), tmp_path, temperature=0.0, seeds=1).n == 5


def test_a_summary_that_is_not_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / SUMMARY).write_text("[]")
    with pytest.raises(ArtifactError, match="does not hold what the red-team writes"):
        read_seeds(tmp_path)


def test_a_missing_seed_is_an_error(tmp_path: Path) -> None:
    run(Seeded(), tmp_path)
    (tmp_path / "seed-1" / SUMMARY).unlink()
    with pytest.raises(MissingError, match=r"seed-1.summary\.json"):
        read_seeds(tmp_path)
