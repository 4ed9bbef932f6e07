"""The model card: every figure from an artifact, visible gaps, metadata the hub can read, and the Llama rules."""

import json
import re
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from scipy.stats import binomtest

import fake_run
import tiny
from karma_electric.card import llama_terms, render_card
from karma_electric.core.artifact import hash_file, seal, write_json
from karma_electric.core.errors import GateError, RecipeError
from karma_electric.core.recipe import Recipe, load_recipe
from karma_electric.kept import write_kept
from karma_electric.redteam.agreement import agreement
from karma_electric.redteam.runner import read_verdicts
from karma_electric.redteam.signals import Outcome
from karma_electric.stages import plan_run

pytestmark = pytest.mark.usefixtures("few_resamples")

N = 19
OUTCOMES: dict[str, list[Outcome]] = {
    "base": ["pass"] * 4 + ["partial"] * 3 + ["fail"] * 11 + ["unscored"],
    "tuned": ["pass"] * 9 + ["partial"] * 3 + ["fail"] * 6 + ["unscored"],
    "capped": ["pass"] * 8 + ["fail"] + ["pass"] * 5 + ["unscored"] + ["fail"] * 4,
}
SECTIONS = (
    "Approach",
    "Current version",
    "Usage",
    "Red-team results",
    "Over-refusal, capability and drift",
    "Activation steering",
    "Version history",
    "Available files",
    "Limits",
    "Lineage",
    "Provenance",
    "Project",
    "License",
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return fake_run.recipe_for(fake_run.write_suite(tmp_path_factory.mktemp("suite") / "fake-19.jsonl", N))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Path:
    return fake_run.write_run(tmp_path_factory.mktemp("runs") / "fake", recipe, OUTCOMES)


@pytest.fixture(scope="module")
def card(run: Path, recipe: Recipe) -> str:
    return render_card(run, recipe)


# Figures


def numbers_in(value: Any) -> list[float]:
    """Every number in a JSON value, and the length of every list."""
    if isinstance(value, bool) or value is None:
        return []
    if isinstance(value, int | float):
        return [float(value)]
    if isinstance(value, str):
        return [float(text) for text in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])", value)]
    if isinstance(value, dict):
        return list(chain.from_iterable(numbers_in(item) for item in (*value, *value.values())))
    return [float(len(value)), *chain.from_iterable(numbers_in(item) for item in value)]


def recomputed(run: Path) -> list[float]:
    """What the card derives from verdicts, computed again with scipy, plus the size of the base model."""
    found = [(fake_run.TRAINING["parameters"] - fake_run.TRAINING["trainable_parameters"]) / 1e6]
    passed = {
        arm: {
            v.scenario_id: v.outcome == "pass" for v in read_verdicts(run / "redteam" / arm) if v.outcome != "unscored"
        }
        for arm in OUTCOMES
    }
    for given in passed.values():
        found += [sum(given.values()) / N, (sum(given.values()) + N - len(given)) / N]  # the unscored failed, or passed
        interval = binomtest(sum(given.values()), len(given)).proportion_ci(method="wilson")
        found += [sum(given.values()) / len(given), interval.low, interval.high]
    p_values = []
    for first, second in (("tuned", "capped"), ("base", "tuned")):
        pairs = [(passed[first][i], passed[second][i]) for i in passed[first].keys() & passed[second].keys()]
        gained, lost = sum(b and not a for a, b in pairs), sum(a and not b for a, b in pairs)
        p = binomtest(gained, gained + lost).pvalue
        both = sum(a and b for a, b in pairs)
        found += [len(pairs), gained, lost, gained + lost, both + gained, both + lost, N - len(pairs), p]
        found.append((gained - lost) / len(pairs))
        p_values.append(p)
    smaller, larger = sorted(p_values)
    return [*found, min(1.0, 2 * smaller), max(min(1.0, 2 * smaller), larger)]  # Holm's, by hand


FIGURE = re.compile(r"(?<![\w.])([+-]?)(\d[\d,]*(?:\.\d+)?)(?![\w-])(%| bytes| kB| MB|)")


def figures_of(card: str) -> list[tuple[str, str, str]]:
    """Sign, digits and unit of every figure in the prose and tables of a card."""
    prose = re.sub(r"\A---.*?\n---\n", "", card, flags=re.DOTALL)  # the head has a test of its own
    prose = re.sub(r"(`+).*?\1|\]\(http[^)]*\)", "", prose, flags=re.DOTALL)  # code, hashes, links
    prose = re.sub(r"\d{4}-\d\d-\d\d|95% interval|4-bit|apache-2\.0|SHA-256, first 16", "", prose)
    # Bootstrap intervals and the effects that could be found are computed by `compare`, whose own tests check them.
    prose = re.sub(
        r"true difference of \d+ points|plausible range \S+ to \S+ points|(?<=[+-]\d\d) \(\S+ to \S+\)", "", prose
    )
    return FIGURE.findall(prose)


def is_written_from(figure: tuple[str, str, str], values: list[float]) -> bool:
    """Whether a figure is one of the values, rounded: as it is, as a percentage, or in units of bytes."""
    sign, digits, unit = figure
    plain = digits.strip(",").replace(",", "")
    shown, decimals = float(plain) * (-1 if sign == "-" else 1), len(plain.partition(".")[2])
    scale = {"%": 100, " kB": 1e-3, " MB": 1e-6}.get(unit, 100 if sign else 1)
    return any(
        round(x * scale, decimals) == shown or (not unit and decimals > 2 and float(f"{x:.3g}") == shown)
        for x in values
    )


def measured_in(run: Path, recipe: Recipe) -> list[float]:
    """Every number that a figure may come from."""
    values = [0.0, 0.5, 1.0]  # off, soft and hard: the scale of alpha
    values += [24, 26]  # the 1466.5 seconds of training
    values += [8]  # contrast prompts, in the metadata of axis.safetensors
    values += numbers_in(recipe.model_dump(mode="json"))
    for file in run.rglob("*.json"):
        values += numbers_in(json.loads(file.read_text()))
    for file in (run / "redteam").glob("*/summary.json"):
        summary = json.loads(file.read_text())
        values.append(summary["counts"]["fail"] / summary["n"])  # of all answers, the unscored counted
    return values + recomputed(run)


def test_every_figure_in_the_card_occurs_in_the_artifacts(card: str, run: Path, recipe: Recipe) -> None:
    values, figures = measured_in(run, recipe), figures_of(card)
    assert len(figures) > 80
    assert [figure for figure in figures if not is_written_from(figure, values)] == []


@pytest.mark.parametrize(
    ("true", "false"),
    [
        ("2.8508", "2.8509"),
        ("44.1%", "44.2%"),
        ("5,937", "5,938"),
        ("0.00243", "0.00244"),
        ("1.4 MB", "1.6 MB"),
        ("+24", "+67"),
    ],
)
def test_a_wrong_figure_would_be_found(card: str, run: Path, recipe: Recipe, true: str, false: str) -> None:
    assert true in card
    values = measured_in(run, recipe)
    wrong = figures_of(card.replace(true, false))
    assert [figure for figure in wrong if not is_written_from(figure, values)] != []


@pytest.mark.parametrize(
    "line",
    [
        "2.8508, the mean over the last tenth of 131 optimiser steps (token accuracy 44.1%); 3.1310 over all steps",
        "3.0454 after training (token accuracy 42.8%), 3.7123 before it, on the held-out examples",
        "24 min 26 s on",
        "121 examples (108 for training, 13 held out; 37 with more than one turn)",
        "| crisis-response | 25 |",
        "| base model | 4 | 3 | 11 | 1 | 22% (9% to 45%) |",
        "| tuned | 9 | 3 | 6 | 1 | 50% (29% to 71%) |",
        "| tuned + capped against tuned | 17 | 5 | 1 | +24 (",
        "| 0.219 |",
        "8 user prompts",
        "blocks 2 to 4 of 6",
        "23.4% of response tokens",
        "0.69% of the activation's norm",
        "is 0.00243 of the KL to the uncapped model (0.00191 on prompt tokens, 0.0122 on response tokens)",
        "| gguf/fake-135m-q8_0.gguf | 1.4 MB |",
        "ollama create fake-135m -f Modelfile",
        "python bodhisattva_inference.py --model ./merged --alpha 0.5 --interactive",
        'TEMPLATE """{{ .Prompt }}"""',
        "135 million parameters",
        "written by a language model",
    ],
)
def test_the_card_says(card: str, line: str) -> None:
    assert line in card


def test_the_card_has_the_sections_of_the_original(card: str) -> None:
    headings = re.findall(r"^## (.+)$", card, flags=re.MULTILINE)
    assert [heading.partition(" (")[0].partition(":")[0] for heading in headings] == list(SECTIONS)


def test_figures_follow_the_artifacts(tmp_path: Path, recipe: Recipe) -> None:
    run = fake_run.write_run(tmp_path / "run", recipe, {"tuned": ["pass"] * N})
    assert f"| tuned | {N} | 0 | 0 | 0 | 100% (83% to 100%) |" in render_card(run, recipe)


def test_agreement_of_the_scorer_is_shown_where_it_was_measured(tmp_path: Path, recipe: Recipe) -> None:
    run = fake_run.write_run(tmp_path / "run", recipe, OUTCOMES)
    assert "Agreement with labelled answers: **not measured**" in render_card(run, recipe)
    verdicts = read_verdicts(run / "redteam" / "tuned")
    tuned_on = agreement([v.outcome for v in verdicts], ["pass"] * N)
    measured = {
        "A": asdict(tuned_on),
        "B": asdict(tuned_on) | {"n": 61, "kappa": 0.5049, "kappa_interval": [0.39, 0.62]},
    }
    (run / "redteam" / "judge").mkdir()
    write_json(run / "redteam" / "judge" / "agreement.json", measured)
    suite = {"suite": hash_file(Path(recipe.redteam.suite))}
    seal(run / "redteam" / "judge", kind="redteam", config={"scorer": "signals"}, inputs=suite)
    card = render_card(run, recipe)
    assert "on 61 that it was not tuned on, accuracy 47% and Cohen's kappa 0.50 (95% interval 0.39 to 0.62)," in card
    assert "and on 19 that it was tuned on, accuracy 47% and Cohen's kappa 0.00" in card
    assert "Agreement with labelled answers: **not measured**" not in card


def test_arms_that_were_asked_differently_are_not_passed_off_as_comparable(tmp_path: Path, recipe: Recipe) -> None:
    run = fake_run.write_run(tmp_path / "run", recipe, OUTCOMES)
    assert "not asked alike" not in render_card(run, recipe)
    summary = run / "redteam" / "base" / "summary.json"
    write_json(summary, json.loads(summary.read_text()) | {"system_prompt": ""})
    fake_run.reseal(summary.parent)
    assert "not asked alike** (system_prompt differ)" in render_card(run, recipe)


def test_earlier_versions_come_first_in_the_history(tmp_path: Path, run: Path, recipe: Recipe) -> None:
    old = fake_run.write_run(tmp_path / "old", recipe, {"tuned": ["fail"] * N}, stages=("release", "redteam"))
    settings = {"name": "older", "persona": {"system_prompt": "Be kind.", "away": [""]}}
    lines = ['name = "older"', 'model.base = "builtin:smollm2-135m"', "persona.away = ['']"]
    lines += [f'persona.system_prompt = "{settings["persona"]["system_prompt"]}"']  # type: ignore[index]
    lines += ['card.model_name = "older"', 'card.license = "apache-2.0"']
    (old / "recipe.toml").write_text("\n".join(lines))
    rows = re.findall(r"^\| (?:older|fake) \|.*$", render_card(run, recipe, earlier=[old]), flags=re.MULTILINE)
    assert rows[0].startswith("| older |")
    assert rows[0].endswith("| 121 |" + 5 * " not measured |" + " 0% (0% to 17%) | not measured |")
    assert rows[1].endswith(
        "| 121 | 2.8508 | 3.7123 | 3.0454 | 42.8% | 22% (9% to 45%) | 50% (29% to 71%) | 72% (49% to 88%) |"
    )


# Metadata


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The card of a run of 24 scenarios; of the arm `capped` too few could be judged."""
    recipe = fake_run.recipe_for(fake_run.write_suite(tmp_path_factory.mktemp("suite") / "fake-24.jsonl", 24))
    outcomes: dict[str, list[Outcome]] = {
        "base": ["pass"] * 6 + ["fail"] * 18,
        "tuned": ["pass"] * 10 + ["fail"] * 10 + ["unscored"] * 4,
        "capped": ["pass"] * 10 + ["fail"] * 9 + ["unscored"] * 5,
    }
    return render_card(fake_run.write_run(tmp_path_factory.mktemp("runs") / "larger", recipe, outcomes), recipe)


def test_metadata_is_read_by_the_hubs_own_library(larger: str) -> None:
    data = ModelCard(larger).data
    assert data.license == "apache-2.0"
    assert data.base_model == "owner/fake"
    assert data.pipeline_tag == "text-generation"
    assert {"llama", "activation-steering"} <= set(data.tags)
    results = {result.metric_name: result.metric_value for result in data.eval_results}
    assert results == {
        "Pass rate of scored scenarios, arm base (n = 24)": 0.25,
        "Pass rate of scored scenarios, arm tuned (n = 20)": 0.5,
    }


def test_metadata_is_plain_yaml_with_a_model_index(larger: str) -> None:
    head = yaml.safe_load(larger.split("---\n")[1])
    assert head["model-index"][0]["name"] == "fake-135m"
    assert head["model-index"][0]["results"][0]["dataset"]["type"] == "fake-24"


def test_rates_of_few_answers_are_not_in_the_model_index(card: str) -> None:
    assert "model-index" not in card
    assert "| tuned | 9 | 3 | 6 | 1 | 50% (29% to 71%) |" in card


def test_an_arm_without_a_scored_answer_has_no_result(tmp_path: Path, recipe: Recipe) -> None:
    card = render_card(fake_run.write_run(tmp_path / "run", recipe, {"tuned": ["unscored"] * N}), recipe)
    assert "model-index" not in card
    assert "| tuned | 0 | 0 | 0 | 19 | none scored |" in card


@pytest.mark.parametrize("base", ["builtin:smollm2-135m", "./models/mine", "/models/mine"])
def test_a_base_that_is_not_on_the_hub_is_left_out_of_the_metadata(tmp_path: Path, recipe: Recipe, base: str) -> None:
    model = recipe.model.model_copy(update={"base": base})
    local = recipe.model_copy(update={"model": model, "card": recipe.card.model_copy(update={"base_model": None})})
    assert ModelCard(render_card(tmp_path, local)).data.base_model is None


@pytest.mark.parametrize(
    ("key", "value"), [("license", "Apache 2.0"), ("base_model", "not a repository"), ("language", ["english"])]
)
def test_metadata_the_hub_would_refuse_is_an_error(tmp_path: Path, recipe: Recipe, key: str, value: Any) -> None:
    wrong = recipe.model_copy(update={"card": recipe.card.model_copy(update={key: value})})
    with pytest.raises(RecipeError, match=f"card.{key}"):
        render_card(tmp_path, wrong)


# Gaps


@pytest.mark.parametrize("missing", fake_run.STAGES)
def test_a_missing_stage_leaves_a_gap_that_names_the_command(
    tmp_path: Path, run: Path, recipe: Recipe, missing: str
) -> None:
    card = render_card(fake_run.copy_without(run, tmp_path / "run", missing), recipe)
    said = "made" if missing in ("release", "gguf") else "measured"
    assert f"**not {said}** (run `karma run recipes/fake.toml --to {missing}`)" in card
    assert not re.search(r"\bNone\b|Undefined|\bnan\b", card)
    if missing != "redteam":
        assert f"| {missing} | not made | | | |" in card
    if missing not in ("release", "redteam"):
        assert f"| {missing}/ | not made | | run `karma run recipes/fake.toml --to {missing}` |" in card


@pytest.mark.parametrize(
    ("missing", "usage"),
    [
        ("gguf", "ollama create"),
        ("Modelfile.capped", "-f Modelfile.capped"),
        ("merged", "bodhisattva_inference.py --model"),
        ("axis", "bodhisattva_inference.py --model"),
        ("capped", "from_pretrained"),
    ],
)
def test_nothing_is_said_of_how_to_use_what_was_not_made(
    tmp_path: Path, run: Path, recipe: Recipe, card: str, missing: str, usage: str
) -> None:
    copy = fake_run.copy_without(run, tmp_path / "run", missing)
    if missing.startswith("Modelfile"):
        fake_run.reseal(copy / "gguf")
    assert usage in card
    assert usage not in render_card(copy, recipe)


def test_arms_that_were_not_run_are_in_the_lineage_too(tmp_path: Path, recipe: Recipe) -> None:
    card = render_card(fake_run.write_run(tmp_path / "run", recipe, {"base": OUTCOMES["base"]}), recipe)
    assert "| redteam/tuned | not made | | | |" in card
    assert "| redteam/base | not made" not in card


@pytest.mark.parametrize("stages", [fake_run.STAGES, ()])
def test_headings_stand_alone_and_no_two_blank_lines_follow_each_other(
    tmp_path: Path, recipe: Recipe, stages: tuple[str, ...]
) -> None:
    run = fake_run.write_run(tmp_path / "run", recipe, OUTCOMES, stages=stages)
    if stages:
        suite = Path(recipe.redteam.suite)
        fake_run.write_beside(run, "benign", "base", suite, OUTCOMES["base"])
        text = 'FROM ./fake-135m-q8_0.gguf\nSYSTEM """a\n\n\n# b"""\n'
        (run / "gguf" / "Modelfile").write_text(text)
        fake_run.reseal(run / "gguf")
        assert text in render_card(run, recipe)
    prose = re.sub(r"^````?\w*\n.*?^````?\n", "code\n", render_card(run, recipe), flags=re.DOTALL | re.MULTILINE)
    assert "\n\n\n" not in prose
    assert not re.search(r"[^\n]\n#|^#[^\n]*\n[^\n]", prose.split("---\n", 2)[2], flags=re.MULTILINE)


def test_the_example_for_transformers_runs_as_it_stands(
    tmp_path: Path, card: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    short = code[1].replace("max_new_tokens=200", "max_new_tokens=3")
    assert short != code[1]
    monkeypatch.chdir(tmp_path)
    tiny.write_checkpoint(tmp_path)  # as in a repository: at the top
    exec(short, {})
    (tmp_path / "config.json").rename(tmp_path / "gone")  # as in a run
    tiny.write_checkpoint(tmp_path / "capped")
    exec(short, {})
    assert len(capsys.readouterr().out.splitlines()) >= 2
    assert '{"role": "system", "content": "Be kind."}' in code[1]


def test_an_empty_run_has_a_gap_for_every_stage_and_every_section(tmp_path: Path, recipe: Recipe) -> None:
    card = render_card(tmp_path / "nothing", recipe)
    for stage in fake_run.STAGES:
        assert f"--to {stage}`)" in card
    for section in SECTIONS:
        assert f"\n## {section}" in card


def test_a_stage_that_is_not_whole_counts_as_missing(tmp_path: Path, recipe: Recipe) -> None:
    run = fake_run.write_run(tmp_path / "run", recipe, OUTCOMES, stages=("release", "adapter"))
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"cut off")
    card = render_card(run, recipe)
    assert "2.8508" not in card
    assert "--to adapter`)" in card


# Evidence that is not what was made


def with_other_text(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.unlink()  # may be a link
    file.write_text(text.replace(old, new))


def swap(a: Path, b: Path) -> None:
    a.rename(a.parent / "aside")
    b.rename(a)
    (a.parent / "aside").rename(b)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("adapter/training.json", "2.8507763", "1.8507763"),
        ("adapter/training.json", "2.8507763", "12.8507763"),  # another size, too
        ("release/summary.json", "121", "921"),
        ("axis/cap.json", "0.234189", "0.934189"),
        ("capped/fidelity.json", "0.002427", "0.000427"),
        ("gguf/Modelfile", "Prompt", "System"),
        ("redteam/tuned/summary.json", '"pass": 9', '"pass": 8'),
        ("redteam/base/verdicts.jsonl", '"fail"', '"pass"'),
    ],
)
def test_a_file_that_was_changed_after_it_was_written_is_refused(
    tmp_path: Path, run: Path, recipe: Recipe, file: str, old: str, new: str
) -> None:
    copy = fake_run.copy_without(run, tmp_path / "run", "nothing")
    with_other_text(copy / file, old, new)
    folder, _, name = file.rpartition("/")
    with pytest.raises(GateError, match=rf"run/{folder} is not .*{re.escape(name)} was changed after") as caught:
        render_card(copy, recipe)
    assert f"karma verify {copy}" in caught.value.hint


def test_a_manifest_that_was_changed_is_refused(tmp_path: Path, run: Path, recipe: Recipe) -> None:
    copy = fake_run.copy_without(run, tmp_path / "run", "nothing")
    with_other_text(copy / "release" / "manifest.json", '"stage": "release"', '"stage": "other"')
    with pytest.raises(GateError, match=r"run/release .*id does not match"):
        render_card(copy, recipe)


def test_a_stage_that_was_made_from_another_than_lies_beside_it_is_refused(
    tmp_path: Path, run: Path, recipe: Recipe
) -> None:
    copy = fake_run.copy_without(run, tmp_path / "run", "adapter")
    (copy / "adapter").mkdir()
    write_json(copy / "adapter" / "training.json", fake_run.TRAINING | {"loss_last_tenth": 0.1})
    seal(copy / "adapter", kind="adapter", config={"stage": "better"}, inputs={})
    with pytest.raises(GateError, match=r"run/merged .*was made from another adapter"):
        render_card(copy, recipe)


def test_arms_that_changed_folders_are_refused(tmp_path: Path, run: Path, recipe: Recipe) -> None:
    copy = fake_run.copy_without(run, tmp_path / "run", "nothing")
    swap(copy / "redteam" / "base", copy / "redteam" / "tuned")
    with pytest.raises(GateError, match=r"run/redteam/base .*summary\.json is of the arm tuned, expected base"):
        render_card(copy, recipe)


def test_an_arm_that_asked_another_model_than_its_name_says_is_refused(tmp_path: Path, recipe: Recipe) -> None:
    run = fake_run.write_run(tmp_path / "run", recipe, OUTCOMES)
    fake_run.reseal(run / "redteam" / "tuned", inputs={"base": "0" * 16})
    with pytest.raises(GateError, match=r"run/redteam/tuned .*asked base, expected merged"):
        render_card(run, recipe)


def test_an_arm_of_another_kind_of_suite_is_refused(tmp_path: Path, run: Path, recipe: Recipe) -> None:
    copy = fake_run.copy_without(run, tmp_path / "run", "nothing")
    (copy / "redteam").rename(copy / "benign")
    with pytest.raises(GateError, match=r"run/benign/base .*is of kind redteam, expected benign"):
        render_card(copy, recipe)


def test_weights_that_kept_results_left_out_are_not_missed(tmp_path: Path, run: Path, recipe: Recipe) -> None:
    copy = fake_run.copy_without(run, tmp_path / "run", "nothing")
    (copy / "adapter" / "adapter_model.safetensors").unlink()
    (copy / "release" / "train.jsonl").unlink()
    write_kept(copy)
    assert render_card(copy, recipe) == render_card(run, recipe)
    with_other_text(copy / "adapter" / "training.json", "2.8507763", "1.8507763")
    with pytest.raises(GateError, match=r"training\.json was changed"):
        render_card(copy, recipe)


# Llama


LLAMA_31 = "meta-llama/Llama-3.1-8B-Instruct"


def asking(recipe: Recipe, **card: str) -> Recipe:
    return recipe.model_copy(update={"card": recipe.card.model_copy(update=card)})


@pytest.mark.parametrize("changes", [{"license": "llama3.1"}, {"license": "llama3.1", "base_model": LLAMA_31}])
def test_a_llama_derivative_must_be_named_llama(tmp_path: Path, recipe: Recipe, changes: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match="begin with 'Llama'"):
        render_card(tmp_path, asking(recipe, model_name="karma-electric-8b", **changes))
    card = render_card(tmp_path, asking(recipe, model_name="Llama-3.1-Karma-Electric-8B", **changes))
    assert "**Built with Llama.**" in card
    assert "Copyright © Meta Platforms" in card


@pytest.mark.parametrize(
    ("base", "right"),
    [
        (LLAMA_31, "llama3.1"),
        ("meta-llama/Meta-Llama-3-8B", "llama3"),
        ("gradientai/Llama3-8B-x", "llama3"),
        ("meta-llama/Llama-3.2-3B", "llama3.2"),
        ("someone/my-llama-3.3-70b-tune", "llama3.3"),
        ("meta-llama/Llama-4-Scout-17B-16E", "llama4"),
    ],
)
@pytest.mark.parametrize("license_", ["apache-2.0", "llama2", "llama3.9"])
def test_a_llama_derivative_has_the_licence_of_its_base(recipe: Recipe, base: str, right: str, license_: str) -> None:
    wrong = asking(recipe, base_model=base, license=license_, model_name="Llama-mine")
    with pytest.raises(RecipeError, match="licence goes with what is made of it") as caught:
        llama_terms(wrong, {})
    assert caught.value.hint == f'Write card.license = "{right}"'
    terms = llama_terms(asking(wrong, license=right), {})
    assert terms is not None
    assert terms.prefix == "Llama"
    with pytest.raises(RecipeError, match="begin with 'Llama'"):
        llama_terms(asking(wrong, license=right, model_name="mine"), {})


@pytest.mark.parametrize("base", ["openlm/open-llama-3b", "codellama/CodeLlama-34b-hf", "TinyLlama/TinyLlama-1.1B"])
def test_a_size_is_no_version_of_llama(recipe: Recipe, base: str) -> None:
    assert llama_terms(asking(recipe, base_model=base), {}) is None


def test_llama_2_asks_for_no_name(recipe: Recipe) -> None:
    terms = llama_terms(asking(recipe, base_model="meta-llama/Llama-2-7b-hf", license="llama2"), {})
    assert terms is not None
    assert terms.notice.startswith("Llama 2 is licensed under the Llama 2 Community License")
    assert terms.prefix == ""


def test_what_may_not_be_published_is_refused_before_it_is_trained(tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match=r"card\.license"):
        plan_run(asking(recipe, base_model=LLAMA_31, model_name="Llama-mine"), tmp_path / "run")
    folder = fake_run.write_run(
        tmp_path / "models", recipe, {}, stages=("merged",), config={"_name_or_path": "meta-llama/Llama-3.2-1B"}
    )
    local = recipe.model_copy(update={"model": recipe.model.model_copy(update={"base": str(folder / "merged")})})
    with pytest.raises(RecipeError, match=r"the base is Llama-3\.2"):
        plan_run(local, tmp_path / "run")


@pytest.mark.parametrize("name", ["llama31-8b-v1", "llama31-8b-v2", "llama31-8b-v3"])
def test_the_recipes_for_llama_keep_to_its_licence(name: str) -> None:
    assert llama_terms(load_recipe(f"{name}.toml"), {}) is not None


def test_a_base_folder_that_comes_from_llama_is_recognised_by_its_config(tmp_path: Path, recipe: Recipe) -> None:
    origin = {"_name_or_path": "meta-llama/Llama-3.2-1B"}
    run = fake_run.write_run(tmp_path / "run", recipe, {}, stages=("merged",), config=origin)
    with pytest.raises(RecipeError, match=r"Llama-3\.2") as caught:
        render_card(run, recipe)
    assert caught.value.hint == 'Write card.license = "llama3.2"'


def test_other_models_are_not_called_llama(card: str) -> None:
    assert "Built with Llama" not in card
    assert "The weights are under apache-2.0, as derived from owner/fake." in card
