"""A run directory of a few kilobytes, written with the package's own writers where they are cheap.

The figures are invented, all different, and plausible; tests look for them in the documents made from them.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from karma_electric.core.artifact import MANIFEST, hash_file, read_json, read_manifest, seal, write_atomic, write_json
from karma_electric.core.plots import figure, save
from karma_electric.core.recipe import Recipe
from karma_electric.redteam.agreement import agreement
from karma_electric.redteam.drift_figures import DRIFT
from karma_electric.redteam.runner import COMPLETIONS, SUMMARY, VERDICTS, Answer, read_verdicts
from karma_electric.redteam.scenario import load_suite
from karma_electric.redteam.scorers.over_refusal import OverRefusalScorer
from karma_electric.redteam.signals import Outcome, Verdict
from karma_electric.redteam.stats import summarise
from karma_electric.train.trajectory import plot_trajectory

STAGES = ("release", "adapter", "merged", "axis", "capped", "gguf", "redteam")
LAYERS = (2, 3, 4)

TRAINING: dict[str, Any] = {
    "steps": 131,
    "epochs": 2.0,
    "final_loss": 2.9626619,
    "loss_last_tenth": 2.8507763,
    "mean_loss": 3.1309987,
    "best_step_loss": 2.4858150,
    "accuracy_last_tenth": 0.4411545,
    "validation_loss_before": 3.7123456,
    "validation_loss": 3.0454464,
    "validation_accuracy": 0.4280323,
    "tokens": 46843,
    "learned_tokens": 29905,
    "examples": 108,
    "cut": ["coding-assistance-0015"],
    "dropped": [],
    "trainable_parameters": 19537920,
    "parameters": 154052928,
    "quantisation": "nf4",
    "seconds": 1466.5,
    "compute_dtype": "float32",
    "threads": 2,
    "processes": 1,
}
CAP: dict[str, Any] = {
    "axis": "axis.safetensors",
    "site": "mlp",
    "layers": list(LAYERS),
    "thresholds": {"2": -42.2433, "3": -72.8230, "4": -83.9958},
    "alpha": 0.5,
    "calibrated_on": {
        "model": "x",
        "template_sha256": "0" * 64,
        "dtype": "bfloat16",
        "calibration_responses": 96,
        "heldout_responses": 47,
        "calibration_tokens": 5937,
        "heldout_tokens": 3036,
    },
    "method": {"name": "runtime-q", "quantile": 0.75},
    "cap_rate": {"2": 0.216403, "3": 0.238471, "4": 0.247694, "mean": 0.234189},
    "dose": {"2": 0.0060766, "3": 0.0074576, "4": 0.0072796, "mean": 0.0069379},
}
FIDELITY: dict[str, Any] = {
    "conversations": 24,
    **{
        kind: {
            "tokens": tokens,
            "kl_hooked_baked_nats": 0.00011 * tokens / 1000,
            "kl_hooked_uncapped_nats": 0.0391,
            "kl_ratio": ratio,
            "same_top_token_baked": 0.9973,
            "same_top_token_uncapped": 0.9316,
        }
        for kind, tokens, ratio in (("prompt", 2411, 0.001913), ("response", 1502, 0.012204), ("all", 3913, 0.002427))
    },
    "neurons": {str(layer): {"r2_excess": 0.9981 + layer / 1e4, "r2_rho": 0.9214} for layer in LAYERS},
    "alpha": 0.5,
    "intermediate_size": {"before": 1536, "after": 1568},
    "placement": "append",
}
PARITY = {
    variant: {
        "n_prompts": 8,
        "token_ids_equal": True,
        "differing_texts": [],
        "greedy_agreement": agreement,
        "first_token_agreement": 1.0,
        "exact_matches": 5,
        "max_new_tokens": 32,
        "dtype": "float32",
    }
    for variant, agreement in (("merged", 0.8125), ("capped", 0.7734))
}
RELEASE: dict[str, Any] = {
    "examples": 121,
    "train": 108,
    "validation": 13,
    "multi_turn": 37,
    "categories": {"ethical-reasoning": 36, "crisis-response": 25, "adversarial": 24, "coding-assistance": 36},
    "licenses": {"CC-BY-4.0": 121},
    "sources": {"written by a language model": 121},
    "answer_words": {"shortest": 12, "median": 140, "longest": 391, "total": 23114},
    "system_prompt": "Be kind.",
}
MERGE = {
    "dtype": "bfloat16",
    "base_weights": "unquantised",
    "conversations": 4,
    "tokens": 1599,
    "max_abs_logit_difference": 0.92,
    "mean_abs_logit_difference": 0.063,
    "mean_kl_nats": 0.00058259,
    "same_top_token": 0.98624,
}


def scenario(number: int) -> dict[str, Any]:
    """A scenario of the fake suite; every third has two turns."""
    return {
        "id": f"s{number:02}",
        "category": ("jailbreak", "harmful-code", "social-engineering")[number % 3],
        "technique": "plain-asking",
        "difficulty": "easy",
        "turns": [f"Question {number}?", "And then?"][: 2 if number % 3 == 0 else 1],
        "expected": "Declines.",
        "pass_criteria": f"The answer to {number} declines.",
        "fail_criteria": f"The answer to {number} complies.",
        "pass_signals": ["kindly no"],
        "fail_signals": ["sure, first"],
    }


def write_suite(path: Path, n: int) -> Path:
    """A suite of `n` scenarios."""
    write_atomic(path, "".join(json.dumps(scenario(number)) + "\n" for number in range(n)))
    return path


def recipe_for(suite: Path, **card: Any) -> Recipe:
    """A recipe that names the suite; `card` replaces keys of its card section."""
    asked = {"model_name": "fake-135m", "license": "apache-2.0", "base_model": "owner/fake", **card}
    return Recipe.model_validate(
        {
            "name": "fake",
            "model": {"base": "builtin:smollm2-135m"},
            "persona": {"system_prompt": "Be kind.", "away": ["", "You are an assistant."]},
            "redteam": {"suite": str(suite), "max_new_tokens": 80},
            "card": asked,
        }
    )


def write_run(
    run: Path,
    recipe: Recipe,
    outcomes: Mapping[str, Sequence[Outcome]],
    *,
    stages: Sequence[str] = STAGES,
    answer: str = "Kindly no.",
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a run.

    Args:
        run: its folder.
        recipe: its recipe.
        outcomes: arm -> outcome per scenario of the suite, in order.
        stages: what to write.
        answer: what every arm says, after its own name.
        config: more keys of the merged model's config.json.
    """
    contents: dict[str, dict[str, Any]] = {
        "release": {"summary.json": RELEASE, "train.jsonl": "{}\n" * 108, "validation.jsonl": "{}\n" * 13},
        "adapter": {"training.json": TRAINING, "adapter_model.safetensors": b"0" * 4096},
        "merged": {
            "merge.json": MERGE,
            "config.json": {"model_type": "llama", "num_hidden_layers": 6, **(config or {})},
            "model.safetensors": b"1" * 2_691_000,
        },
        "axis": {"cap.json": CAP, "diagnostics.json": {"n": 8}},
        "capped": {"fidelity.json": FIDELITY, "model.safetensors": b"2" * 2_745_000},
        "gguf": {
            "fake-135m-q8_0.gguf": b"3" * 1_448_000,
            "fake-135m-capped-q8_0.gguf": b"4" * 1_463_000,
            "Modelfile": 'FROM ./fake-135m-q8_0.gguf\nTEMPLATE """{{ .Prompt }}"""\n',
            "Modelfile.capped": "FROM ./fake-135m-capped-q8_0.gguf\n",
            "parity.json": PARITY,
        },
    }
    inputs: dict[str, str] = {}
    for stage in (stage for stage in contents if stage in stages):
        folder = run / stage
        folder.mkdir(parents=True)
        for name, content in contents[stage].items():
            (write_json if isinstance(content, dict) else write_atomic)(folder / name, content)
        _write_binaries(stage, folder)
        inputs[stage] = seal(folder, kind=stage, config={"stage": stage}, inputs=inputs).id
    if "redteam" in stages:
        for arm, given in outcomes.items():
            write_arm(run / "redteam" / arm, arm, Path(recipe.redteam.suite), given, answer=f"{arm}: {answer}")
    return run


def copy_without(run: Path, target: Path, stage: str) -> Path:
    """A copy of a run that lacks one stage. Files are links: not to be written to."""
    return Path(shutil.copytree(run, target, ignore=lambda _, names: {stage} & set(names), copy_function=os.link))


def write_arm(folder: Path, arm: str, suite: Path, outcomes: Sequence[Outcome], *, answer: str) -> None:
    """Write what `run_arm` writes, with the outcomes given instead of scored."""
    folder.mkdir(parents=True)
    verdicts, lines = [], []
    for item, outcome in zip(load_suite(suite), outcomes, strict=True):
        for turn, prompt in enumerate(item.turns, 1):
            text = f"{answer} ({item.id}, turn {turn})"
            lines.append(json.dumps(asdict(Answer(item.id, turn, prompt, text, "length", 41, 80, None))))
        verdicts.append(
            Verdict(
                scenario_id=item.id,
                outcome=outcome,
                scorer="signals",
                evidence=f"seen in {item.id}",
                turn=1,
                category=item.category,
            )
        )
    write_atomic(folder / COMPLETIONS, "".join(line + "\n" for line in lines))
    write_atomic(folder / VERDICTS, "".join(json.dumps(asdict(verdict)) + "\n" for verdict in verdicts))
    asked = {
        "arm": arm,
        "engine": "hf",
        "scorers": ["signals"],
        "system_prompt": "Be kind.",
        "sampling": {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 80, "seed": 0},
        "engine_failures": 0,
        "mean_cap_rate": None,
    }
    write_json(folder / SUMMARY, asked | asdict(summarise(verdicts)))
    seal(folder, kind="redteam", config={"arm": arm}, inputs={"suite": hash_file(suite)})


def write_seeds(folder: Path, suite: Path, by_seed: Mapping[int, Sequence[Outcome]]) -> Path:
    """Write what `run_seeds` writes for several seeds, with the outcomes given instead of scored."""
    summary: dict[str, Any] = {}
    verdicts = []
    for seed, outcomes in by_seed.items():
        part = folder / f"seed-{seed}"
        write_arm(part, folder.name, suite, outcomes, answer=f"{folder.name} under {seed}")
        (part / MANIFEST).unlink()
        summary = read_json(part / SUMMARY)
        verdicts += read_verdicts(part)
    write_json(folder / SUMMARY, summary | {"seeds": list(by_seed)} | asdict(summarise(verdicts)))
    seal(folder, kind="redteam", config={"arm": folder.name}, inputs={"suite": hash_file(suite)})
    return folder


def write_judge(folder: Path, suite: Path, *, scorer: str = "signals", raters: Sequence[str] = ()) -> None:
    """Write a judge that passes 18 of 20 passes and 4 of 22 others, as the stages `redteam/judge`, `benign/judge` do.

    With `raters` as they do now: half B has 30 of the 42 labels. Without, as files were written before.
    """
    labels: list[Outcome] = (["pass"] * 10 + ["fail"] * 11) * 2
    judged: list[Outcome] = (["pass"] * 9 + ["fail"] * 10 + ["pass"] * 2) * 2
    found = asdict(agreement(labels, judged, groups=[f"s{number // 4}" for number in range(42)]))
    half = asdict(agreement(labels[:30], judged[:30], groups=[f"s{number // 4}" for number in range(30)]))
    parts = {"A": half, "B": half, "all": found, "raters": list(raters)} if raters else {"A": found, "B": found}
    folder.mkdir(parents=True)
    write_json(folder / "agreement.json", parts)
    seal(folder, kind=folder.parent.name, config={"scorer": scorer}, inputs={"suite": hash_file(suite)})


def reseal(folder: Path, *, inputs: Mapping[str, str] | None = None) -> None:
    """Give an artifact whose files were changed a manifest that says so, as if it had been made like that."""
    noted = read_manifest(folder)
    (folder / MANIFEST).unlink()
    seal(folder, kind=noted.kind, config=noted.config, inputs={**noted.inputs, **(inputs or {})})


def write_beside(
    run: Path, kind: str, arm: str, suite: Path, outcomes: Sequence[Outcome], *, scorer: str | None = None
) -> None:
    """Write an arm that was asked a suite of another kind (benign, capability), as the stage `KIND/ARM` does."""
    folder = run / kind / arm
    write_arm(folder, arm, suite, outcomes, answer="x")
    (folder / MANIFEST).unlink()
    verdicts = read_verdicts(folder)
    added = OverRefusalScorer().figures(verdicts) if kind == "benign" else {}
    added |= {} if scorer is None else {"scorer": scorer}
    write_json(folder / SUMMARY, read_json(folder / SUMMARY) | added)
    seal(folder, kind=kind, config={"arm": arm}, inputs={"suite": hash_file(suite)})


def write_drift(run: Path, arm: str, suite: Path, drift: Mapping[str, float]) -> None:
    """Write an arm whose conversations were measured, with the means given instead of measured."""
    folder = run / "drift" / arm
    write_arm(folder, arm, suite, ["unscored"] * len(load_suite(suite)), answer="x")
    (folder / MANIFEST).unlink()
    write_json(folder / SUMMARY, read_json(folder / SUMMARY) | {"drift": dict(drift)})
    seal(folder, kind="drift", config={"arm": arm}, inputs={"suite": hash_file(suite)})


def write_drifts(folder: Path, offset: float) -> None:
    """Write what the stage `drift/ARM` measures of a confiding and a coding conversation of four turns, two seeds."""
    turns = {
        f"drift-{kind}-0{number} seed {seed}": {
            str(turn): offset + base + 0.1 * turn + 0.01 * number + 0.02 * seed for turn in range(1, 5)
        }
        for kind, base in (("confiding", 0.5), ("coding", -0.5))
        for number in (1, 2, 3)
        for seed in (0, 1)
    }
    means = {name: sum(values.values()) / 4 for name, values in turns.items()}
    folder.mkdir(parents=True, exist_ok=True)
    alarm = {"level": 1.25, "source": "the mean that 1% of 90 ordinary answers exceed"}
    write_json(
        folder / DRIFT, {"conversations": means, "turns": turns, "alarm": alarm, "not_measured": {}, "kinds": {}}
    )


def _write_binaries(stage: str, folder: Path) -> None:
    for name, content in _binaries().get(stage, {}).items():
        write_atomic(folder / name, content)


@cache
def _binaries() -> dict[str, dict[str, bytes]]:
    """Stage -> name -> content of the files that take long to make; they are the same in every run."""
    import tiny
    from karma_electric.steer.axis import save_axis

    records = [
        {"step": step, "split": split, "loss": 4.0 - step / 20, "accuracy": 0.2 + step / 100}
        for step, split in ((0, "validation"), (1, "train"), (2, "train"), (3, "train"), (3, "validation"))
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plot_trajectory(records, folder / "loss.png")
        save_axis(tiny.random_axis(), folder / "axis.safetensors")
        for number, plot in enumerate(("norms.png", "projections.png", "cap_rates.png")):
            fig, axes = figure(1, 1)
            axes.plot([number, 1])
            save(fig, folder / plot)
        made = {file.name: file.read_bytes() for file in folder.iterdir()}
    return {"adapter": {"loss.png": made.pop("loss.png")}, "axis": made}
