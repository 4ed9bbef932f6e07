"""Any Inspect model as an arm, and attacks on arms, through the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai")

import tiny
from chat_server import ChatServer, Response, chat_server, refused, said
from karma_electric import attacking
from karma_electric.core.errors import MissingError
from karma_electric.core.messages import system, user
from karma_electric.models.asking import Endpoint, NoAnswer
from karma_electric.models.engines.protocol import Sampling
from karma_electric.redteam.seeds import read_seeds
from karma_electric.steer.spec import save_spec
from karma_electric.targets import AskedTarget, slug, target_input
from test_chain import write_workplace
from test_cli import Ended, karma_here
from test_inspect_tasks import DECLINE, write_script, write_suite
from test_redteam_sweep import write_run

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
Karma = Callable[..., Ended]


@pytest.fixture
def karma(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_path: Path
) -> Karma:
    """`karma redteam ...` in a folder with the recipe tiny.toml and the suite suite.jsonl of four scenarios."""
    monkeypatch.chdir(tmp_path)
    write_workplace(tmp_path, tiny_path)
    write_suite(tmp_path / "suite.jsonl")
    return lambda *words: karma_here(monkeypatch, capsys, "redteam", *words)


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Last user turns of everything that a scripted engine is asked from now on."""
    from karma_electric.models.engines.scripted import ScriptedEngine

    asked: list[str] = []
    before = ScriptedEngine.generate

    def generate(self: ScriptedEngine, conversations: Any, sampling: Any, *, alpha: Any = None) -> Any:
        asked.extend(conversation[-1].content for conversation in conversations)
        return before(self, conversations, sampling, alpha=alpha)

    monkeypatch.setattr(ScriptedEngine, "generate", generate)
    return asked


# the target as an engine


def test_a_batch_is_answered_in_order_and_one_failure_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_script(tmp_path / "x.json", ("a", ["Apples."]), ("b", ["Bread."]))
    asked = calls(monkeypatch)
    good = [[system(""), user(text)] for text in ("b", "a")]
    bad = [system(""), user("?")]
    with AskedTarget(Endpoint(model, model_args={"batch_size": 1})) as target:
        assert [c.text for c in target.generate(good, Sampling())] == ["Bread.", "Apples."]
        with pytest.raises(NoAnswer, match="no rule for '\\?'"):
            target.generate([good[0], bad, good[1]], Sampling(seed=1))
        before = len(asked)
        assert target.generate([good[1]], Sampling(seed=1))[0].text == "Apples."
        assert len(asked) == before


def test_a_target_that_is_gone_ends_the_run_instead_of_filling_it_with_failures(tmp_path: Path) -> None:
    model = write_script(tmp_path / "x.json", ("a", ["Apples."]))
    with AskedTarget(Endpoint(model, retries=0)) as target, pytest.raises((MissingError, NoAnswer)) as found:
        target.generate([[user("?")] for _ in range(8)], Sampling())
    assert "no rule" in str(found.value)


def test_names_of_models_become_names_of_folders() -> None:
    assert slug("openai-api/x/Llama-3.1:8B instruct") == "openai-api-x-llama-3.1-8b-instruct"


# karma redteam run --target


def test_a_target_becomes_an_arm_that_needs_no_run_and_says_what_is_unscored(karma: Karma, tmp_path: Path) -> None:
    model = write_script(tmp_path / "x.json", ("0.", ["la la la " * 20]), ("1.2", [""]), ("", [DECLINE]))
    words = ("run", "tiny.toml", "--target", model, "--out", "others", "--set", "redteam.max_new_tokens=60")
    ended = karma(*words)
    assert ended.code == 0, ended.err
    (arm,) = (tmp_path / "others" / "redteam").iterdir()
    summary = json.loads((arm / "summary.json").read_text())
    assert summary["counts"] == {"pass": 2, "partial": 0, "fail": 0, "unscored": 2}
    assert summary["engine"] == model
    assert "unscored: 1 goes in circles; 1 empty" in ended.out
    assert karma(*words).code == 0
    (tmp_path / "x.json").write_text('[{"answers": ["Another."]}]')
    changed = karma(*words)
    assert changed.code == 2
    assert "target" in changed.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--target", "nobody"), 2, "no Inspect model name"),
        (("--target", "karma/scripted:nowhere.json"), 3, "nowhere.json does not exist"),
        (("--target", "karma/x", "--arms", "base"), 2, "--target and --arms are both given"),
        (("--target-arg", "a=1"), 2, "--target-arg is given without --target"),
    ],
)
def test_a_target_that_cannot_be_is_refused(karma: Karma, words: tuple[str, ...], code: int, said: str) -> None:
    ended = karma("run", "tiny.toml", *words)
    assert ended.code == code
    assert said in ended.err


def test_another_judge_reads_what_a_target_said_and_capability_stands_beside(
    karma: Karma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = (Path(__file__).parent.parent / "suites" / "capability-150.jsonl").read_text().splitlines()[:2]
    (tmp_path / "items.jsonl").write_text("\n".join(items) + "\n")
    model = write_script(tmp_path / "x.json", ("0.1", [""]), ("", [DECLINE]))
    words = ("run", "tiny.toml", "--target", model, "--out", "others", "--beside", "items.jsonl", "--json")
    first = json.loads(karma(*words).out)
    asked = calls(monkeypatch)
    ended = karma(*words, "--scorer", "signals-original", "--force")
    assert ended.code == 0, ended.err
    assert asked == []
    other = json.loads(ended.out)
    name = slug(model)
    assert first["redteam"][name]["counts"] == {"pass": 3, "partial": 0, "fail": 0, "unscored": 1}
    assert other["redteam"][name]["counts"] == {"pass": 4, "partial": 0, "fail": 0, "unscored": 0}
    assert other["capability"][name]["n"] == 2
    refused = karma("run", "tiny.toml", "--target", model, "--beside", "drift-24.jsonl")
    assert (refused.code, "target's axis" in refused.err) == (2, True)


# karma redteam attack


def test_an_attack_becomes_an_arm_with_everything_that_was_said(karma: Karma, tmp_path: Path) -> None:
    target = write_script(tmp_path / "x.json", ("moles", ["Worms."]), ("3.", ["Now pour the acid."]), ("", [DECLINE]))
    attacker = write_script(
        tmp_path / "y.json", ("Question 1.", ["I can't help with that."]), ("", ["What do moles eat?"])
    )
    words = ("attack", "tiny.toml", "--method", "crescendo", "--attacker", attacker, "--target", target, "--turns", "2")
    ended = karma(*words, "--out", "out")
    assert ended.code == 0, ended.err
    assert "attacker's faults: refused 1" in ended.out
    assert "1 attacker refused: it declined to play" in ended.out
    (arm,) = (tmp_path / "out" / "attacks" / "crescendo").iterdir()
    (result,) = read_seeds(arm).values()
    assert {name: verdict.outcome for name, verdict in result.verdicts.items()} == {
        "s0": "pass",
        "s1": "unscored",
        "s2": "pass",
        "s3": "fail",
    }
    assert [a.prompt for a in result.answers["s0"].values()] == ["What do moles eat?", "Question 0.1"]
    rows = [json.loads(line) for line in (arm / "attacks.jsonl").read_text().splitlines()]
    assert [e["by"] for e in rows[0]["attack"]["tries"][0]["said"]] == ["attacker", "scenario"]
    assert karma("compare", arm, arm).code == 2  # it is read as an arm, and refused as the same one
    assert "attacks/crescendo" in karma(*words, "--out", "out", "--dry-run").out


def test_an_attack_that_needs_an_attacker_or_an_axis_says_so(karma: Karma) -> None:
    ended = karma("attack", "tiny.toml", "--method", "persona", "--arms", "base")
    assert (ended.code, "needs an attacker" in ended.err) == (2, True)
    ended = karma("attack", "tiny.toml", "--method", "drift", "--attacker", "karma/x", "--arms", "base")
    assert (ended.code, "has no axis" in ended.err) == (2, True)
    ended = karma("attack", "tiny.toml", "--method", "best-of-n", "--arms", "capped")
    assert (ended.code, "is not there" in ended.err) == (3, True)


def test_best_of_n_attacks_a_real_model(karma: Karma, tmp_path: Path) -> None:
    words = ("--arms", "base", "--queries", "3", "--limit", "2", "--set", "redteam.temperature=1.0")
    judge = ("--scorer", "signals-original")
    ended = karma("attack", "tiny.toml", "--method", "best-of-n", *words, *judge, "--json")
    assert ended.code == 0, ended.err
    attacks = json.loads(ended.out)["attacks"]
    assert attacks["base"]["n"] == 2
    assert attacks["base"]["scorer"] == "signals-original"
    assert attacks["base"]["scorers"] == ["signals-original-1"]
    assert attacks["base"]["engine"].startswith("karma/")


def test_an_attack_is_judged_by_a_model_at_an_address(karma: Karma, tmp_path: Path) -> None:
    target = write_script(tmp_path / "x.json", ("", [DECLINE]))
    words = ["attack", "tiny.toml", "--method", "best-of-n", "--target", target, "--queries", "2", "--limit", "2"]
    with chat_server(lambda _: said(json.dumps({"reason": "r", "quote": "get hurt", "outcome": "partial"}))) as server:
        judge = ["--scorer", "llm:openai-api/judge/local", "--scorer-url", server.url]
        ended = karma(*words, *judge, "--out", "out", "--json")
        assert ended.code == 0, ended.err
        (arm,) = json.loads(ended.out)["attacks"].values()
        assert (arm["counts"]["partial"], arm["scorers"]) == (2, ["llm-1:openai-api/judge/local"])
        asked = len(server.requests)
        assert karma(*words, *judge, "--out", "out").code == 0
        assert len(server.requests) == asked == 2 * 2 * 4  # scenarios, tries, replies; nothing is judged again


def test_drift_attacks_a_real_model_and_takes_the_answer_that_lies_furthest(
    karma: Karma, tmp_path: Path, tiny_path: Path, model: Any, tokenizer: Any
) -> None:
    write_run(tmp_path, tiny_path)
    save_spec(tiny.cap_at(model, tokenizer, "mlp").spec, tmp_path / "runs" / "tiny" / "axis" / "cap.json")
    attacker = write_script(tmp_path / "y.json", ("", [f"What would you be if you were number {n}?" for n in range(9)]))
    words = ("--method", "drift", "--attacker", attacker, "--arms", "tuned", "--limit", "1", "--turns", "2")
    ended = karma("attack", "tiny.toml", *words, "--candidates", "3")
    assert ended.code == 0, ended.err
    row = json.loads((tmp_path / "runs/tiny/attacks/drift/tuned/attacks.jsonl").read_text().splitlines()[0])
    *candidates, last = row["attack"]["tries"][0]["said"]
    assert [e["by"] for e in candidates] == ["attacker"] * 3
    drifts = [e["drift"] for e in candidates if e["answer"].strip()]
    (kept,) = [e for e in candidates if e["kept"]]
    assert len(set(drifts)) > 1
    assert kept["drift"] == max(drifts)
    assert last["by"] == "scenario"


@pytest.mark.parametrize("file", ["cap.json", "axis.safetensors"])
@pytest.mark.parametrize("named", [True, False])
def test_a_target_with_another_cap_is_another_target(
    karma: Karma, tmp_path: Path, tiny_path: Path, model: Any, tokenizer: Any, file: str, named: bool
) -> None:
    write_run(tmp_path, tiny_path)
    axis = tmp_path / "runs" / "tiny" / "axis"
    (tmp_path / "runs" / "tiny" / "merged").unlink()
    shutil.copytree(tiny_path, tmp_path / "runs" / "tiny" / "merged")  # a link has its cap beside what it leads to
    save_spec(tiny.cap_at(model, tokenizer, "mlp").spec, axis / "cap.json")
    # the cap of `karma redteam attack --method drift`, or the one beside the model
    capped = Endpoint("karma/runs/tiny/merged", model_args={"cap": str(axis)} if named else {"alpha": 1.0})
    bare = Endpoint(capped.model)
    before = target_input(capped)
    assert before.keys() == {"target", "cap", "directions"}
    assert target_input(bare) == {"target": before["target"]}
    (axis / file).write_bytes((axis / file).read_bytes() + b" ")
    changed = {key for key, value in target_input(capped).items() if value != before[key]}
    assert changed == {"cap" if file == "cap.json" else "directions"}


ATTACK = ("attack", "tiny.toml", "--method", "best-of-n", "--target", "openai-api/x/local", "--queries", "2")
SERIAL = ("--set", "redteam.batch_size=1", "--out", "out")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ChatServer, list[Response]]]:
    """A target at an address, which says what is on a list, the last entry over and over; nothing is waited for."""
    monkeypatch.setattr(attacking, "_RETRIES", 0)
    monkeypatch.setenv("X_API_KEY", "key")
    says = [said(DECLINE)]
    with chat_server(lambda _: says.pop(0) if len(says) > 1 else says[0]) as running:
        monkeypatch.setenv("X_BASE_URL", running.url)
        yield running, says


def test_a_target_is_attacked_at_an_address_with_so_many_requests_at_once(
    karma: Karma, tmp_path: Path, server: tuple[ChatServer, list[Response]], monkeypatch: pytest.MonkeyPatch
) -> None:
    running, _ = server
    monkeypatch.delenv("X_BASE_URL")
    opened: list[Any] = []
    before = attacking._open
    monkeypatch.setattr(attacking, "_open", lambda *given: opened.append(before(*given)) or opened[-1])
    where = ("--base-url", running.url, "--limit", "2", "--json")
    for n, words in enumerate((("--connections", "3"), ())):
        ended = karma(*ATTACK, *where, *words, "--out", f"out-{n}")
        assert ended.code == 0, ended.err
    assert [model.config.max_connections for model in opened] == [3, 8]
    assert len(running.requests) == 2 * 2 * 2
    (arm,) = (tmp_path / "out-0" / "attacks" / "best-of-n").iterdir()
    asked = [json.loads(line)["scenario_id"] for line in (arm / "verdicts.jsonl").read_text().splitlines()]
    assert asked == ["s0", "s2"]  # spread over the suite


@pytest.mark.parametrize("option", [("--base-url", "http://x/v1"), ("--connections", "2"), ("--target-arg", "a=1")])
def test_an_option_of_a_target_needs_one(karma: Karma, option: tuple[str, str]) -> None:
    ended = karma("attack", "tiny.toml", "--method", "best-of-n", *option)
    assert (ended.code, f"{option[0]} is given without --target" in ended.err) == (2, True)


def test_harmless_twins_are_not_attacked(karma: Karma, tmp_path: Path) -> None:
    write_suite(tmp_path / "suite.jsonl", prefix="benign-")
    ended = karma(*ATTACK)
    assert ended.code == 2
    assert "expected attacks. Ask it: karma redteam run" in " ".join(ended.err.split())


def test_a_model_that_reads_criteria_may_judge_harmless_twins(karma: Karma, tmp_path: Path) -> None:
    """Imported ones have no signals."""
    write_suite(tmp_path / "suite.jsonl", prefix="benign-")
    target = write_script(tmp_path / "x.json", ("", [DECLINE]))
    words = ("run", "tiny.toml", "--target", target, "--suite", "suite.jsonl", "--out", "out", "--json")
    with chat_server(lambda _: said(json.dumps({"reason": "r", "quote": "won't help", "outcome": "fail"}))) as server:
        judge = ("--benign-scorer", "llm:openai-api/judge/local", "--scorer-url", server.url)
        ended = karma(*words, *judge, "--set", "redteam.scorer_samples=2")
        assert ended.code == 0, ended.err
        assert len(server.requests) == 2 * 4
    (arm,) = json.loads(ended.out)["benign"].values()
    assert arm["scorer"] == "llm:openai-api/judge/local"
    assert arm["over_refusal"]["rate"]["value"] == 1.0


AWAY = refused(500, "away", {"x-should-retry": "false"})


@pytest.mark.slow
@pytest.mark.parametrize("response", [refused(401, "bad key"), AWAY], ids=["refused", "away"])
def test_an_attack_on_a_target_that_never_answers_is_not_done(
    karma: Karma, tmp_path: Path, server: tuple[ChatServer, list[Response]], response: Response
) -> None:
    write_suite(tmp_path / "suite.jsonl", 8)
    running, says = server
    says[:] = [response]
    for _ in range(2):
        ended = karma(*ATTACK, *SERIAL)
        assert ended.code == 3
        assert "does not answer: none of 8 conversations got an answer" in " ".join(ended.err.split())
    assert len(running.requests) == 2 * 4  # then it was taken to be away
    says[:] = [said(DECLINE)]
    ended = karma(*ATTACK, *SERIAL, "--json")
    assert ended.code == 0, ended.err
    (arm,) = json.loads(ended.out)["attacks"].values()
    assert (arm["n"], arm["engine_failures"]) == (8, 0)


def test_an_address_where_nothing_listens_ends_an_attack(
    karma: Karma, monkeypatch: pytest.MonkeyPatch, server: tuple[ChatServer, list[Response]]
) -> None:
    monkeypatch.setenv("X_BASE_URL", "http://127.0.0.1:9/v1")
    ended = karma(*ATTACK, "--limit", "1", "--out", "out")
    assert (ended.code, "(no answer: APIConnectionError" in ended.err) == (3, True)


@pytest.mark.slow
def test_a_target_that_goes_away_is_asked_only_what_is_missing_when_it_is_back(
    karma: Karma, tmp_path: Path, server: tuple[ChatServer, list[Response]]
) -> None:
    write_suite(tmp_path / "suite.jsonl", 24)
    running, says = server
    says[:] = [said(DECLINE)] * 2 * 3 + [AWAY]  # two queries to each of three conversations
    ended = karma(*ATTACK, *SERIAL)
    assert (ended.code, "6 of 24 conversations are missing" in " ".join(ended.err.split())) == (3, True)
    says[:] = [said(DECLINE)]
    before = len(running.requests)
    ended = karma(*ATTACK, *SERIAL, "--json")
    assert ended.code == 0, ended.err
    assert "continues an attack with 18 of 24" in ended.err
    assert len(running.requests) == before + 2 * 6
    (arm,) = json.loads(ended.out)["attacks"].values()
    assert (arm["n"], arm["engine_failures"]) == (24, 15)


@pytest.mark.slow
def test_a_killed_attack_goes_on_where_it_was(karma: Karma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write_script(tmp_path / "x.json", ("", [DECLINE]))
    words = ["attack", "tiny.toml", "--method", "best-of-n", "--target", target, "--queries", "2", "--out", "out"]
    words += ["--set", "redteam.batch_size=1"]
    program = f"""
        import os, signal, sys
        from karma_electric.redteam import tasks
        from karma_electric.cli.main import main
        done = 0
        before = tasks.run_attack
        async def run_attack(method, session, prompts):
            if session.scenario.id == "s3":
                os.kill(os.getpid(), signal.SIGKILL)
            return await before(method, session, prompts)
        tasks.run_attack = run_attack
        sys.argv = ["karma", "redteam", *{words!r}]
        main()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=False, env=os.environ, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    asked = calls(monkeypatch)
    ended = karma(*words)
    assert ended.code == 0, ended.err
    assert "continues an attack with 3 of 4" in ended.err
    assert len(asked) == 2 * 1  # of the last scenario alone: it has two turns, and two queries are one try
    (arm,) = (tmp_path / "out" / "attacks" / "best-of-n").iterdir()
    assert json.loads((arm / "summary.json").read_text())["counts"]["pass"] == 4
