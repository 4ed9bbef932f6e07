"""What a corpus must hold to: the shipped one does, and each check finds the fault it is for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from embedded import sentence_model
from karma_electric.cli.data.card import TITLE, metadata, render
from karma_electric.cli.main import app
from karma_electric.core.errors import DataError, GateError, KarmaError
from karma_electric.core.messages import Message, assistant, user
from karma_electric.core.resources import resource_root
from karma_electric.data import code_parsers
from karma_electric.data.candidate import Candidate
from karma_electric.data.checks import Finding, Report, lengths, run_checks
from karma_electric.data.code_blocks import CodeBlock, check, code_blocks
from karma_electric.data.contacts import contacts
from karma_electric.data.corpus import dump_lines, read_corpus
from karma_electric.data.dataset_card import CorpusFacts, corpus_facts
from karma_electric.data.decontaminate import Passage, read_references
from karma_electric.data.example import Analysis, Example
from karma_electric.data.rubric import RUBRIC

CHECKS = ("openings", "lengths", "repeated", "code", "contacts", "contamination", "alike")


# --- the shipped corpus


@pytest.fixture(scope="module")
def shipped() -> Report:
    """Findings in the shipped corpus, against all shipped suites."""
    references = read_references([resource_root("suites")])
    return run_checks(read_corpus(resource_root("corpus")), references, model=sentence_model(cache=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_the_shipped_corpus_holds_to(name: str, shipped: Report) -> None:
    assert [finding for finding in shipped.findings if finding.check == name] == []


@pytest.mark.slow
def test_every_code_block_of_the_shipped_corpus_has_a_parser(shipped: Report) -> None:
    assert shipped.notes == []
    assert sum(row["parses"] for row in shipped.code.values()) >= 25


@pytest.mark.slow
def test_no_check_goes_unnamed(shipped: Report) -> None:
    assert {finding.check for finding in shipped.findings} <= set(CHECKS)


# --- each check finds its fault

OPENINGS = ["Start", "Ask", "Yes", "No", "Two", "Maria", "First", "When", "If", "Call", "Write", "Keep"]


def example(number: int, *turns: str) -> Example:
    """An example of these turns, user first."""
    messages: list[Message] = [(assistant if place % 2 else user)(text) for place, text in enumerate(turns)]
    return Example(
        id=f"adversarial-{number:04}",
        category="adversarial",
        tags=("test",),
        messages=messages,
        analysis=Analysis("It helps.", "Nobody is hurt.", "Silence costs."),
        source="test",
        license="CC-BY-4.0",
        added_in="v1",
        status="accepted",
    )


def found(examples: Sequence[Example], name: str, references: Sequence[Passage] = ()) -> list[Finding]:
    """Findings of one check, without a model unless it needs one."""
    model = sentence_model() if name == "alike" else None
    return [finding for finding in run_checks(examples, references, model=model).findings if finding.check == name]


def varied(n: int) -> list[Example]:
    """Examples whose answers have 20 to 300 words and openings of their own."""
    return [
        example(
            number,
            f"Question {number}?",
            f"{OPENINGS[number % 12]} {number} " + f"w{number} " * (20 + 280 * number // n),
        )
        for number in range(n)
    ]


def test_an_opening_of_more_than_3_percent_of_the_answers() -> None:
    base = varied(60)
    assert found(base, "openings") == []
    alike = [example(100 + n, f"Q{n}?", f"I understand that, {n}") for n in range(2)]
    assert found([*base, *alike[:1]], "openings") == []
    [finding] = found([*base, *alike], "openings")
    assert finding.evidence == "i understand that"
    assert finding.what.startswith("2 of 62 answers")


def test_answers_that_are_all_of_one_length() -> None:
    assert found(varied(60), "lengths") == []
    same = [example(n, f"Q{n}?", f"w{n} " * (100 + n % 7)) for n in range(60)]
    whats = [finding.what for finding in found(same, "lengths")]
    assert len(whats) == 3
    assert whats[0].startswith("0.0% of the answers have fewer than 45 words")
    assert whats[1].startswith("0.0% of the answers have more than 200 words")
    assert "the 90th percentile is 1.1 times the 10th" in whats[2]
    assert found(same[:20], "lengths") == []  # too few to say


def test_quantiles_are_those_of_the_words() -> None:
    measured = lengths([" ".join(["w"] * n) for n in range(1, 301)])
    assert (measured.shortest, measured.p10, measured.median, measured.p90, measured.longest) == (1, 31, 151, 271, 300)
    assert measured.short_share == pytest.approx(44 / 300)
    assert measured.long_share == pytest.approx(100 / 300)
    assert measured.total == 45150


def test_a_turn_that_is_there_twice() -> None:
    twice = "The very same six words here"
    [finding] = found([example(1, twice, "No."), example(2, "Hm?", twice.upper() + "!")], "repeated")
    assert (finding.id, "adversarial-0001" in finding.what) == ("adversarial-0002", True)


def test_answers_and_prompts_that_say_the_same() -> None:
    question = "How can I remove red wine stains from a white cotton shirt?"
    again = "What is the best way to get red wine stains out of a white cotton shirt?"
    findings = found([example(1, question, "Salt, at once."), example(2, again, "Cold water and patience.")], "alike")
    assert [finding.id for finding in findings] == ["adversarial-0002"]
    assert "prompts alike (0.97" in findings[0].what
    insisting = example(3, question, "Salt.", again, "Salt, as I said.")
    assert found([insisting], "alike") == []  # who insists asks the same again
    assert len(found([example(1, "One?", question), example(2, "Two?", again)], "alike")) == 1


def test_what_a_suite_asks() -> None:
    prompt = "My lentils are still hard after fifty minutes and guests come at seven. Can I save them?"
    [finding] = found([example(1, prompt, "Soda.")], "contamination", [Passage("contrast.jsonl:c1", prompt)])
    assert (finding.id, "contrast.jsonl:c1" in finding.what) == ("adversarial-0001", True)


def test_code_that_does_not_parse_and_fences_left_open_or_unnamed() -> None:
    answers = [
        "```python\nx = = 1\n```",
        "```\nx = 1\n```",
        "```sql\nSELECT 1",
        "```python\n```",
        "```python\nx = 1\n```",
    ]
    examples = [example(number, "Code?", answer) for number, answer in enumerate(answers)]
    assert [(finding.id[-1], finding.what.split(" (")[0]) for finding in found(examples, "code")] == [
        ("0", "python: invalid syntax"),
        ("1", "no language: the fence names no language"),
        ("2", "sql: the fence is never closed"),
        ("3", "python: the block is empty"),
    ]


def test_a_language_without_a_parser_is_counted_and_said() -> None:
    report = run_checks([example(1, "Code?", "```cobol\nSTOP RUN.\n```")], model=None)
    assert report.findings == []
    assert [note.what for note in report.notes] == ["cobol: no parser for cobol"]
    assert report.code == {"cobol": {"parses": 0, "fails": 0, "unchecked": 1}}


def test_contacts_are_looked_for_in_every_turn_and_the_analysis() -> None:
    told = "Call 0800 123 4567."
    for turns in ((told, "No."), ("Hm?", told)):
        assert [finding.evidence for finding in found([example(1, *turns)], "contacts")] == ["0800 123 4567"]
    analysed = Example(**{**vars(example(1, "Hm?", "No.")), "analysis": Analysis("a", told, "c")})
    assert len(found([analysed], "contacts")) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("call +44 20 7946 0958 now", True),
        ("call 0800 123 4567.", True),
        ("call (212) 736-5000", True),
        ("on 2025-03-09 or 08-03-2025, 86400000 ms, 10.20.0.15, 1.250,50", False),
        ("call 212-555-0134", False),
        ("from 2019 to 2023, 100 200 people", False),
        ("write to ana.perez@gmail.com", True),
        ("see https://bit.ly/3xYz", True),
        ("see www.hotline.org", True),
        ("write to me@example.org or see https://docs.example.com/a", False),
        ("git clone https://github.com/YOU/REPO.git", False),
        ("use the @property decorator", False),
        ("ping 93.184.216.34 first", True),
        ("ping 192.168.1.20, 203.0.113.7 or 8.8.8.8; version 1.2.3.4", False),
        ("I live at 221B Baker Street", True),
        ("Come to 14 Old Mill Road.", True),
        ("wohnt in der Lindenstraße 14", True),
        ("Calle de la Luna 12, segundo", True),
        ("23 Rue", False),
        ("The 12 Main points on Street food", False),
        ("I ran 5 Kilometres down the Road", False),
    ],
)
def test_what_could_be_somebodys(text: str, expected: bool) -> None:
    assert bool(contacts(text)) is expected


# --- code blocks

PARSING = {
    "bash": ('for f in *; do echo "$f"; done', "for f in *; do echo"),
    "c": ("int main(void) { return 0; }", "int main(void) { return 0;"),
    "cpp": ("template<class T> T f(T x) { return x; }", "int main( { }"),
    "csharp": ("var x = items.Where(i => i.Ok).ToList();", "class A { void f() { int x = 1 } }"),
    "css": ("a { color: red; }", "a { color: red;"),
    "csv": ("a,b\n1,2", "a,b\n1,2,3"),
    "diff": ("--- a\n+++ b\n@@ -1 +1 @@\n-x\n+y", "hello"),
    "dockerfile": ("FROM python:3.12\nRUN pip install x \\\n  && rm y", "FROM python\nRUNN x"),
    "excel": ('=IF(A1>1,"x)",B2)', "=SUM(A1"),
    "go": ("func main() { x := []int{1}; _ = x }", "func f( {"),
    "hcl": ('resource "a" "b" {\n  x = 1\n}', 'resource "a" {\n x = \n}'),
    "html": ("<ul><li>a<li>b</ul><img src=x>", "<div><span>x</div>"),
    "ini": ("[a]\nb=1", "b=1"),
    "java": ("int f(int x) { return x; }", "class A { void f() { int x = 1 } }"),
    "javascript": ("const f = async (x) => x?.y ?? 3;", "const f = (x => {"),
    "json": ('{"a": 1}', '{"a": 1,}'),
    "jsonl": ('{"a": 1}\n{"b": 2}', '{"a": 1}\n{'),
    "kotlin": ("fun main() { val x = listOf(1).map { it * 2 } }", "fun main( { }"),
    "lua": ("for i, v in ipairs(x) do print(v) end", "for i in do"),
    "makefile": ("all: a\n\tgcc -o a a.c", "all: a\n\techo $(x"),
    "nginx": (
        'map $a $b {\n  default 0; # so\n  "~x;{" 1;\n}\nlocation ~ ^/\\d{2}/ { return 301 https://${h}$uri; }',
        "server {\n  listen 80\n}",
    ),
    "php": ("<?php\nfunction f(int $x): int { return $x; }", "$x = [1,2;"),
    "pycon": (">>> 1 + 1\n2", ">>> 1 +\n2"),
    "python": ("    def f(self):\n        return 1", "x = = 1"),
    "r": ('ggplot(d, aes(x, y)) +\n  labs(x = NULL, y = "a) +") # (', "f(x) +"),
    "ruby": ("def x(a)\n  a&.b || [1].map { |y| y + 1 }\nend", "def x\n 1 +\nend"),
    "rust": ('fn main() { let x: Vec<u8> = vec![]; println!("{x:?}"); }', "fn main() { let = 3; }"),
    "sh": ("cat <<E\nx\nE", "cat <<E\nx"),
    "sql": ("UPDATE a SET b = 1 WHERE c IN (SELECT 1) RETURNING b;", "SELECT FROM WHERE"),
    "swift": ("if let y = x { print(y) }", "func f( { }"),
    "toml": ("a = 1\n[b]\nc = 2", "a = "),
    "typescript": ("const A = () => <div>{x as string}</div>;", "let x: = 3;"),
    "xml": ("<a><b/></a>", "<a><b></a>"),
    "yaml": ("a: 1\nb: !Ref x", "a: [1\nb: 2"),
}


@pytest.mark.parametrize("language", PARSING)
def test_a_language_is_told_from_what_only_looks_like_it(language: str) -> None:
    good, bad = PARSING[language]
    assert check(CodeBlock(language, good + "\n", 1, True)).outcome == "parses"
    verdict = check(CodeBlock(language, bad + "\n", 1, True))
    assert verdict.outcome == "fails"
    assert verdict.reason


def test_every_parser_has_such_a_pair() -> None:
    assert {*code_parsers._PARSERS, *code_parsers._GRAMMARS} - {"tsx"} == set(PARSING)


def test_a_word_alone_is_no_sql_and_a_script_in_a_page_is_read() -> None:
    assert check(CodeBlock("sql", "hello\n", 1, True)).outcome == "fails"
    verdict = check(CodeBlock("html", "<script>const x = (;</script>\n", 1, True))
    assert verdict.reason.startswith("<script>: unexpected")


def test_blocks_are_found_as_markdown_means_them() -> None:
    text = (
        "- so:\n  ```py\n  if x:\n      y\n  ```\nno ``` here\n````md\n```\ninside\n```\n````\n~~~ JSON title\n1\n~~~\n"
    )
    assert code_blocks(text) == [
        CodeBlock("python", "if x:\n    y\n", 2, True),
        CodeBlock("markdown", "```\ninside\n```\n", 7, True),
        CodeBlock("json", "1\n", 12, True),
    ]
    assert code_blocks("```js\nopen") == [CodeBlock("javascript", "open\n", 1, False)]


def test_nothing_in_a_block_is_executed(tmp_path: Path) -> None:
    path = tmp_path / "made"
    check(CodeBlock("bash", f"touch {path}; $(touch {path})\n", 1, True))
    check(CodeBlock("python", f"open({str(path)!r}, 'w')\n", 1, True))
    assert not path.exists()


# --- the command


def run(*arguments: str | Path) -> str:
    """Output of `karma data`."""
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    if isinstance(result.exception, KarmaError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def folder_of(path: Path, *examples: Example) -> Path:
    """A corpus folder of these examples."""
    path.mkdir(exist_ok=True)
    (path / "adversarial.jsonl").write_text(dump_lines([item.as_dict() for item in examples]))
    return path


def test_ones_own_corpus_is_checked_by_the_same_rules(tmp_path: Path) -> None:
    good = folder_of(tmp_path / "good", example(1, "Do bees sleep?", "They do, mostly at night."))
    assert "1 examples, 1 answers of 5 to 5 words" in run("check", good, "--no-semantic")
    bad = folder_of(tmp_path / "bad", example(1, "Who?", "Call 0800 123 4567."))
    with pytest.raises(GateError, match="1 findings"):
        run("check", bad, "--no-semantic")
    result = CliRunner().invoke(app, ["data", "check", str(bad), "--no-semantic", "--json"])
    [finding] = json.loads(result.stdout)["findings"]
    assert (finding["check"], finding["id"], finding["evidence"]) == ("contacts", "adversarial-0001", "0800 123 4567")


def malformed(folder: Path, count: int) -> Path:
    """A corpus of one good example and `count` lines that are none, for four reasons."""
    good = example(1, "Do bees sleep?", "They do, mostly at night.").as_dict()
    bad = ["{", json.dumps(good), json.dumps(good | {"id": "x", "tags": []}), json.dumps(good | {"id": "y", "z": 1})]
    folder.mkdir()
    lines = [json.dumps(good), *(bad[number % 4] for number in range(count - 1))]
    (folder / "adversarial.jsonl").write_text("\n\n".join(lines))
    (folder / "crisis-response.jsonl").write_text(json.dumps(good | {"id": "w"}) + "\n")
    return folder


def test_all_malformed_lines_are_named_at_once(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["data", "check", str(malformed(tmp_path / "c", 5)), "--no-semantic"])
    assert isinstance(result.exception, DataError)
    assert result.exception.message == "5 of 6 lines are no examples."
    lines = result.stdout.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        *(f"adversarial.jsonl line {number}" for number in (3, 5, 7, 9)),
        "crisis-response.jsonl line 1",
    ]
    said = (
        "not JSON",
        "already used in adversarial.jsonl line 1",
        "'tags' is []",
        "unknown key 'z'",
        "does not belong",
    )
    assert all(what in line for what, line in zip(said, lines, strict=True))


def test_twenty_malformed_lines_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    folder = str(malformed(tmp_path / "c", 30))
    shown = CliRunner().invoke(app, ["data", "check", folder, "--no-semantic"]).stdout.splitlines()
    assert (len(shown), shown[-1]) == (21, "and 10 more: --json lists them")
    found = json.loads(CliRunner().invoke(app, ["data", "check", folder, "--no-semantic", "--json"]).stdout)
    assert (found["examples"], len(found["malformed"])) == (1, 30)


def test_a_single_malformed_line_is_the_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["data", "check", str(malformed(tmp_path / "c", 1)), "--no-semantic"])
    assert result.stdout == ""
    assert isinstance(result.exception, DataError)
    assert result.exception.message.startswith("crisis-response.jsonl line 1: category 'adversarial'")


# --- the dataset card


@pytest.fixture(scope="module")
def facts() -> CorpusFacts:
    """What the card of the shipped corpus says."""
    return corpus_facts(
        resource_root("corpus"), references=[resource_root("suites")], model=sentence_model(cache=True), title=TITLE
    )


@pytest.mark.slow
def test_the_card_of_the_shipped_corpus_is_what_the_data_say(facts: CorpusFacts) -> None:
    assert (resource_root("corpus") / "README.md").read_text(encoding="utf-8") == render(facts), (
        "render it with: karma data card corpus"
    )


@pytest.mark.slow
def test_its_counts_are_those_of_the_files(facts: CorpusFacts) -> None:
    lines = sum(len(file.read_text().splitlines()) for file in resource_root("corpus").glob("*.jsonl"))
    assert facts.examples == lines
    assert sum(sum(row.values()) for row in facts.categories.values()) == lines
    assert sum(facts.user_turns.values()) == lines
    assert sum(n * turns for turns, n in facts.user_turns.items()) == facts.answer_lengths.n


@pytest.mark.slow
def test_its_head_is_what_the_hub_reads(facts: CorpusFacts) -> None:
    from huggingface_hub import DatasetCard

    head = DatasetCard(render(facts)).data.to_dict()
    assert head["license"] == ["cc-by-4.0"]
    assert head["task_categories"] == ["text-generation"]
    assert head["configs"] == yaml.safe_load(metadata(facts))["configs"]
    folder = resource_root("corpus")
    for config in head["configs"]:
        assert list(folder.glob(config["data_files"])), config


def card_of(folder: Path) -> str:
    """The card of a folder, after writing it."""
    run("card", folder, "--against", resource_root("suites") / "heldout-48.jsonl")
    return (folder / "README.md").read_text()


def test_a_card_follows_the_data_and_says_when_it_does_not(tmp_path: Path) -> None:
    against = ["--against", resource_root("suites") / "heldout-48.jsonl"]
    folder = folder_of(tmp_path / "c", example(1, "Do bees sleep?", "They do, mostly at night."))
    with pytest.raises(GateError, match=r"README\.md is not what the data say"):
        run("card", folder, "--check", *against)
    assert not (folder / "README.md").exists()
    assert "1 conversations" in card_of(folder)
    run("card", folder, "--check", *against)
    folder_of(folder, example(1, "Do bees sleep?", "Yes."))
    with pytest.raises(GateError):
        run("card", folder, "--check", *against)


def test_somebody_who_asks_again_is_no_near_duplicate(tmp_path: Path) -> None:
    asks = "How do I keep my bees alive through a long and very cold winter in the north?"
    alone = example(1, asks, "Wrap the hive.", asks, "Feed them sugar, too.")
    assert "| prompts | 2 | 0 | 0 | 0 | 0 | 0 |" in card_of(folder_of(tmp_path / "c", alone))
    other = example(2, asks, "Leave them forty pounds of honey.")
    assert "| prompts | 3 | 1 | 1 | 1 | 1 | 1 |" in card_of(folder_of(tmp_path / "d", alone, other))


def test_what_is_not_synthetic_is_not_called_so(tmp_path: Path) -> None:
    text = card_of(folder_of(tmp_path / "c", example(1, "Do bees sleep?", "They do, mostly at night.")))
    assert "synthetic" not in text.lower()
    assert "as the examples say: test 1 (100%)" in text


def test_grades_are_shown_per_judge_with_their_agreement_and_only_for_the_present_words(tmp_path: Path) -> None:
    examples = [example(n, f"Question {n} about bees?", f"Answer {n}, about bees.") for n in range(4)]
    folder = folder_of(tmp_path / "c", *examples)
    (folder / "grades").mkdir()
    totals = {"judge-a": [20, 30, 32, 40], "judge-b": [22, 30, 36, 36]}
    for judge, given in totals.items():
        rows = [
            {
                "id": item.id,
                "content_sha256": Candidate.from_example(item).content_sha256,
                "rubric": RUBRIC,
                "judge": judge,
                "scores": dict.fromkeys(("suffering", "consequences", "help", "clarity"), total / 4),
                "total": total,
                "rationale": "",
            }
            for item, total in zip(examples, given, strict=True)
        ]
        rows.append({**rows[0], "content_sha256": "0" * 64})  # graded before it was changed
        (folder / "grades" / f"{judge}.jsonl").write_text(dump_lines(rows))
    text = card_of(folder)
    assert "| judge-a | 4 | 0 | 1 | 31.0 | 75% |" in text
    assert "judge-a and judge-b on 4 examples: mean absolute difference 2.5 of 40" in text
    assert "rank correlation (Spearman) 0.95" in text


def test_releases_are_configurations(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "c", example(1, "Do bees sleep?", "They do, mostly at night."))
    (folder / "releases" / "v1").mkdir(parents=True)
    (folder / "releases" / "v1" / "train.jsonl").write_text("{}\n")
    head = yaml.safe_load(card_of(folder).split("---")[1])
    assert head["configs"][-1] == {
        "config_name": "v1",
        "data_files": [
            {"split": "train", "path": "releases/v1/train.jsonl"},
            {"split": "validation", "path": "releases/v1/validation.jsonl"},
        ],
    }
