"""Keeps the small files of a run under results/, and renders the README's figures from them.

python tools/results.py keep runs/demo               copy manifests, JSON, plots and card to results/demo
python tools/results.py keep --partial runs/NAME     the same for a run that was only trained, or is not finished yet
python tools/results.py rerender                     write report and card of every kept run anew, from what is kept
python tools/results.py releases LABELS              judge all arms of all releases by one file of labels
python tools/results.py render                       rewrite the generated parts of README.md and docs/
python tools/results.py check                        exit 1 if one of them differs from what results/ say, or a figure
                                                     typed beside the name of a file under results/ is not in it
python tools/results.py typed                        list the figures of README, changelog and docs beside no such file
"""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import cited
import evidence_page
from evidence_page import releases

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- results: begin (rendered by `make results`; do not edit) -->"
END = "<!-- results: end -->"
VERSIONS_BEGIN = "<!-- results: begin versions (rendered by `make results`; do not edit) -->"
VERSIONS_END = "<!-- results: end versions -->"
# What is kept: small, and either a measurement or the lineage. Weights, checkpoints and generated text corpora are not.
KEPT = (".json", ".jsonl", ".png", ".md", ".toml", ".html")
LARGEST_BYTES = 600_000
LARGEST_PAGE_BYTES = 3_000_000  # the report is to be read where nothing else of a run is
LEFT_OUT = {"tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json", "adapter_config.json"}
LEFT_OUT |= {"train.jsonl", "validation.jsonl"}  # the corpus again
WHOLE = {"completions.jsonl", "verdicts.jsonl"}  # kept at any size: an arm cannot be read without them
ALSO = {"merged/config.json", "gguf/Modelfile", "gguf/Modelfile.capped"}  # what a card needs besides
STAGES = ("release", "adapter", "merged", "axis", "capped", "gguf", "redteam", "report", "card")


def keep(run: Path, *, partial: bool = False) -> None:
    """Copy the small files of a run to results/NAME; of its whole artifacts alone, where it is not finished."""
    from karma_electric.core.artifact import is_whole
    from karma_electric.kept import write_kept

    whole = [path.parent for path in sorted(run.rglob("manifest.json")) if is_whole(path.parent)]
    made = {folder.relative_to(run).parts[0] for folder in whole}
    missing = [stage for stage in STAGES if stage not in made]
    if "card" in missing and not partial:
        raise SystemExit(
            f"error: {run} is not a finished run (no card). Finish it: karma run recipes/{run.name}.toml. Or keep what "
            f"there is: python tools/results.py keep --partial {run}"
        )
    if not whole or not (run / "recipe.toml").is_file():
        raise SystemExit(f"error: {run} holds no recipe.toml with a finished stage, so there is nothing to keep.")
    target = ROOT / "results" / run.name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    shutil.copyfile(run / "recipe.toml", target / "recipe.toml")
    loose = [path for path in run.glob("redteam/*.jsonl") if path.is_file()]  # labels by people, beside the arms
    for file in sorted([*loose, *(path for folder in whole for path in folder.rglob("*"))]):
        relative = file.relative_to(run)
        if any(part.startswith(".") for part in relative.parts) or not file.is_file():
            continue
        largest = LARGEST_PAGE_BYTES if file.suffix == ".html" else LARGEST_BYTES
        small = file.name in WHOLE or file.stat().st_size <= largest
        kept = file.suffix in KEPT and file.name not in LEFT_OUT and small
        if kept or relative.as_posix() in ALSO:
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / relative)
    write_kept(target)
    sizes = [file.stat().st_size for file in target.rglob("*") if file.is_file()]
    print(f"kept {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB, in {target.relative_to(ROOT)}")
    if missing:
        print(f"{run.name} lacks {', '.join(missing)}: what these would measure is a gap in the figures")


def rerender() -> None:
    """Write report and card of every finished run under results/ anew: what they say comes from the other files."""
    from karma_electric.card import render_card
    from karma_electric.core.artifact import hash_file, read_manifest, seal, write_atomic
    from karma_electric.core.recipe import load_recipe
    from karma_electric.report import write_report

    for card in sorted((ROOT / "results").glob("*/card/manifest.json")):
        run = card.parent.parent
        recipe = load_recipe(run / "recipe.toml")
        write_report(run, recipe, run / "report")
        write_atomic(run / "card" / "README.md", render_card(run, recipe))
        for name in ("report", "card"):
            made = read_manifest(run / name)
            if any(hash_file(run / name / file) != digest for file, digest in made.files.items()):
                seal(run / name, kind=made.kind, config=made.config, inputs=made.inputs, parents=made.parents)
                print(f"wrote results/{run.name}/{name} anew")


def read(*parts: str) -> Any:
    """A JSON file of results/demo."""
    return json.loads((ROOT / "results" / "demo").joinpath(*parts).read_text(encoding="utf-8"))


def readings() -> list[str]:
    """What may be said of the arms against each other, in words."""
    from karma_electric.redteam.paired import compare
    from karma_electric.redteam.runner import read_verdicts

    folder = ROOT / "results" / "demo" / "redteam"
    pairs = (("base", "tuned"), ("tuned", "capped"))
    verdicts = {arm: {0: read_verdicts(folder / arm)} for arm in ("base", "tuned", "capped")}
    return [compare(verdicts[a], verdicts[b], name_a=a, name_b=b).reading for a, b in pairs]


def whole_demo() -> str:
    """Time and memory of `make demo`, from what /usr/bin/time printed; the file's first line says where."""
    text = (ROOT / "results" / "make-demo.txt").read_text(encoding="utf-8")
    minutes, seconds = text.split("(h:mm:ss or m:ss): ")[1].split()[0].split(":")
    whole_minutes, rest = divmod(round(60 * int(minutes) + float(seconds)), 60)
    kilobytes = int(text.split("Maximum resident set size (kbytes): ")[1].split()[0])
    first = text.splitlines()[0]
    where = ", packages installed already" if "installed" in first else " in a fresh clone, installation included"
    where += f" (commit {first.split('clone of ')[1].split()[0]})" if "clone of" in first else ""
    memory = f"peak memory {kilobytes / 1e6:.1f} GB (`results/make-demo.txt`)"
    return f"`make demo`{where}: {whole_minutes} min {rest} s, {memory}."


def rendered() -> str:
    """The generated part of the README: table and figures of the demo run."""
    lines = [
        "| Arm | Scenarios | Pass | Partial | Fail | Unscored | Pass rate of scored (95% interval) |",
        "|---|---|---|---|---|---|---|",
    ]
    names = {"base": "base", "tuned": "tuned", "capped": "tuned + capped"}
    for arm, name in names.items():
        summary = read("redteam", arm, "summary.json")
        counts, rate = summary["counts"], summary["pass_rate_scored"]
        value = "-" if rate["value"] is None else f"{rate['value']:.0%} ({rate['low']:.0%} to {rate['high']:.0%})"
        cells = [name, summary["n"], *(counts[k] for k in ("pass", "partial", "fail", "unscored")), value]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    training, merge = read("adapter", "training.json"), read("merged", "merge.json")
    fidelity, cap, parity = read("capped", "fidelity.json"), read("axis", "cap.json"), read("gguf", "parity.json")
    by_kind = cap["measured"]["heldout"]["kinds"]
    kinds = ", ".join(f"{by_kind[kind]['cap_rate']['mean']:.0%}" for kind in ("deployment", "generic", "adversarial"))
    asked = cap["method"].get("target_cap_rate", 1 - cap["method"]["quantile"])
    judge = read("redteam", "judge", "agreement.json")["B"]
    hardware = read("adapter", "manifest.json")["hardware"]
    lines += [
        "",
        f"Measured on {hardware['cores']} cores ({hardware.get('processor', hardware['machine'])}, no GPU); "
        f"{training['examples']} training examples, {training['steps']} steps in {training['seconds']:.0f} s.",
        whole_demo(),
        "",
        "| What | Figure | From |",
        "|---|---|---|",
        f"| Validation loss on the 4-bit base, before and after training | {training['validation_loss_before']:.3f} -> "
        f"{training['validation_loss']:.3f} nats per token | `results/demo/adapter/training.json` |",
        f"| Merged model against adapter on base, KL | {merge['mean_kl_nats']:.1e} nats per token "
        f"| `results/demo/merged/merge.json` |",
        f"| Response tokens capped on held-out prompts (asked for {asked:.0%}) "
        f"| {cap['cap_rate']['mean']:.1%} | `results/demo/axis/cap.json` |",
        f"| Response tokens capped by kind: persona's prompt, generic prompts, under pressure | {kinds} "
        f"| `results/demo/axis/cap.json` |",
        f"| Cap neuron: KL(hooked, baked) / KL(hooked, uncapped), held-out | {fidelity['all']['kl_ratio']:.4f} "
        f"({fidelity['all']['kl_ratio_interval']['low']:.4f} to {fidelity['all']['kl_ratio_interval']['high']:.4f}; "
        f"{fidelity['all']['tokens']:,} tokens); prompt tokens {fidelity['prompt']['kl_ratio']:.4f}, response tokens "
        f"{fidelity['response']['kl_ratio']:.4f} | `results/demo/capped/fidelity.json` |",
        f"| The same: greedy answers identical, hooked and baked | {fidelity['greedy']['identical_baked']:.0%} of "
        f"{fidelity['greedy']['prompts']} (hooked and uncapped: {fidelity['greedy']['identical_uncapped']:.0%}) "
        f"| `results/demo/capped/fidelity.json` |",
        f"| Q8_0 files in llama.cpp: tokens of a greedy answer as in transformers before the first difference "
        f"| {parity['merged']['greedy_agreement']:.0%} uncapped, {parity['capped']['greedy_agreement']:.0%} capped "
        f"({parity['capped']['n_prompts']} answers of {parity['capped']['max_new_tokens']} tokens; token ids equal: "
        f"{'yes' if parity['capped']['token_ids_equal'] else 'no'}) | `results/demo/gguf/parity.json` |",
        f"| The judge against {judge['n']} labels it was not tuned on, Cohen's kappa "
        f"| {judge['kappa']:.2f} ({judge['kappa_interval'][0]:.2f} to {judge['kappa_interval'][1]:.2f}) "
        f"| `results/demo/redteam/judge/agreement.json` |",
        "",
        *(f"- {reading}" for reading in readings()),
    ]
    return "\n".join(lines)


def version_history() -> str:
    """The releases on the embedded model, each from results/NAME; a gap says what to type."""
    lines = [
        "| Version | Examples learned, and held out | Steps | Training loss | Validation loss, before -> after | "
        "Token accuracy | Passed: base | Passed: uncapped | Passed: capped | Training time |",
        "|---|--:|--:|--:|--:|--:|---|---|---|---|",
    ]
    rates = ROOT / "results" / releases.FOLDER / releases.RATES
    found = json.loads(rates.read_text(encoding="utf-8")) if rates.is_file() else None
    lines += [version_row(name, found["arms"] if found else {}) for name in releases.RELEASES]
    judged = "."
    if found:
        judged = f", by one file of labels for all releases, `{found['labels']}` (`results/releases/rates.json`)."
    return "\n".join(
        [
            *lines,
            "",
            "Losses are in nats per assistant token: in training the mean over the last tenth of the steps, in "
            "validation over the version's own held-out examples, which token accuracy is of, too. Read from "
            "`release/summary.json` and `adapter/training.json` in `results/NAME/`. Passed: of the answers to "
            f"`standard-58` that could be scored (95% interval), and how many those are{judged}",
        ]
    )


def version_row(name: str, rates: Any) -> str:
    """One release; `rates` by "RELEASE/ARM"."""
    folder = ROOT / "results" / name

    def found(*parts: str) -> Any:
        file = folder.joinpath(*parts)
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    release, training = found("release", "summary.json"), found("adapter", "training.json")
    if training is None:
        gap = f"not trained yet: `karma run recipes/{name}.toml`"
        return f"| {name} | {release['examples'] if release else ''} | {gap} |" + " |" * 7
    cells = [
        name,
        f"{training['examples']:,} + {release['examples'] - training['examples']:,}",
        f"{training['steps']:,}",
        f"{training['loss_last_tenth']:.3f}",
        f"{training['validation_loss_before']:.3f} -> {training['validation_loss']:.3f}",
        f"{training['validation_accuracy']:.1%}",
    ]
    arms = [rates.get(f"{name}/{arm}") for arm in releases.ARMS]
    cells += ["not measured" if arm is None else releases.passed(arm) for arm in arms]
    machine = found("adapter", "manifest.json")["hardware"]
    processor = f"{machine['cores']} cores, {machine.get('processor', machine['machine'])}"
    used = [f"{training['threads']} threads, {training['compute_dtype']}"] if "threads" in training else []
    where = ", ".join([*(machine.get("gpus") or [*used, processor])])
    cells.append(f"{training['seconds'] / 60:.0f} min ({where})")
    return "| " + " | ".join(cells) + " |"


def replaced(readme: str) -> str:
    """README text with its generated parts made anew."""
    for begin, end, render in ((BEGIN, END, rendered), (VERSIONS_BEGIN, VERSIONS_END, version_history)):
        before, rest = readme.split(begin)
        readme = f"{before}{begin}\n{render()}\n{end}{rest.split(end, 1)[1]}"
    return readme


def measured(name: str) -> Any:
    """What a benchmark wrote, or None where it has not been run."""
    file = ROOT / "results" / "benchmarks" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def extract_table(found: Any) -> list[str]:
    """Seconds of both methods, and how close their directions are."""
    return [
        "| Method | Seconds | Ratio | Smallest cosine of a direction |",
        "|---|---|---|---|",
        f"| one prompt at a time | {found['seconds_one_by_one']:.1f} | 1 | |",
        f"| `karma axis extract` | {found['seconds_ours']:.1f} | {found['ratio']:.1f} | {found['min_cosine']:.7f} |",
        "",
        f"{found['n']} prompts under {found['system_prompts']} system prompts, {found['dtype']}, "
        f"{found['threads']} threads, {found['hardware'].get('processor', 'cpu')}.",
    ]


def overhead_table(found: Any) -> list[str]:
    """Overhead per site, phase and batch, with its interval."""
    lines = [
        "| Site | Phase | Batch | Bare, tokens/s | Capped, tokens/s | Overhead (95% interval) |",
        "|---|---|---|---|---|---|",
    ]
    for cell in found["cells"]:
        low, high = cell["interval_95_percent"]
        lines.append(
            f"| `{cell['site']}` | {cell['phase']} | {cell['batch']} | {cell['bare_tokens_per_s']:.1f} | "
            f"{cell['capped_tokens_per_s']:.1f} | {cell['overhead_percent']:+.1f}% ({low:+.1f} to {high:+.1f}) |"
        )
    settings = found["settings"]
    said = f"{settings['model']}, {settings['dtype']}, {settings['threads']} threads, {settings['repeats']} rounds."
    return [*lines, "", said]


def neuron_table(found: Any) -> list[str]:
    """KL ratio per cap rate and placement, over all tokens and over response tokens."""
    lines = [
        "| Cap rate, measured | Placement | KL ratio, all tokens (95% interval) | Prompt tokens | Response tokens |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        whole, interval = row["all"], row["all"]["kl_ratio_interval"]
        lines.append(
            f"| {row['cap_rate_measured']:.0%} | {row['placement']} | {whole['kl_ratio']:.4f} "
            f"({interval['low']:.4f} to {interval['high']:.4f}) | {row['prompt']['kl_ratio']:.4f} | "
            f"{row['response']['kl_ratio']:.4f} |"
        )
    first, alpha = found["rows"][0], found["rows"][0]["alpha"]
    said = f"alpha {alpha:g}, {first['conversations']} conversations, {first['all']['tokens']:,} tokens."
    return [*lines, "", said]


def train_table(found: Any) -> list[str]:
    """Speed, memory and loss of both sides."""
    lines = [
        "| | Tokens/s | Ratio | Padding | Peak memory above the imports | Mean loss | Validation loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for side, name in (("plain", "plain TRL script"), ("karma", "`karma train`")):
        row = found["sides"][side]
        ratio = found["ratio"] if side == "karma" else 1
        lines.append(
            f"| {name} | {row['tokens_per_second']:.0f} | {ratio:.2f} | {row['padding']:.0%} | "
            f"{row['peak_bytes'] / 1e9:.2f} GB | {row['mean_loss']:.3f} | {row['validation_loss']:.4f} |"
        )
    said = (
        f"Recipe `{found['recipe']}`, {found['steps']['karma']} steps each, padding not counted as tokens; validation "
        f"loss differs by {found['validation_loss_difference']:+.2%}. {found['threads']} threads, "
        f"{found['hardware'].get('processor', 'cpu')}."
    )
    return [*lines, "", said]


def stops_table(found: Any) -> list[str]:
    """How many answers ended by themselves."""
    lines = ["| Model | Ended by themselves | Tokens of those, median |", "|---|---|---|"]
    for row in found["rows"]:
        lines.append(f"| `{row['model']}` | {row['stopped']} of {row['prompts']} | {row['median_tokens_of_stopped']} |")
    return [*lines, "", f"At most {found['limit']} tokens an answer; sampled as deployed, one seed."]


def drift_table(found: Any) -> list[str]:
    """Mean drift of the answers of each conversation, bare model."""
    lines = ["| conversation | answers | mean drift of the answers | rank |", "|---|---|---|---|"]
    for row in found["rows"]:
        if row["alpha"]:
            continue
        means, ranks = row["means"], row["ranks"]
        lines.append(
            f"| {row['conversation']} | {len(means)} | {min(means):+.2f} to {max(means):+.2f} | {min(ranks):.0%} to "
            f"{max(ranks):.0%} |"
        )
    return [*lines, "", f"Cap off, temperature 0.7, seed {found['seed']}; alarm level {found['alarm']['level']:+.2f}."]


def merge_table(found: Any) -> list[str]:
    """Time and memory of both merges."""
    lines = ["| Demo's adapter, 135M | Time | Peak memory above the imports |", "|---|---|---|"]
    for side, name in (("peft", "peft, the whole model in float32"), ("streamed", "streamed")):
        row = found["sides"][side]
        lines.append(f"| {name} | {row['seconds']:.1f} s | {row['peak_mb']:.0f} MB |")
    said = f"{found['different']} of {found['numbers']:,} numbers differ, by {found['largest_difference']:g} at most. "
    return [*lines, "", f"{said}Median of {found['repeats']} alternating runs, {found['hardware']['cores']} cores."]


def merge_base_table(found: Any) -> list[str]:
    """What the choice of base weights costs."""
    lines = [
        "| Model | Loss on held-out answers | KL from the trained model, nats per token |",
        "|---|---|---|",
        *(f"| {row['model']} | {row['loss']:.4f} | {row['kl']:.5f} |" for row in found["choices"]),
    ]
    first = found["choices"][0]
    said = f"{first['conversations']} held-out conversations, {first['tokens']:,} answer tokens, float32 arithmetic."
    return [*lines, "", said]


def program_table(found: Any) -> list[str]:
    """Another program against transformers, for the baked checkpoint and the uncapped one."""
    lines = [
        "| Checkpoint | Same greedy answer | Same tokens before the first difference | Same next token | KL, nats |",
        "|---|---|---|---|---|",
    ]
    for side in ("baked", "uncapped"):
        row = found[side]
        lines.append(
            f"| {side} | {row['identical']:.0%} of {row['prompts']} | {row['common_prefix']:.1f} of "
            f"{row['mean_tokens']:.1f} | {row['same_token']:.1%} | {row['kl_nats']:.1e} |"
        )
    return lines


def engines_table(found: Any) -> list[str]:
    """Speed of each engine beside a plain loop."""
    said = {
        "plain loop": "`generate` in a loop",
        "static": "one padded batch (`HfEngine`)",
        "live": "live transformers engine",
        "live-capped": "the same, four strengths in one batch",
        "llamacpp": "llama.cpp in process, Q8_0",
    }
    lines = ["| Engine | Requests at once | Tokens/s | Ratio | Same answers as the loop |", "|---|---|---|---|---|"]
    for cell in found["cells"]:
        same = "" if cell["same_answers"] is None else f"{cell['same_answers']} of {cell['requests']}"
        speed = f"{cell['tokens_per_s']:.1f} | {cell['ratio']:.2f}"
        lines.append(f"| {said[cell['engine']]} | {cell['requests']} | {speed} | {same} |")
    settings = found["settings"]
    note = f" {settings['note']}" if settings["note"] else ""
    return [
        *lines,
        "",
        f"{settings['model']}, {settings['dtype']}, {settings['threads']} threads (llama.cpp: one less), "
        f"{settings['tokens']} tokens an answer, rounds: {settings['rounds']}.{note}",
    ]


def judges_table(found: Any) -> list[str]:
    """Agreement of every judge with labels it has not seen."""
    lines = [
        "| Judge | Kappa, half B (95%) | Quadratic kappa, half B | Accuracy, half B | Kappa, both halves | "
        "Left unscored | Processor time, an answer |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["judges"]:
        half, both = row["half B"], row["all"]
        left = sum(counts["unscored"] for label, counts in both["confusion"].items() if label != "unscored")
        labelled = sum(sum(counts.values()) for label, counts in both["confusion"].items() if label != "unscored")
        lines.append(
            f"| `{row['spec']}` | {interval(half, 'kappa')} | {interval(half, 'weighted_kappa')} | "
            f"{half['accuracy']:.0%} | {interval(both, 'kappa')} | {left} of {labelled} | "
            f"{row['ms_per_answer']:.0f} ms |"
        )
    raters = found["raters"]
    said = (
        "The answers have one rating each: how far two raters agree is not known."
        if raters is None
        else f"Two independent ratings of {raters['n']} of them agree at kappa {interval(raters, 'kappa')}."
    )
    files = ", ".join(f"`{name}`" for name in found["labelled"])
    return [
        *lines,
        "",
        f"{found['labels']} labelled answers ({files}), {found['judges'][0]['half B']['n']} in half B. {said}",
    ]


def judges_v1_table(found: Any) -> list[str]:
    """Every judge, and a second rater, on every answer of three arms."""
    lines = [
        "| | Kappa (95%) | Same label | Passes of what the raters fail | Left unscored of what they could decide |"
    ]
    lines.append("|---|---|---|---|---|")
    rows = [
        ("a second rater", found["raters"]),
        *((f"`{judge['spec']}`", judge["all"]) for judge in found["judges"]),
    ]
    for name, row in rows:
        table = row["confusion"]
        failed = sum(table["fail"].values())
        decided = {label: counts for label, counts in table.items() if label != "unscored"}
        left, all_ = sum(c["unscored"] for c in decided.values()), sum(sum(c.values()) for c in decided.values())
        lines.append(
            f"| {name} | {interval(row, 'kappa')} | {row['accuracy']:.0%} | {table['fail']['pass']} of {failed} | "
            f"{left} of {all_} |"
        )
    return [*lines, "", f"{found['raters']['n']} answers, {', '.join(f'`{name}`' for name in found['labelled'])}."]


def judges_benign_table(found: Any) -> list[str]:
    """The rule that tells help from refusal, and a second rater, on every answer of three arms."""
    lines = [
        "| | Kappa (95%) | Same label | Left unscored of what they could decide | Refusals found | Help found |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in [
        ("a second rater", found["raters"]),
        *((f"`{judge['spec']}`", judge["all"]) for judge in found["judges"]),
    ]:
        table = row["confusion"]
        decided = [counts for label, counts in table.items() if label != "unscored"]
        left, all_ = sum(c["unscored"] for c in decided), sum(sum(c.values()) for c in decided)
        refused = [table[label] for label in ("fail", "partial")]
        caught = sum(c["fail"] + c["partial"] for c in refused)
        lines.append(
            f"| {name} | {interval(row, 'kappa')} | {row['accuracy']:.0%} | {left} of {all_} | "
            f"{caught} of {sum(sum(c.values()) for c in refused)} | "
            f"{table['pass']['pass']} of {sum(table['pass'].values())} |"
        )
    return [*lines, "", f"{found['raters']['n']} answers, {', '.join(f'`{name}`' for name in found['labelled'])}."]


def judged_arms_table(found: Any) -> list[str]:
    """What each judge says of the answers of a run's arms."""
    outcomes = ("pass", "partial", "fail", "unscored")
    lines = ["| Arm | Judge | Pass | Partial | Fail | Unscored |", "|---|---|--:|--:|--:|--:|"]
    for arm, judges in found["arms"].items():
        for spec, counts in judges.items():
            lines.append(f"| {arm} | `{spec}` | " + " | ".join(str(counts.get(o, 0)) for o in outcomes) + " |")
    return lines


def labels_table(found: Any) -> list[str]:
    """Who wrote the answers that two raters read, what they were found to be, and how far the raters agree."""
    outcomes = ("pass", "partial", "fail", "unscored")
    lines = ["| source | pass | partial | fail | unscored | all |", "|---|--:|--:|--:|--:|--:|"]
    for source, counts in found["sources"].items():
        cells = [counts.get(outcome, 0) for outcome in outcomes]
        lines.append(f"| `{source}` | " + " | ".join(map(str, [*cells, sum(cells)])) + " |")
    raters = found["raters"]
    return [
        f"Over all {raters['n']} answers: same label {raters['accuracy']:.1%}, kappa {interval(raters, 'kappa')}, "
        f"quadratic kappa {interval(raters, 'weighted_kappa')} (95%, by whole scenarios).",
        "",
        *lines,
    ]


def gguf_table(found: Any) -> list[str]:
    """Our export beside llama.cpp's converter."""
    lines = ["| | llama.cpp | karma | Ratio |", "|---|---|---|---|"]
    named = {"seconds": "Clock, s", "cpu_seconds": "Processor, s", "peak_mb": "Peak memory, MB"}
    for key, name in named.items():
        theirs, ours = found["sides"]["llama.cpp"][key], found["sides"]["karma"][key]
        lines.append(f"| {name} | {theirs:.1f} | {ours:.1f} | {found['ratio'][key]:.2f} |")
    return [*lines, "", f"{found['model']}, {found['type']}, medians of {found['repeats']}, in alternation."]


def redteam_table(found: Any) -> list[str]:
    """Asking a suite one by one, and as the runner does."""
    lines = ["| | Scenarios a minute | Tokens/s | Ratio | Ratio per token |", "|---|---|---|---|---|"]
    for side, name in (("one_by_one", "one conversation at a time"), ("ours", "`karma redteam run`")):
        first = side == "one_by_one"
        lines.append(
            f"| {name} | {found[f'scenarios_per_minute_{side}']:.1f} | "
            f"{found[f'tokens_{side}'] / found[f'seconds_{side}']:.0f} | {1 if first else found['ratio']:.2f} | "
            f"{1 if first else found['ratio_per_token']:.2f} |"
        )
    return [
        *lines,
        "",
        f"{found['scenarios']} scenarios of `{found['suite']}` under each of {found['seeds']} seeds, {found['turns']} "
        f"answers of at most {found['max_new_tokens']} tokens, batches of {found['batch']}, {found['dtype']}, "
        f"{found['threads']} threads, {found['hardware'].get('processor', 'cpu')}.",
    ]


def semantic_table(found: Any) -> list[str]:
    """What is known of the shipped semantic judge."""
    about = found["semantic"]
    lines = ["| On scenarios it has not seen | Answers | Kappa (95%) | Quadratic kappa |", "|---|---|---|---|"]
    for name, part in about["cross_validation"]["parts"].items():
        lines.append(f"| {name} | {part['n']} | {interval(part, 'kappa')} | {interval(part, 'weighted_kappa')} |")
    for name, part in about["left_out"].items():
        lines.append(f"| fits without any of {name} | {part['labels']} | {part['kappa']:.2f} | |")
    curve = ", ".join(f"{point['labels']} labels {point['kappa']:.2f}" for point in about["learning_curve"])
    return [
        *lines,
        "",
        f"Kappa by number of labels a fit may see: {curve}. Its confidences are off by "
        f"{about['cross_validation']['calibration_error']:.2f} on average; it gives no outcome below "
        f"{about['chosen']['threshold']:.2f}.",
    ]


def confusion_table(found: Any) -> list[str]:
    """Where the semantic judge errs."""
    row = next(judge for judge in found["judges"] if judge["spec"] == "semantic")
    outcomes = list(row["all"]["confusion"])
    lines = [f"| label / judged | {' | '.join(outcomes)} |", "|---|" + "--:|" * len(outcomes)]
    for label, counts in row["all"]["confusion"].items():
        lines.append(f"| {label} | {' | '.join(str(counts[outcome]) for outcome in outcomes)} |")
    return lines


def interval(figures: Any, name: str) -> str:
    """A figure with its interval."""
    value, span = figures[name], figures[f"{name}_interval"]
    return "undefined" if value is None else f"{value:.2f}" + (f" ({span[0]:.2f} to {span[1]:.2f})" if span else "")


# what a table is called -> the file in results/benchmarks it is made from, and how
BENCHMARKS = {
    "extract": ("extract", extract_table),
    "extract_other": ("extract_other", extract_table),
    "cap_overhead": ("cap_overhead", overhead_table),
    "neuron": ("neuron", neuron_table),
    "llama.cpp": ("check_baked", program_table),
    "vllm": ("check_vllm", program_table),
    "train": ("train", train_table),
    "stops": ("stops", stops_table),
    "drift": ("drift", drift_table),
    "merge": ("merge", merge_table),
    "merge_base": ("merge", merge_base_table),
    "engines": ("engines", engines_table),
    "judges": ("judges", judges_table),
    "judges_demo": ("judges", judged_arms_table),
    "judges_v1": ("judges_v1", judges_v1_table),
    "judges_v1_arms": ("judges_v1", judged_arms_table),
    "judges_benign": ("judges_benign", judges_benign_table),
    "judges_benign_arms": ("judges_benign", judged_arms_table),
    "labels": ("judges", labels_table),
    "gguf": ("gguf", gguf_table),
    "redteam": ("redteam", redteam_table),
    "semantic": ("judges", semantic_table),
    "semantic_confusion": ("judges", confusion_table),
}
PAGES = ("docs/benchmarks.md", "docs/drift.md", "docs/gguf.md", "docs/judges.md", "docs/merging.md", "suites/README.md")


def with_benchmarks(page: str) -> str:
    """A page of docs/ with its tables of benchmarks made anew, of those that were run."""
    for name, (file, table) in BENCHMARKS.items():
        begin = f"<!-- results: begin {name} (rendered by `make results`; do not edit) -->"
        end = f"<!-- results: end {name} -->"
        if begin not in page:
            continue
        found = measured(file)
        lines = ["Not measured yet."] if found is None else table(found)
        before, rest = page.split(begin)
        page = "\n".join([before + begin, *lines, end + rest.split(end, 1)[1]])
    return page


def texts() -> list[Path]:
    """What a reader sees: README, changelog and docs."""
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> None:
    """Entry point."""
    pages = {ROOT / "README.md": replaced, **{ROOT / name: with_benchmarks for name in PAGES}}
    pages[ROOT / evidence_page.PAGE] = partial(evidence_page.with_evidence, root=ROOT)
    match sys.argv[1:]:
        case ["keep", run] | ["keep", "--partial", run]:
            keep(Path(run), partial="--partial" in sys.argv)
        case ["rerender"]:
            rerender()
        case ["releases", labels]:
            print(f"wrote {releases.write(labels, ROOT).relative_to(ROOT)}")
        case ["render"]:
            for page, render in pages.items():
                page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")
        case ["check"]:
            for page, render in pages.items():
                if render(page.read_text(encoding="utf-8")) != page.read_text(encoding="utf-8"):
                    raise SystemExit(f"error: {page.name} differs from results/. Run: make results")
            wrong = [
                f"{page.relative_to(ROOT)} line {line}: {figure} is not in {', '.join(named)}"
                for page in texts()
                for line, figure, named in cited.uncited(page.read_text(encoding="utf-8"), ROOT)
            ]
            if wrong:
                raise SystemExit("error: figures that their files do not have:\n  " + "\n  ".join(wrong))
        case ["typed"]:
            for page in texts():
                for line, figure in cited.listed(page.read_text(encoding="utf-8")):
                    print(f"{page.relative_to(ROOT)}:{line}: {figure}")
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
