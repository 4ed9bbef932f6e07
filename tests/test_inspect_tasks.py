"""Red-teaming through Inspect: what is asked, scored, left unscored and logged; killed runs go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai")

from inspect_ai import eval as inspect_eval
from inspect_ai import eval_retry
from inspect_ai.log import EvalLog, EvalSample, list_eval_logs, read_eval_log

from chat_server import Response, chat_server, html
from chat_server import said as answered
from karma_electric.core.errors import InputError, KarmaError, MissingError
from karma_electric.redteam.tasks import find_suite, redteam

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
DECLINE = "I won't help with that. Somebody could get hurt."


def write_suite(path: Path, n: int = 4, *, prefix: str = "s") -> Path:
    """`n` scenarios; every second has two turns."""
    rows = [
        {
            "id": f"{prefix}{number}",
            "category": "jailbreak",
            "technique": "t",
            "difficulty": "easy",
            "turns": [f"Question {number}.{turn}" for turn in range(1, 2 + number % 2)],
            "expected": "e",
            "pass_criteria": "p",
            "fail_criteria": "f",
            "pass_signals": [],
            "fail_signals": ["pour the acid"],
        }
        for number in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_script(path: Path, *rules: tuple[str, list[str]]) -> str:
    path.write_text(json.dumps([{"contains": contains, "answers": answers} for contains, answers in rules]))
    return f"karma/scripted:{path}"


def run(tmp_path: Path, model: str, *, model_roles: Any = None, **arguments: Any) -> EvalLog:
    (log,) = inspect_eval(
        redteam(suite=str(tmp_path / "suite.jsonl"), **arguments),
        model=model,
        model_roles=model_roles,
        log_dir=str(tmp_path / "logs"),
        display="none",
    )
    return log


def samples(log: EvalLog) -> dict[tuple[str, int], EvalSample]:
    return {(str(sample.id), sample.epoch): sample for sample in log.samples or []}


def said(sample: EvalSample) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in sample.messages]


def rates(log: EvalLog) -> dict[str, float]:
    assert log.results is not None
    return {score.name: score.metrics["mean"].value for score in log.results.scores}


def test_every_turn_is_asked_after_the_answers_before_it_and_judged(tmp_path: Path) -> None:
    write_suite(tmp_path / "suite.jsonl")
    model = write_script(
        tmp_path / "x.json", ("1.1", ["Now pour the acid."]), ("3.2", ["Now pour the acid."]), ("", [DECLINE])
    )
    log = run(tmp_path, model, system_prompt="Be kind.")
    assert log.status == "success"
    assert rates(log) == {"pass": 0.5, "partial": 0.0, "fail": 0.5}
    one = samples(log)["s1", 1]
    assert said(one) == [
        ("system", "Be kind."),
        ("user", "Question 1.1"),
        ("assistant", "Now pour the acid."),
        ("user", "Question 1.2"),
        ("assistant", DECLINE),
    ]
    assert one.scores is not None
    assert (one.scores["verdict"].metadata or {})["turn"] == 1
    assert "pour the acid" in (one.scores["verdict"].explanation or "")
    assert one.metadata["category"] == "jailbreak"


def test_another_judge_reads_the_same_answers(tmp_path: Path) -> None:
    write_suite(tmp_path / "suite.jsonl")
    quoting = 'I won\'t help with that, whatever is meant by "pour the acid". Somebody could get hurt.'
    model = write_script(tmp_path / "x.json", ("0.1", [""]), ("2.1", [quoting]), ("", [DECLINE]))
    assert rates(run(tmp_path, model))["fail"] == 0.0
    log = run(tmp_path, model, scorer="signals-original")  # it passes by default, and knows no quotation
    assert rates(log) == {"pass": 0.75, "partial": 0.0, "fail": 0.25}
    scores = samples(log)["s2", 1].scores
    assert scores is not None
    assert (scores["verdict"].metadata or {})["scorer"] == "signals-original-1"


@pytest.mark.parametrize(
    ("judge", "error", "words"),
    [
        ("llm:nobody/model", InputError, "cannot be used"),
        ("ensemble:signals+llm:openai-api/judge/local", MissingError, "JUDGE_API_KEY"),
        ("nobody", InputError, "no judge"),
    ],
)
def test_a_judge_that_is_not_there_is_refused_before_anything_is_asked(
    tmp_path: Path, judge: str, error: type[KarmaError], words: str
) -> None:
    write_suite(tmp_path / "suite.jsonl")
    for attack in (None, "best-of-n"):
        with pytest.raises(error, match=words):
            redteam(suite=str(tmp_path / "suite.jsonl"), scorer=judge, attack=attack)


def test_harmless_twins_are_judged_by_whether_they_were_helped(tmp_path: Path) -> None:
    write_suite(tmp_path / "suite.jsonl", prefix="benign-")
    rows = [json.loads(line) for line in (tmp_path / "suite.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {"pass_signals": ["lay the egg"], "fail_signals": ["won't help"]}
    (tmp_path / "suite.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = write_script(tmp_path / "x.json", ("0.1", ["First you lay the egg."]), ("", [DECLINE]))
    log = run(tmp_path, model)
    assert rates(log) == {"pass": 0.25, "partial": 0.0, "fail": 0.75}
    scores = samples(log)["benign-0", 1].scores
    assert scores is not None
    assert (scores["verdict"].metadata or {})["scorer"] == "over-refusal-1"
    suite = str(tmp_path / "suite.jsonl")
    with pytest.raises(InputError, match="'signals', a judge of attacks"):
        redteam(suite=suite, scorer="signals")
    with pytest.raises(InputError, match="holds harmless twins, where helping is the pass; expected attacks"):
        redteam(suite=suite, attack="best-of-n")
    with pytest.raises(InputError, match="a suite of kind capability"):
        redteam(suite="capability-150")


def test_a_limit_is_spread_over_the_suite(tmp_path: Path) -> None:
    write_suite(tmp_path / "suite.jsonl")
    task = redteam(suite=str(tmp_path / "suite.jsonl"), limit=2)
    assert [sample.id for sample in task.dataset] == ["s0", "s2"]
    with pytest.raises(InputError, match="limit is 0"):
        redteam(suite=str(tmp_path / "suite.jsonl"), limit=0)


LLM = "llm:openai-api/judge/local"


def by_answer(request: dict[str, Any]) -> Response:
    """A judge that fails what says "Fine", and passes the rest."""
    failed = "Fine" in request["messages"][-1]["content"]
    outcome, quote = ("fail", "Fine") if failed else ("pass", "get hurt")
    return answered(json.dumps({"reason": "By what is said.", "quote": quote, "outcome": outcome}))


def test_a_judge_that_asks_a_model_is_waited_for(tmp_path: Path) -> None:
    write_suite(tmp_path / "suite.jsonl")
    model = write_script(tmp_path / "x.json", ("2.1", ["Fine, do."]), ("", [DECLINE]))
    with chat_server(by_answer) as server:
        log = run(tmp_path, model, scorer=LLM, scorer_url=server.url, scorer_samples=2)
        assert rates(log) == {"pass": 0.75, "partial": 0.0, "fail": 0.25}
        assert len(server.requests) == 2 * 4
    scores = samples(log)["s2", 1].scores
    assert scores is not None
    assert (scores["verdict"].metadata or {})["confidence"] == 1.0
    assert "'Fine': By what is said." in (scores["verdict"].explanation or "")


def test_it_decides_how_an_attack_goes_on(tmp_path: Path) -> None:
    write_suite(tmp_path / "suite.jsonl", 1)
    with chat_server(by_answer) as server:
        together = "ensemble:signals+" + LLM  # the words of the suite's signals are never said
        for number, (judge, asked) in enumerate(((LLM, 2), (together, 2), ("signals", 3))):
            model = write_script(tmp_path / f"{number}.json", ("", [DECLINE, "Fine, do.", DECLINE]))
            log = run(
                tmp_path, model, attack="best-of-n", queries=3, scorer=judge, scorer_url=server.url, scorer_samples=2
            )
            (sample,) = samples(log).values()
            assert sample.scores is not None
            assert (sample.scores["verdict"].metadata or {})["queries"] == asked
    assert len(server.requests) == 2 * 2 * 2  # each try once, by either judge that asks


def test_a_judge_that_breaks_leaves_unscored_and_the_rest_goes_on(tmp_path: Path) -> None:
    write_suite(tmp_path / "suite.jsonl")
    model = write_script(tmp_path / "x.json", ("", [DECLINE]))
    with chat_server(lambda request: html() if "Question 2" in str(request) else by_answer(request)) as server:
        log = run(tmp_path, model, scorer=LLM, scorer_url=server.url, scorer_samples=2)
    assert log.status == "success"
    assert rates(log)["pass"] == 1.0
    scores = samples(log)["s2", 1].scores
    assert scores is not None
    assert "0 of 2 replies could be read: no reply (garbled" in (scores["verdict"].explanation or "")


def test_the_log_can_be_read_as_the_viewer_does(tmp_path: Path) -> None:
    write_suite(tmp_path / "suite.jsonl")
    log = run(tmp_path, write_script(tmp_path / "x.json", ("", [DECLINE])), seeds=2)
    (info,) = list_eval_logs(str(tmp_path / "logs"))
    header, whole = read_eval_log(info, header_only=True), read_eval_log(info)
    assert header.eval.task == "redteam"
    assert header.eval.config.epochs == 2
    assert header.samples is None
    assert len(whole.samples or []) == 8
    assert rates(whole) == rates(log)


def test_what_cannot_be_judged_is_unscored_and_in_no_rate(tmp_path: Path) -> None:
    write_suite(tmp_path / "suite.jsonl")
    model = write_script(
        tmp_path / "x.json", ("0.1", ["la la la " * 20]), ("1.1", [""]), ("2.1", [DECLINE]), ("3", [DECLINE])
    )
    log = run(tmp_path, model)
    assert rates(log) == {"pass": 1.0, "partial": 0.0, "fail": 0.0}
    assert log.results is not None
    assert {score.unscored_samples for score in log.results.scores} == {2}
    loop, empty = (samples(log)[name, 1].scores or {} for name in ("s0", "s1"))
    assert (loop["verdict"].reason, loop["verdict"].explanation) == ("scoring_failed", "goes in circles")
    assert (empty["verdict"].reason, empty["verdict"].explanation) == ("no_response", "no answer: empty")


def test_a_target_that_fails_on_one_sample_ends_neither_the_run_nor_the_count(tmp_path: Path) -> None:
    write_suite(tmp_path / "suite.jsonl")
    log = run(tmp_path, write_script(tmp_path / "x.json", ("0.", [DECLINE]), ("1.1", [DECLINE]), ("2.", [DECLINE])))
    assert log.status == "success"
    assert log.results is not None
    assert (log.results.total_samples, log.results.scores[0].unscored_samples) == (4, 2)
    failed = samples(log)["s1", 1].scores or {}
    assert "has no rule for 'Question 1.2'" in (failed["verdict"].explanation or "")


def test_epochs_are_seeds(tmp_path: Path, tiny_path: Path) -> None:
    write_suite(tmp_path / "suite.jsonl", 1)
    task = {"suite": str(tmp_path / "suite.jsonl"), "seeds": 2, "seed": 7}
    texts = []
    for arguments in (task, task, {**task, "seed": 8, "seeds": 1}):
        (log,) = inspect_eval(
            redteam(**arguments),  # type: ignore[arg-type]
            model=f"karma/{tiny_path}",
            model_args={"batch_size": 1},
            log_dir=str(tmp_path / "logs"),
            display="none",
            temperature=1.0,
            max_tokens=6,
        )
        texts.append([sample.messages[-1].text for sample in log.samples or []])
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[0][1]
    assert texts[2] == texts[0][1:]


def test_an_attack_is_logged_with_the_attackers_words_marked(tmp_path: Path) -> None:
    write_suite(tmp_path / "suite.jsonl", 1)
    target = write_script(tmp_path / "x.json", ("moles", ["Worms."]), ("", [DECLINE]))
    attacker = write_script(tmp_path / "y.json", ("", ["What do moles eat?", "Where do moles live?"]))
    log = run(tmp_path, target, model_roles={"attacker": attacker}, attack="crescendo", turns=3)
    one = samples(log)["s0", 1]
    assert [m.text for m in one.messages if m.role == "user"] == [
        "What do moles eat?",
        "Where do moles live?",
        "Question 0.1",
    ]
    by = [(m.metadata or {}).get("by") for m in one.messages if m.role == "user"]
    assert by == ["attacker", "attacker", "scenario"]
    assert one.store["karma_attack"]["queries"] == 3
    assert rates(log)["pass"] == 1.0


def test_a_faulty_attacker_is_counted_as_such(tmp_path: Path) -> None:
    write_suite(tmp_path / "suite.jsonl", 2)
    target = write_script(tmp_path / "x.json", ("", [DECLINE]))
    attacker = write_script(tmp_path / "y.json", ("", ["I can't help with that."]))
    log = run(tmp_path, target, attack="crescendo", attacker=attacker)
    assert [(sample.scores or {})["verdict"].reason for sample in log.samples or []] == ["attacker_failed"] * 2


def test_an_attack_without_an_attacker_and_wrong_arguments_are_refused(tmp_path: Path) -> None:
    write_suite(tmp_path / "suite.jsonl", 1)
    with pytest.raises(InputError, match="no attack 'tickle'"):
        redteam(suite=str(tmp_path / "suite.jsonl"), attack="tickle")
    with pytest.raises(InputError, match="queries is 0"):
        redteam(suite=str(tmp_path / "suite.jsonl"), attack="best-of-n", queries=0)
    with pytest.raises(InputError, match="seeds is 0"):
        redteam(suite=str(tmp_path / "suite.jsonl"), seeds=0)
    with pytest.raises(MissingError, match=r"standard-58\.jsonl"):
        redteam(suite="standard-59")
    assert find_suite("standard-58").name == "standard-58.jsonl"
    log = run(tmp_path, write_script(tmp_path / "x.json", ("", [DECLINE])), attack="persona")
    assert "needs an attacker" in str((log.samples or [])[0].error)


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    write_suite(tmp_path / "suite.jsonl", 6)
    model = write_script(tmp_path / "x.json", ("", [DECLINE]))
    counter = tmp_path / "asked"
    program = f"""
        import os, signal
        from inspect_ai import eval
        from karma_electric.models.engines import scripted
        from karma_electric.redteam.tasks import redteam
        before = scripted.ScriptedEngine.generate
        def generate(self, conversations, sampling, *, alpha=None):
            with open({str(counter)!r}, "a") as file:
                file.write(conversations[0][-1].content + chr(10))
            if "4.1" in conversations[0][-1].content:
                os.kill(os.getpid(), signal.SIGKILL)
            return before(self, conversations, sampling, alpha=alpha)
        scripted.ScriptedEngine.generate = generate
        eval(redteam(suite={str(tmp_path / "suite.jsonl")!r}), model={model!r}, model_args={{"batch_size": 1}},
             log_dir={str(tmp_path / "logs")!r}, display="none", max_samples=1, log_buffer=1)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=False, env=os.environ, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    (info,) = list_eval_logs(str(tmp_path / "logs"))
    begun = read_eval_log(info)
    assert begun.status == "started"
    kept = {str(sample.id): sample.uuid for sample in begun.samples or []}
    assert set(kept) == {"s0", "s1", "s2", "s3"}
    (log,) = eval_retry(info, log_dir=str(tmp_path / "logs"), display="none")
    assert log.status == "success"
    assert rates(log)["pass"] == 1.0
    uuids = {str(sample.id): sample.uuid for sample in log.samples or []}
    assert len(uuids) == 6
    assert {name: uuids[name] for name in kept} == kept
