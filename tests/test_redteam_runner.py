"""Running an arm: batches, histories, resuming after a kill, and engines that fail."""

import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from karma_electric.core.errors import ArtifactError, MissingError
from karma_electric.core.messages import Conversation, system, user
from karma_electric.core.progress import Silent
from karma_electric.models.engines.protocol import Completion, Engine, Sampling
from karma_electric.models.engines.scripted import ScriptedEngine
from karma_electric.redteam.runner import COMPLETIONS, SUMMARY, VERDICTS, read_verdicts, run_arm
from karma_electric.redteam.scenario import Scenario
from karma_electric.redteam.stats import ArmSummary

DECLINE = "I won't do that. Someone could get hurt."


def scenario(number: int, *, turns: int = 1) -> Scenario:
    return Scenario(
        id=f"s{number}",
        category="jailbreak",
        technique="t",
        difficulty="easy",
        turns=tuple(f"Question {number}.{turn}" for turn in range(1, turns + 1)),
        expected="e",
        pass_criteria="p",
        fail_criteria="f",
        pass_signals=(),
        fail_signals=("pour the acid",),
    )


SUITE = [scenario(1), scenario(2, turns=3), scenario(3), scenario(4, turns=2), scenario(5)]


def answer(conversation: Conversation) -> str:
    return f"Answer to {conversation[-1].content}. {DECLINE}"


class Notes(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.updates: list[tuple[int, int]] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def update(self, done: int, total: int, note: str = "") -> None:
        self.updates.append((done, total))


class Failing(ScriptedEngine):
    """Raises whenever a conversation ends with one of the `poison` questions."""

    def __init__(self, poison: Sequence[str], error: BaseException | None = None) -> None:
        super().__init__(answer)
        self.poison = poison
        self.error = error if error is not None else RuntimeError("out of cheese")

    def generate(
        self, conversations: Sequence[Conversation], sampling: Sampling, *, alpha: float | None = None
    ) -> list[Completion]:
        completions = super().generate(conversations, sampling, alpha=alpha)
        if any(conversation[-1].content in self.poison for conversation in conversations):
            raise self.error
        return completions


def run(engine: Engine, out: Path, suite: Sequence[Scenario] = SUITE, *, notes: Notes | None = None) -> ArmSummary:
    return run_arm(
        engine,
        suite,
        out,
        arm="base",
        system_prompt="Be kind.",
        sampling=Sampling(max_new_tokens=50),
        batch_size=2,
        progress=notes or Notes(),
    )


def completions(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / COMPLETIONS).read_text().splitlines()]


def asked(engine: ScriptedEngine) -> list[list[str]]:
    return [[conversation[-1].content for conversation in batch] for batch in engine.calls]


# Asking


def test_turns_are_asked_in_batches_across_scenarios_those_that_go_on_first(tmp_path: Path) -> None:
    engine = ScriptedEngine(answer)
    run(engine, tmp_path)
    assert asked(engine) == [
        ["Question 2.1", "Question 4.1"],
        ["Question 1.1", "Question 3.1"],
        ["Question 5.1"],
        ["Question 2.2", "Question 4.2"],
        ["Question 2.3"],
    ]


def test_later_turns_carry_the_system_prompt_and_their_own_history(tmp_path: Path) -> None:
    engine = ScriptedEngine(answer)
    run(engine, tmp_path)
    [[conversation]] = engine.calls[-1:]
    assert [(message.role, message.content.split(".")[0]) for message in conversation] == [
        ("system", "Be kind"),
        ("user", "Question 2"),
        ("assistant", "Answer to Question 2"),
        ("user", "Question 2"),
        ("assistant", "Answer to Question 2"),
        ("user", "Question 2"),
    ]
    assert conversation[4].content.startswith("Answer to Question 2.2")


def test_an_empty_system_prompt_is_sent_as_an_empty_message(tmp_path: Path) -> None:
    engine = ScriptedEngine(answer)
    run_arm(
        engine,
        SUITE[:1],
        tmp_path,
        arm="base",
        system_prompt="",
        sampling=Sampling(),
        batch_size=1,
        progress=Silent(),
    )
    assert engine.calls[0][0][0] == system("")


def test_every_turn_is_kept_with_its_answer(tmp_path: Path) -> None:
    run(ScriptedEngine(answer), tmp_path)
    kept = {(line["scenario_id"], line["turn"]): line for line in completions(tmp_path)}
    assert len(kept) == 8
    assert kept["s2", 3]["text"] == answer([user("Question 2.3")])
    assert kept["s2", 3]["finish_reason"] == "stop"
    assert kept["s2", 3]["completion_tokens"] > 0


# Results


def test_an_arm_ends_with_verdicts_in_suite_order_and_a_summary(tmp_path: Path) -> None:
    summary = run(ScriptedEngine(answer), tmp_path)
    verdicts = read_verdicts(tmp_path)
    assert [verdict.scenario_id for verdict in verdicts] == ["s1", "s2", "s3", "s4", "s5"]
    written = json.loads((tmp_path / SUMMARY).read_text())
    assert (written["arm"], written["engine"], written["system_prompt"]) == ("base", "scripted", "Be kind.")
    assert written["sampling"]["max_new_tokens"] == 50
    assert written["counts"] == summary.counts == {"pass": 5, "partial": 0, "fail": 0, "unscored": 0}


def test_a_failing_turn_in_the_middle_of_a_conversation_fails_its_scenario(tmp_path: Path) -> None:
    run(ScriptedEngine(lambda c: "Now pour the acid." if c[-1].content == "Question 2.2" else answer(c)), tmp_path)
    verdicts = {verdict.scenario_id: verdict for verdict in read_verdicts(tmp_path)}
    assert (verdicts["s2"].outcome, verdicts["s2"].turn) == ("fail", 2)
    assert verdicts["s4"].outcome == "pass"


def test_line_breaks_of_every_kind_survive_in_the_files(tmp_path: Path) -> None:
    text = f"a\u2028b\x85c\rd\n{DECLINE}"
    run(ScriptedEngine(lambda _: text), tmp_path, SUITE[:1])
    run(ScriptedEngine(["unused"]), tmp_path, SUITE[:1])
    assert json.loads((tmp_path / COMPLETIONS).read_bytes())["text"] == text
    assert len(read_verdicts(tmp_path)) == 1


def test_half_a_surrogate_pair_costs_neither_its_answer_nor_the_batch(tmp_path: Path) -> None:
    summary = run(ScriptedEngine(lambda _: "No \ud83d \ud83d\ude00 \ud83d"), tmp_path)
    assert {row["text"] for row in completions(tmp_path)} == {"No \ufffd \U0001f600 \ufffd"}
    assert summary.n == len(SUITE)
    failed = tmp_path / "failed"
    run(Failing(["Question 1.1"], RuntimeError("the reply was \ude00")), failed)
    assert [row["error"] for row in completions(failed) if row["error"]] == ["RuntimeError: the reply was \ufffd"]


def test_an_arm_that_has_not_finished_has_no_verdicts(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"summary\.json does not exist"):
        read_verdicts(tmp_path)


# Continuing


def test_a_killed_run_loses_at_most_one_batch_and_ends_like_one_that_was_not(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(ScriptedEngine(answer), whole)
    program = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        import test_redteam_runner as t

        class Killed(t.ScriptedEngine):
            def generate(self, conversations, sampling, *, alpha=None):
                if len(self.calls) == 3:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().generate(conversations, sampling, alpha=alpha)

        t.run(Killed(t.answer), Path({str(killed)!r}))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(completions(killed)) == 5  # three whole batches
    assert not (killed / SUMMARY).exists()

    engine = ScriptedEngine(answer)
    run(engine, killed)
    assert asked(engine) == [["Question 2.2", "Question 4.2"], ["Question 2.3"]]
    for name in (COMPLETIONS, VERDICTS, SUMMARY):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("kept_bytes", [1, 40, -1])
def test_a_torn_last_line_is_dropped_and_asked_again(tmp_path: Path, kept_bytes: int) -> None:
    run(ScriptedEngine(answer), tmp_path)
    path = tmp_path / COMPLETIONS
    before = path.read_bytes()
    *whole, last = before.splitlines(keepends=True)
    path.write_bytes(b"".join(whole) + last[:kept_bytes])

    engine = ScriptedEngine(answer)
    run(engine, tmp_path)
    assert asked(engine) == [["Question 2.3"]]
    assert path.read_bytes() == before


def test_of_those_that_go_on_alike_the_longest_come_first(tmp_path: Path) -> None:
    engine = ScriptedEngine(answer)
    suite = [replace(scenario(number), turns=("word " * number,)) for number in (2, 4, 1, 3)]
    run(engine, tmp_path, suite)
    assert [len(text.split()) for batch in asked(engine) for text in batch] == [4, 3, 2, 1]


def test_a_finished_run_asks_nothing_again(tmp_path: Path) -> None:
    run(ScriptedEngine(answer), tmp_path)
    engine = ScriptedEngine(answer)
    run(engine, tmp_path)
    assert engine.calls == []


@pytest.mark.parametrize("line", ["{}", "not json", '{"scenario_id": "s1"}'])
def test_damage_inside_the_file_is_an_error_with_its_line(tmp_path: Path, line: str) -> None:
    run(ScriptedEngine(answer), tmp_path)
    path = tmp_path / COMPLETIONS
    path.write_text(line + "\n" + path.read_text())
    with pytest.raises(ArtifactError, match=r"completions.jsonl line 1 is not an answer"):
        run(ScriptedEngine(answer), tmp_path)


def test_answers_to_another_suite_are_an_error(tmp_path: Path) -> None:
    run(ScriptedEngine(answer), tmp_path)
    with pytest.raises(ArtifactError, match="line 1 answers s2 turn 1, which this suite does not ask"):
        run(ScriptedEngine(answer), tmp_path, [SUITE[0], *SUITE[2:]])


# Failing engines


def test_one_failing_scenario_is_unscored_with_its_reason_and_the_rest_go_on(tmp_path: Path) -> None:
    notes = Notes()
    summary = run(Failing(["Question 3.1"]), tmp_path, notes=notes)
    assert summary.counts == {"pass": 4, "partial": 0, "fail": 0, "unscored": 1}
    verdict = read_verdicts(tmp_path)[2]
    assert (verdict.scenario_id, verdict.outcome, verdict.turn) == ("s3", "unscored", 1)
    assert verdict.evidence == "no answer: RuntimeError: out of cheese"
    assert notes.said == ["base: s3 turn 1 failed and is unscored: RuntimeError: out of cheese"]
    assert json.loads((tmp_path / SUMMARY).read_text())["engine_failures"] == 1


def test_a_failed_batch_is_asked_again_one_by_one(tmp_path: Path) -> None:
    engine = Failing(["Question 3.1"])
    run(engine, tmp_path)
    assert asked(engine)[1:4] == [["Question 1.1", "Question 3.1"], ["Question 1.1"], ["Question 3.1"]]


def test_turns_after_a_failed_one_are_not_asked(tmp_path: Path) -> None:
    engine, notes = Failing(["Question 2.2"]), Notes()
    run(engine, tmp_path, notes=notes)
    assert ["Question 2.3"] not in asked(engine)
    assert read_verdicts(tmp_path)[1].outcome == "unscored"
    assert notes.updates[-1] == (8, 8)


def test_a_scenario_failed_before_its_engine_did_stays_failed(tmp_path: Path) -> None:
    class Acid(Failing):
        def _complete(self, conversation: Conversation, sampling: Sampling) -> Completion:
            completion = super()._complete(conversation, sampling)
            return Completion("Now pour the acid.", completion.finish_reason, completion.usage)

    run(Acid(["Question 2.2"]), tmp_path)
    verdict = read_verdicts(tmp_path)[1]
    assert (verdict.outcome, verdict.turn) == ("fail", 1)


def test_failed_turns_are_tried_again_when_the_run_is_repeated(tmp_path: Path) -> None:
    run(Failing(["Question 3.1"]), tmp_path)
    engine = ScriptedEngine(answer)
    assert run(engine, tmp_path).counts["pass"] == 5
    assert asked(engine) == [["Question 3.1"]]


def test_an_engine_that_loses_an_answer_has_failed(tmp_path: Path) -> None:
    class Forgetful(ScriptedEngine):
        def generate(
            self, conversations: Sequence[Conversation], sampling: Sampling, *, alpha: float | None = None
        ) -> list[Completion]:
            return super().generate(conversations, sampling, alpha=alpha)[:1]

    assert run(Forgetful(answer), tmp_path).counts["pass"] == 5  # each batch of two is asked again one by one
    assert len(completions(tmp_path)) == 8


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_an_interrupt_or_exhausted_memory_stops_the_run(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        run(Failing(["Question 5.1"], error), tmp_path)
    assert [line["scenario_id"] for line in completions(tmp_path)] == ["s2", "s4", "s1", "s3"]
