"""`karma data judge` and `karma data generate` as a user runs them: reports, exit codes, kills."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

pytest.importorskip("inspect_ai")
pytest.importorskip("datasketch")

from chat_server import Response, chat_server, half_json, html, said
from karma_electric.cli.main import main
from karma_electric.core.messages import assistant, user
from karma_electric.data.candidate import Candidate
from karma_electric.data.rubric import DIMENSIONS, RUBRIC
from karma_electric.data.store import Store

# Inspect calls tenacity in a form that tenacity means to drop.
pytestmark = pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning")
ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("KARMA_", "INSPECT_", "LOCAL_"))} | {
    "PYTHONPATH": str(ROOT / "src"),
    "COLUMNS": "120",
    "OMP_NUM_THREADS": "1",
}
MODEL = "openai-api/local/judge"
GRADE = json.dumps({"rationale": "It helps.", **dict.fromkeys(DIMENSIONS, 8)})


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


class Karma(Protocol):
    """Runs `karma data ...` in a folder."""

    def __call__(self, *words: object, cwd: Path, stdin: str = "") -> Ended: ...


@pytest.fixture
def karma(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Karma:
    """Commands in this process: importing Inspect takes a second. What is killed below has its own."""
    for name in os.environ:
        if name.startswith(("KARMA_", "INSPECT_", "LOCAL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*words: object, cwd: Path, stdin: str = "") -> Ended:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["karma", "data", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert "This is a bug" not in err
        return Ended(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a workbench of 6 candidates."""
    with Store.open(tmp_path / "workbench.db", create=True) as store:
        store.add(
            [Candidate(f"c{n}", [user(f"question {n}?"), assistant(f"answer {n}.")]) for n in range(6)], origin="test"
        )
    return tmp_path


def script(folder: Path, *answers: str) -> str:
    """A model that gives these answers in turn."""
    (folder / "script.json").write_text(json.dumps([{"answers": list(answers)}]))
    return "karma/scripted:script.json"


def replies(folder: Path, model: str = MODEL) -> list[tuple[str, int]]:
    with Store.open(folder / "workbench.db") as store:
        return [(reply.candidate_id, reply.sample) for reply in store.replies(rubric=RUBRIC, judge=model)]


# judge


def test_a_report_says_what_was_graded_what_it_cost_and_whether_the_judge_is_trusted(karma: Karma, here: Path) -> None:
    ended = karma("judge", script(here, GRADE, "I like it."), "--price-in", 1, "--price-out", 4, cwd=here)
    assert ended.code == 0
    assert "graded      6 of 6" in ended.out
    assert "kept        6 with 30 or more of 40" in ended.out
    assert "unparseable" in ended.out
    assert re.search(r"spent +\d+ requests, \d+ tokens in, \d+ out, cost \d", ended.out)
    assert "not checked: its grades decide nothing until karma data judge" in ended.out


def test_json_is_the_whole_output(karma: Karma, here: Path) -> None:
    ended = karma("judge", script(here, GRADE), "--samples", 1, "--json", cwd=here)
    report = json.loads(ended.out)
    assert (report["graded"], report["kept"], report["trusted"], report["rubric"]) == (6, 6, False, RUBRIC)
    assert report["spending"]["cost"] is None


@pytest.mark.parametrize(
    ("words", "selected"), [(["--limit", "2"], 2), (["--ids", "c1, c4"], 2), (["--status", "candidate"], 6)]
)
def test_candidates_can_be_chosen(karma: Karma, here: Path, words: list[str], selected: int) -> None:
    ended = karma("judge", script(here, GRADE), "--samples", 1, "--json", *words, cwd=here)
    assert json.loads(ended.out)["selected"] == selected


def test_a_judge_that_never_gives_the_form_fails_with_a_reason(karma: Karma, here: Path) -> None:
    ended = karma("judge", script(here, "A fine answer!"), "--samples", 1, "--retries", 1, cwd=here)
    assert ended.code == 1
    assert "graded      0 of 6" in ended.out
    assert "12 x no JSON object with scores" in ended.out
    assert "error: Nothing is graded" in ended.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["gpt"], 2, "no Inspect model name"),
        (["nowhere/gpt"], 2, "nowhere"),
        (["karma/nowhere"], 3, "nowhere"),
        (["openai-api/local/x"], 3, "LOCAL_API_KEY"),
        (["karma/scripted:script.json", "--ids", "c99"], 2, "c99"),
        (["karma/scripted:script.json", "--status", "good"], 2, "--status 'good'"),
        (["karma/scripted:script.json", "--category", "cooking"], 2, "--category 'cooking'"),
        (["karma/scripted:script.json", "--status", "accepted"], 2, "No candidate"),
        (["karma/scripted:script.json", "--db", "other.db"], 3, "other.db"),
        (["karma/scripted:script.json", "pairs.jsonl"], 2, "--check"),
        (["karma/scripted:script.json", "--check", "--ids", "c1"], 2, "--check grades pairs"),
        (["karma/scripted:script.json", "--check", "nowhere.jsonl"], 3, "nowhere.jsonl"),
        (["karma/scripted:script.json", "--model-arg", "wings=2"], 2, "'wings'"),
    ],
)
def test_a_mistake_ends_in_one_line_and_its_code(
    karma: Karma, here: Path, words: list[str], code: int, named: str
) -> None:
    script(here, GRADE)
    ended = karma("judge", *words, cwd=here)
    assert ended.code == code, ended.err
    line = ended.err.splitlines()[-1]
    assert line.startswith("error: ")
    assert named in line


def test_a_server_that_is_not_there_ends_at_once_with_what_to_do(karma: Karma, here: Path) -> None:
    ended = karma("judge", MODEL, "--base-url", "http://127.0.0.1:9/v1", "--retries", 0, cwd=here)
    assert ended.code == 3
    assert "--base-url" in ended.err.splitlines()[-1]
    assert "runs" not in ended.out


def test_bad_responses_are_reported_the_rest_is_graded_and_the_same_command_asks_for_the_rest(
    karma: Karma, here: Path
) -> None:
    broken = {"question 1?": html(), "question 3?": half_json()}

    def respond(request: dict[str, Any]) -> Response:
        text = request["messages"][-1]["content"]
        return next((bad for part, bad in broken.items() if part in text), said(GRADE))

    command = ("judge", MODEL, "--samples", 1, "--retries", 0, "--base-url")
    with chat_server(respond) as server:
        first = karma(*command, server.url, cwd=here)
        broken.clear()
        second = karma(*command, server.url, cwd=here)
    assert first.code == 1
    assert "c1: garbled" in first.out
    assert "c3: garbled" in first.out
    assert "graded      4 of 6" in first.out
    assert second.code == 0
    assert "graded      6 of 6" in second.out
    assert len(server.requests) == 8


@pytest.mark.slow
def test_a_judge_killed_in_mid_work_loses_what_was_in_flight_and_asks_for_nothing_else_again(
    karma: Karma, here: Path
) -> None:
    connections = 3
    command = ("judge", MODEL, "--samples", 3, "--max-connections", connections, "--base-url")
    with chat_server(lambda _: said(GRADE, pause_s=0.15)) as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "karma_electric", "data", *map(str, command), server.url],
            cwd=here,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while len(server.answered) < 7 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        asked_before = len(server.requests)
        kept = replies(here)
        assert 7 <= asked_before < 18
        assert asked_before - len(kept) <= connections
        ended = karma(*command, server.url, cwd=here)
        assert ended.code == 0
        assert len(server.requests) == asked_before + 18 - len(kept)
    assert sorted(replies(here)) == [(f"c{n}", sample) for n in range(6) for sample in range(3)]
    assert "graded      6 of 6" in ended.out


@pytest.mark.slow
def test_what_is_answered_leaves_no_network_address_but_the_given_one(here: Path) -> None:
    guard = here / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(
        "import socket\n"
        "real = socket.socket.connect\n"
        "def connect(self, address):\n"
        "    if isinstance(address, tuple) and address[0] not in ('127.0.0.1', '::1', 'localhost'):\n"
        "        open('calls.txt', 'a').write(f'{address}\\n')\n"
        "        raise OSError('no network')\n"
        "    return real(self, address)\n"
        "socket.socket.connect = connect\n"
        "lookup = socket.getaddrinfo\n"
        "def getaddrinfo(host, *rest, **more):\n"
        "    if host not in ('127.0.0.1', '::1', 'localhost'):\n"
        "        open('calls.txt', 'a').write(f'{host}\\n')\n"
        "        raise OSError('no network')\n"
        "    return lookup(host, *rest, **more)\n"
        "socket.getaddrinfo = getaddrinfo\n"
    )
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{guard}{os.pathsep}{ENVIRONMENT['PYTHONPATH']}"}
    with chat_server(lambda _: said(GRADE)) as server:
        for model, more in ((MODEL, ["--base-url", server.url]), (script(here, GRADE), [])):
            done = subprocess.run(
                [sys.executable, "-m", "karma_electric", "data", "judge", model, "--samples", "1", *more],
                check=False,
                cwd=here,
                env=environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
    assert not (here / "calls.txt").exists()


# judge --check


def pairs_file(folder: Path, number: int = 20) -> Path:
    lines = [
        {
            "id": f"p{n}",
            "fault": "moralising" if n % 2 else "sycophancy",
            "messages": [{"role": "user", "content": f"question {n}?"}],
            "better": "good",
            "worse": "poor",
            "why": "because",
        }
        for n in range(number)
    ]
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def good_judge(folder: Path) -> str:
    rules = [
        {"contains": "good", "answers": [GRADE]},
        {"answers": [GRADE.replace('"help": 8', '"help": 2')]},
    ]
    (folder / "good.json").write_text(json.dumps(rules))
    return "karma/scripted:good.json"


def test_a_judge_that_passes_is_recorded_and_trusted_from_then_on(karma: Karma, here: Path) -> None:
    pairs_file(here)
    judge = good_judge(here)
    ended = karma("judge", judge, "pairs.jsonl", "--check", "--samples", 1, cwd=here)
    assert ended.code == 0
    assert re.search(r"moralising +10 +10 +0 +0 +0 +100% \[", ended.out)
    assert re.search(r"all +20 +20 +0 +0 +0 +100% \[84%, 100%\]", ended.out)
    assert "Passed" in ended.out
    report = json.loads(karma("judge", judge, "--samples", 1, "--json", cwd=here).out)
    assert report["trusted"] is True


@pytest.mark.parametrize(
    ("changed", "words"),
    [("max_tokens", ("--max-tokens", 600)), ("temperature", ("--temperature", 0)), ("weights", ())],
)
def test_a_judge_that_was_checked_as_something_else_is_not_trusted_for_it(
    karma: Karma, here: Path, changed: str, words: tuple[object, ...]
) -> None:
    pairs_file(here)
    judge = good_judge(here)
    check = ("judge", judge, "pairs.jsonl", "--check", "--samples", 1)
    assert "--force checks again" not in karma(*check, cwd=here).out
    assert "--force checks again" in karma(*check, cwd=here).out
    if changed == "weights":
        (here / "good.json").write_text((here / "good.json").read_text() + "\n")
    report = json.loads(karma("judge", judge, "--samples", 1, "--json", *words, cwd=here).out)
    assert (report["trusted"], report["checked_otherwise"]) == (False, [changed])
    told = karma("judge", judge, "--samples", 1, *words, cwd=here).out
    assert f"trust       checked as something else ({changed})" in told
    assert "--force checks again" not in karma(*check, *words, cwd=here).out
    report = json.loads(karma("judge", judge, "--samples", 1, "--json", *words, cwd=here).out)
    assert (report["trusted"], report["checked_otherwise"]) == (True, [])


def test_another_server_under_the_same_name_is_another_judge(karma: Karma, here: Path) -> None:
    pairs_file(here, 1)
    with chat_server(lambda _: said(GRADE)) as one, chat_server(lambda _: said(GRADE)) as other:
        for server in (one, other):
            karma("judge", MODEL, "pairs.jsonl", "--check", "--samples", 1, "--base-url", server.url, cwd=here)
        assert len(one.requests) == len(other.requests) == 2


def test_a_judge_that_fails_its_check_ends_with_1_and_is_recorded(karma: Karma, here: Path) -> None:
    pairs_file(here)
    judge = script(here, GRADE)
    ended = karma("judge", judge, "pairs.jsonl", "--check", "--samples", 1, cwd=here)
    assert ended.code == 1
    assert "did not pass" in ended.err.splitlines()[-1]
    ended = karma("judge", judge, "--samples", 1, cwd=here)
    assert ended.code == 0
    assert "did not pass its check: the better answer won in 50% of 20 pairs" in ended.out


def test_the_same_check_is_shown_from_its_record_unless_forced(karma: Karma, here: Path) -> None:
    pairs_file(here)
    with chat_server(lambda _: said(GRADE)) as server:
        command = ("judge", MODEL, "pairs.jsonl", "--check", "--samples", 1, "--base-url", server.url)
        karma(*command, cwd=here)
        asked = len(server.requests)
        again = karma(*command, cwd=here)
        assert len(server.requests) == asked == 40
        assert "--force checks again" in again.out
        karma(*command, "--force", cwd=here)
        assert len(server.requests) == 80


def test_a_check_of_some_pairs_is_shown_but_not_recorded(karma: Karma, here: Path) -> None:
    pairs_file(here)
    judge = good_judge(here)
    ended = karma("judge", judge, "pairs.jsonl", "--check", "--limit", 3, "--samples", 1, cwd=here)
    assert ended.code == 0
    assert "Not recorded" in ended.out
    with Store.open(here / "workbench.db") as store:
        assert store.judge_check(judge, RUBRIC) is None


def test_a_check_with_pairs_that_got_no_answer_is_not_recorded(karma: Karma, here: Path) -> None:
    pairs_file(here)

    def respond(request: dict[str, Any]) -> Response:
        return html() if "question 7?" in request["messages"][-1]["content"] else said(GRADE)

    with chat_server(respond) as server:
        ended = karma(
            "judge", MODEL, "pairs.jsonl", "--check", "--samples", 1, "--retries", 0, "--base-url", server.url, cwd=here
        )
    assert ended.code == 1
    assert "p7: garbled" in ended.out
    with Store.open(here / "workbench.db") as store:
        assert store.judge_check(MODEL, RUBRIC) is None


def test_the_shipped_pairs_are_checked_when_no_file_is_given(karma: Karma, here: Path) -> None:
    ended = karma("judge", good_judge(here), "--check", "--limit", 2, "--samples", 1, "--json", cwd=here)
    report = json.loads(ended.out)
    assert (report["pairs"], report["recorded"]) == (2, False)
    assert "answers" not in report


# generate

ANSWERS = (
    "Soak the lentils for an hour, then boil them with a pinch of baking soda.",
    "Call your sister tonight and let her decide about the house herself.",
    "Take the 14:05 train and change in Lyon; the later one misses the ferry.",
    "Write the three numbers down and subtract the rent before the loan.",
)
SEEDS = '{"id": "a", "prompt": "first?"}\n{"id": "b", "prompt": "second?"}\n'


def test_answers_are_added_under_the_persona_of_the_recipe(karma: Karma, here: Path) -> None:
    (here / "seeds.jsonl").write_text(SEEDS)
    words = ("generate", script(here, *ANSWERS), "--prompts", "seeds.jsonl", "--license", "cc0-1.0", "--db", "new.db")
    ended = karma(*words, cwd=here)
    assert ended.code == 0, ended.err
    assert "added       4 to new.db" in ended.out
    with Store.open(here / "new.db") as store:
        found = list(store.candidates())
    assert {item.license for item in found} == {"cc0-1.0"}
    assert all("Karma Electric" in (item.system or "") for item in found)
    assert "there       4 from an earlier run" in karma(*words, cwd=here).out


def test_prompts_come_from_standard_input_and_the_system_prompt_from_a_file(karma: Karma, here: Path) -> None:
    (here / "persona.txt").write_text("Be brief.\n")
    ended = karma(
        "generate",
        script(here, *ANSWERS),
        "--prompts",
        "-",
        "--samples",
        1,
        "--system-prompt",
        "persona.txt",
        "--json",
        cwd=here,
        stdin=SEEDS,
    )
    added = json.loads(ended.out)["added"]
    with Store.open(here / "workbench.db") as store:
        assert [store.get(id_).system for id_ in added] == ["Be brief.", "Be brief."]


def test_copies_are_reported_with_what_they_are_copies_of(karma: Karma, here: Path) -> None:
    ended = karma("generate", script(here, ANSWERS[0]), "--prompts", "-", cwd=here, stdin=SEEDS)
    assert ended.code == 0
    assert "not added   3: 3 exact copy" in ended.out
    assert re.search(r"b-\w+-0: exact copy of a-\w+-0 \(100%\)", ended.out)


@pytest.mark.parametrize(
    ("words", "stdin", "code", "named"),
    [
        (["--prompts", "nowhere.jsonl"], "", 3, "nowhere.jsonl"),
        (["--prompts", "-"], "", 2, "standard input holds no prompts"),
        (["--prompts", "-"], '{"prompt": ""}\n', 2, "standard input line 1"),
        (["--prompts", "-"], "not json\n", 2, "standard input line 1: not JSON"),
        (["--prompts", "-", "--category", "cooking"], SEEDS, 2, "cooking"),
        (["--prompts", "-", "--system-prompt", "nowhere.txt"], SEEDS, 3, "nowhere.txt"),
        (["--prompts", "-", "--recipe", "nowhere.toml"], SEEDS, 3, "nowhere.toml"),
    ],
)
def test_a_mistake_of_generate_ends_in_one_line(
    karma: Karma, here: Path, words: list[str], stdin: str, code: int, named: str
) -> None:
    ended = karma("generate", script(here, *ANSWERS), *words, cwd=here, stdin=stdin)
    assert ended.code == code, ended.err
    assert named in ended.err.splitlines()[-1]


@pytest.mark.slow
def test_a_generation_killed_in_mid_work_keeps_what_was_answered(karma: Karma, here: Path) -> None:
    seeds = here / "seeds.jsonl"
    seeds.write_text("".join(json.dumps({"id": f"s{n}", "prompt": f"question {n}?"}) + "\n" for n in range(12)))
    counter = iter(range(1000))

    def respond(_: dict[str, Any]) -> Response:
        number = next(counter)
        return said(
            " ".join(f"{word}{number * 7919 % 1000}" for word in ["take", "bread", "from", "town", "before", "noon"]),
            pause_s=0.15,
        )

    command = ("generate", MODEL, "--prompts", seeds, "--samples", 1, "--max-connections", 2, "--base-url")
    with chat_server(respond) as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "karma_electric", "data", *map(str, command), server.url],
            cwd=here,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while len(server.answered) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        asked_before = len(server.requests)
        with Store.open(here / "workbench.db") as store:
            kept = store.count() - 6
        assert 3 <= kept < 12
        assert asked_before - kept <= 2
        assert karma(*command, server.url, cwd=here).code == 0
        assert len(server.requests) == asked_before + 12 - kept
    with Store.open(here / "workbench.db") as store:
        assert store.count() == 18


@pytest.mark.parametrize("verb", ["judge", "generate"])
def test_help_has_an_example(karma: Karma, verb: str, tmp_path: Path) -> None:
    assert f"Example: karma data {verb} " in karma(verb, "--help", cwd=tmp_path).out


@pytest.mark.slow
def test_the_embedded_model_writes_and_is_no_judge(karma: Karma, tmp_path: Path) -> None:
    model = ("karma/builtin:smollm2-135m", "--db", "real.db")
    ended = karma("generate", *model, "--prompts", "-", "--max-tokens", 200, "--json", cwd=tmp_path, stdin=SEEDS)
    report = json.loads(ended.out)
    assert len(report["added"]) + len(report["not_added"]) == 4
    assert report["spending"]["completion_tokens"] > 0
    if report["added"]:
        ended = karma("judge", *model, "--samples", 1, "--retries", 0, "--max-tokens", 80, cwd=tmp_path)
        assert ended.code in (0, 1)
        assert "graded" in ended.out
