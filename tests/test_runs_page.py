"""Red-team runs over HTTP: what is found, filtered, marked and labelled, and what is refused."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install -e '.[serve]'")

from fastapi.testclient import TestClient

from karma_electric.core.artifact import damage, hash_tree
from karma_electric.core.errors import MissingError
from karma_electric.models.engines.live_scripted import LiveScripted
from karma_electric.redteam.labelled import load_labelled
from karma_electric.redteam.relabels import FILE
from karma_electric.redteam.scenario import load_suite
from karma_electric.serve.app import create_app
from karma_electric.serve.looking import mark
from karma_electric.serve.page_files import UI
from karma_electric.serve.relabels import add_relabel, read_relabels
from karma_electric.serve.run_folders import find_runs, open_run
from karma_electric.serve.runs import runs_router
from karma_electric.serve.settings import Served, ServeSettings

ENGINE = LiveScripted(["not asked here"])
ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "tests" / "data" / "run-of-30"  # of its own: results/demo is another run every time
FLIPPED = "starter-compliance-exploit-03"  # unscored in tuned, a pass in capped


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of runs with the demo's red-team in it."""
    shutil.copytree(DEMO / "redteam", tmp_path / "runs" / "demo" / "redteam")
    return tmp_path / "runs"


@pytest.fixture
def client(root: Path) -> Iterator[TestClient]:
    settings = ServeSettings(served=Served(id="demo"), runs=root, access_log=False)
    with TestClient(create_app(ENGINE, settings), base_url="http://127.0.0.1") as made:
        yield made


def cases(client: TestClient, **filters: Any) -> list[dict[str, Any]]:
    answer = client.get("/karma/runs/demo/cases", params=filters)
    assert answer.status_code == 200, answer.text
    assert answer.json()["matched"] == len(answer.json()["cases"])
    return answer.json()["cases"]


def label(client: TestClient, **changed: Any) -> Any:
    body = {"scenario_id": FLIPPED, "arm": "capped", "seed": 0, "outcome": "fail", "reason": "blames the bank"}
    return client.post("/karma/runs/demo/relabels", json=body | changed)


def test_the_overview_has_arms_counts_and_the_judges_kappa(client: TestClient) -> None:
    (run,) = client.get("/karma/runs").json()["runs"]
    summaries = {
        arm: json.loads((DEMO / "redteam" / arm / "summary.json").read_text()) for arm in ("base", "tuned", "capped")
    }
    assert [arm["name"] for arm in run["arms"]] == ["base", "tuned", "capped"]
    assert {arm["name"]: arm["counts"] for arm in run["arms"]} == {n: s["counts"] for n, s in summaries.items()}
    half = json.loads((DEMO / "redteam" / "judge" / "agreement.json").read_text())["B"]
    assert run["judge"]["kappa"] == half["kappa"]
    assert run["judge"]["n"] == half["n"]
    assert run["suite"] == "starter-30.jsonl"
    assert client.get("/karma/runs/demo").json() == run


def test_filters_leave_what_they_say(client: TestClient) -> None:
    everything = cases(client)
    assert len(everything) == 30
    chosen = cases(client, category="jailbreak", difficulty="hard")
    assert chosen == [c for c in everything if c["category"] == "jailbreak" and c["difficulty"] == "hard"]
    assert chosen
    passed = cases(client, outcome="pass", arm="capped")
    assert len(passed) == 5
    assert all(case["arms"]["capped"]["outcome"] == "pass" for case in passed)
    assert len(cases(client, outcome="pass")) > len(passed)
    assert [case["id"] for case in cases(client, text="HEATING fund")] == [FLIPPED]


def test_changes_are_paired_by_scenario(client: TestClient) -> None:
    def outcomes(change: str) -> list[tuple[str, str]]:
        found = cases(client, change=change, first="tuned", second="capped")
        return [(case["arms"]["tuned"]["outcome"], case["arms"]["capped"]["outcome"]) for case in found]

    differ, gained, lost = outcomes("any"), outcomes("gained"), outcomes("lost")
    assert all(a != b for a, b in differ)
    assert gained == [(a, b) for a, b in differ if b == "pass"]
    assert lost == [(a, b) for a, b in differ if a == "pass"]
    assert gained
    assert lost


def test_a_list_comes_in_parts(client: TestClient) -> None:
    whole = cases(client)
    parts = [
        client.get("/karma/runs/demo/cases", params={"offset": offset, "limit": 12}).json() for offset in (0, 12, 24)
    ]
    assert [case for part in parts for case in part["cases"]] == whole
    assert {part["matched"] for part in parts} == {30}


def test_a_transcript_has_every_turn_with_the_evidence_marked(client: TestClient) -> None:
    found = client.get("/karma/runs/demo/transcript", params={"scenario": FLIPPED}).json()
    assert found["pass_criteria"]
    assert list(found["verdicts"]) == ["base", "tuned", "capped"]
    parts = found["turns"][0]["answers"]["capped"]["parts"]
    assert [part["text"] for part in parts if part["evidence"]] == ["refund"]
    lines = (DEMO / "redteam" / "capped" / "completions.jsonl").read_bytes().splitlines()
    answers = {line["scenario_id"]: line for line in map(json.loads, lines)}
    assert "".join(part["text"] for part in parts) == answers[FLIPPED]["text"]
    several = client.get("/karma/runs/demo/transcript", params={"scenario": "starter-multi-turn-escalation-01"}).json()
    assert [turn["turn"] for turn in several["turns"]] == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "evidence", "marked"),
    [
        ("I am afraid not.", "objection: 'afraid'", ["afraid"]),
        ("It’s a “no”.", """pass signal: "It's a" """, ["It’s a"]),  # the scorer sees straight quotes
        ("1. I'll send\n\n2. it", 'form of compliance: "1. i\'ll send\\n2."', ["1. I'll send\n\n2."]),
        ("no, but here you go", "'no', yet 'here you go'", ["no", "here you go"]),
        ("Nothing is quoted.", "no evidence either way", []),
        ("The whole of it", "whole of it", ["whole of it"]),  # a judge that quotes plainly
        ("a (b [c", "fail signal: '(b [c'", ["(b [c"]),
        ("anything", "an unclosed 'quote and \\", []),
        ("", "objection: 'x y'", []),
    ],
)
def test_evidence_is_found_in_the_answer(text: str, evidence: str, marked: list[str]) -> None:
    parts = mark(text, evidence)
    assert [part["text"] for part in parts if part["evidence"]] == marked
    assert "".join(part["text"] for part in parts) == text


def test_a_label_is_kept_beside_the_verdict_and_changes_no_file_of_the_arm(client: TestClient, root: Path) -> None:
    arms = {arm: hash_tree(root / "demo" / "redteam" / arm) for arm in ("base", "tuned", "capped", "judge")}
    assert label(client, rater="a reviewer").status_code == 201
    assert label(client, outcome="partial", reason="on a second reading").status_code == 201
    assert {arm: hash_tree(root / "demo" / "redteam" / arm) for arm in arms} == arms
    assert damage(root / "demo" / "redteam" / "capped") == []
    lines = (root / "demo" / "redteam" / FILE).read_text().splitlines()
    assert [json.loads(line)["outcome"] for line in lines] == ["fail", "partial"]  # both: it only grows
    found = client.get("/karma/runs/demo/transcript", params={"scenario": FLIPPED}).json()["verdicts"]["capped"]
    assert found["outcome"] == "pass"
    assert [given["outcome"] for given in found["labels"]] == ["fail", "partial"]
    assert found["labels"][0]["judged"] == "pass"
    (case,) = cases(client, labelled=True)
    assert case["arms"]["capped"] == {"outcome": "pass", "label": "partial"}


def test_labels_calibrate_a_judge(client: TestClient, tmp_path: Path) -> None:
    label(client)
    label(client, outcome="pass", reason="second thoughts")
    label(client, scenario_id="starter-multi-turn-escalation-01", reason="three turns: the last is the response")
    file = tmp_path / "labels.jsonl"
    file.write_text(client.get("/karma/runs/demo/labelled.jsonl").text)
    row, several = load_labelled(file, load_suite(ROOT / "suites" / "starter-30.jsonl"))
    assert (row.scenario_id, row.label, row.rater) == (FLIPPED, "pass", "not said")
    assert (len(several.answers), several.label) == (2, "fail")


def test_a_label_does_not_count_for_answers_that_came_later(client: TestClient, root: Path) -> None:
    label(client)
    file = root / "demo" / "redteam" / "capped" / "completions.jsonl"
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    for line in lines:
        line["text"] += " Once more."
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert client.get("/karma/runs/demo/relabels.jsonl").text == ""
    assert (root / "demo" / "redteam" / FILE).stat().st_size > 0


def test_labels_given_at_once_are_all_there(root: Path) -> None:
    run = open_run(root, "demo")

    def give(number: int) -> None:
        for _ in range(5):
            add_relabel(
                run, scenario_id=FLIPPED, arm="base", seed=0, outcome="pass", reason=f"by {number} " + "é" * 500
            )

    threads = [threading.Thread(target=give, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_relabels(run)) == 30


def test_a_torn_line_costs_no_other(client: TestClient, root: Path) -> None:
    label(client)
    file = root / "demo" / "redteam" / FILE
    torn = file.read_bytes() + b'{"scenario_id": "starter-jail'
    file.write_bytes(torn)
    assert label(client, outcome="partial").status_code == 201
    assert file.read_bytes().startswith(torn + b"\n")
    lines = client.get("/karma/runs/demo/relabels.jsonl").text.splitlines()
    assert [json.loads(line)["outcome"] for line in lines] == ["fail", "partial"]


@pytest.mark.parametrize(
    ("changed", "status", "said"),
    [
        ({"outcome": "great"}, (400,), "outcome"),
        ({"reason": ""}, (400,), "reason"),
        ({"reason": " \n "}, (400,), "reason"),
        ({"reason": "x" * 2001}, (400,), "reason"),
        ({"scenario_id": "../../etc/passwd"}, (404,), "was not asked"),
        ({"arm": "../judge"}, (404,), "no arm"),
        ({"seed": 7}, (404,), "seed"),
        ({"seed": "nought"}, (400,), "seed"),
        ({"more": 1}, (400,), "more"),
    ],
)
def test_a_label_that_cannot_be_is_refused(
    client: TestClient, root: Path, changed: dict[str, Any], status: tuple[int, ...], said: str
) -> None:
    answer = label(client, **changed)
    assert answer.status_code in status
    assert said in answer.text
    assert not (root / "demo" / "redteam" / FILE).exists()


def test_a_body_that_is_not_json_is_refused(client: TestClient, root: Path) -> None:
    body = json.dumps({"scenario_id": FLIPPED, "arm": "base", "seed": 0, "outcome": "pass", "reason": "x"})
    for kind in ("text/plain", "application/x-www-form-urlencoded"):  # what a page of another site can send unasked
        answer = client.post("/karma/runs/demo/relabels", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 415
    assert client.post("/karma/runs/demo/relabels", json=[1]).status_code in (400,)
    assert not (root / "demo" / "redteam" / FILE).exists()


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e", "..%2F..", "demo%2F..", "/etc", "demo~..", "%00", "demo/redteam", "~"]
)
def test_no_name_of_a_run_leaves_the_folder(client: TestClient, root: Path, name: str) -> None:
    shutil.copytree(DEMO / "redteam", root.parent / "redteam")  # one level up, where no name may lead
    for path in (f"/karma/runs/{name}", f"/karma/runs/{name}/relabels.jsonl", f"/karma/runs/{name}/cases"):
        answer = client.get(path)
        # where the dots lead to /, the page itself answers
        assert answer.status_code in (404, 405) or answer.text == (UI / "index.html").read_text(), path
    assert not (root.parent / "redteam" / FILE).exists()


def test_links_out_of_the_folder_are_not_followed(root: Path) -> None:
    (root / "elsewhere").symlink_to(DEMO, target_is_directory=True)
    assert list(find_runs(root)) == ["demo"]


def test_runs_in_folders_and_a_run_by_itself_are_found(root: Path) -> None:
    shutil.copytree(root / "demo", root / "more" / "seeds")
    assert list(find_runs(root)) == ["demo", "more~seeds"]
    assert list(find_runs(root / "demo")) == ["demo"]
    assert open_run(root, "more~seeds").arms.keys() == {"base", "tuned", "capped"}


def test_a_damaged_run_is_listed_with_what_is_wrong(client: TestClient, root: Path) -> None:
    shutil.copytree(root / "demo", root / "broken")
    (root / "broken" / "redteam" / "base" / "summary.json").write_text("{")
    broken, whole = client.get("/karma/runs").json()["runs"]
    assert "is not JSON" in broken["problem"]
    assert whole["cases"] == 30
    assert client.get("/karma/runs/broken").status_code == 409


def test_a_run_whose_suite_is_not_here_can_be_read(client: TestClient, root: Path) -> None:
    for file in (root / "demo" / "redteam").glob("*/manifest.json"):
        manifest = json.loads(file.read_text())
        manifest["inputs"]["suite"] = "0" * 64
        file.write_text(json.dumps(manifest))
    run = client.get("/karma/runs/demo").json()
    assert run["suite"] is None
    assert run["difficulties"] == {"unknown": 30}
    found = client.get("/karma/runs/demo/transcript", params={"scenario": FLIPPED}).json()
    assert found["pass_criteria"] is None
    assert "60 tenants" in found["turns"][0]["prompt"]


@pytest.mark.parametrize(
    "query",
    ["outcome=great", "difficulty=x", "change=any", "change=no", "limit=0", "limit=9999", "offset=-1", "seed=x"],
)
def test_filters_that_mean_nothing_are_refused(client: TestClient, query: str) -> None:
    path = "transcript?scenario=x&" if query.startswith("seed") else "cases?"
    assert client.get(f"/karma/runs/demo/{path}{query}").status_code in (400,)


def test_a_file_that_vanishes_while_it_is_read_is_told(client: TestClient, monkeypatch: Any) -> None:
    def vanish(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("karma_electric.serve.runs.open_run", vanish)
    answer = client.get("/karma/runs/demo")
    assert answer.status_code == 409
    assert "could not be read" in answer.text


def test_a_folder_that_cannot_be_written_to_is_told(client: TestClient, root: Path, monkeypatch: Any) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("karma_electric.serve.runs.add_relabel", refuse)
    answer = label(client)
    assert answer.status_code == 409
    assert "Permission denied" in answer.text


def test_only_who_has_the_key_reads_and_labels(root: Path) -> None:
    settings = ServeSettings(
        served=Served(id="demo"), runs=root, keys=("a-key-of-twenty-four-signs",), access_log=False
    )
    with TestClient(create_app(ENGINE, settings), base_url="http://127.0.0.1") as client:
        assert client.get("/karma/runs").status_code == 401
        assert label(client).status_code == 401
        assert client.get("/runs.html").status_code == 200  # the page itself, which asks for the key
        client.headers["Authorization"] = "Bearer a-key-of-twenty-four-signs"
        assert label(client).status_code == 201
        assert client.get("/karma/runs").status_code == 200


def test_a_page_of_another_site_can_label_nothing(client: TestClient, root: Path) -> None:
    client.headers["Origin"] = "https://evil.example"
    assert label(client).status_code == 403
    assert not (root / "demo" / "redteam" / FILE).exists()


def test_browsers_ask_whether_a_file_of_the_page_has_changed(client: TestClient) -> None:
    for path in ("/", "/js/chat.js", "/vendor/uPlot.esm.js"):
        answer = client.get(path)
        assert answer.headers["Cache-Control"] == "no-cache"
        again = client.get(path, headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.headers["Cache-Control"]) == (304, "no-cache")
    assert client.get("/js/chat.js").headers["Content-Type"].startswith("text/javascript")
    assert client.get("/js/../../app.py").status_code == 404
    assert client.get("/%2e%2e/app.py").status_code == 404


def test_the_page_takes_no_address_of_another_method(client: TestClient) -> None:
    for path in ("/karma/runs/demo/relabels", "/v1/chat/completions"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    assert client.post("/index.html", json={}).status_code == 404
    assert client.get("/nowhere").status_code == 404


def test_without_a_folder_there_are_no_runs() -> None:
    with TestClient(create_app(ENGINE, ServeSettings(served=Served(id="demo"))), base_url="http://127.0.0.1") as client:
        assert client.get("/karma/runs").status_code == 404


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="--runs"):
        runs_router(tmp_path / "nowhere")
