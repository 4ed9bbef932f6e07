"""Keeps the small files of a run under results/, and renders the README's figures from them.

python tools/results.py keep runs/demo      copy manifests, JSON, plots and card to results/demo
python tools/results.py render              rewrite the generated parts of README.md and docs/
python tools/results.py check               exit 1 if one of them differs from what results/ say
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- results: begin (rendered by `make results`; do not edit) -->"
END = "<!-- results: end -->"
# What is kept: small, and either a measurement or the lineage. Weights, checkpoints and generated text corpora are not.
KEPT = (".json", ".jsonl", ".png", ".md", ".toml", ".html")
LARGEST_BYTES = 600_000
LEFT_OUT = {"tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json", "adapter_config.json"}
LEFT_OUT |= {"train.jsonl", "validation.jsonl"}  # the corpus again


def keep(run: Path) -> None:
    """Copy the small files of a run to results/NAME."""
    if not (run / "card" / "manifest.json").exists():
        raise SystemExit(f"error: {run} is not a finished run (no card). Finish it first: karma run recipes/demo.toml")
    target = ROOT / "results" / run.name
    shutil.rmtree(target, ignore_errors=True)
    for file in sorted(run.rglob("*")):
        relative = file.relative_to(run)
        if any(part.startswith(".") for part in relative.parts) or not file.is_file():
            continue
        if file.suffix in KEPT and file.name not in LEFT_OUT and file.stat().st_size <= LARGEST_BYTES:
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / relative)
    print(f"kept {sum(f.is_file() for f in target.rglob('*'))} files in {target.relative_to(ROOT)}")


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
    kilobytes = int(text.split("(kbytes): ")[1].split()[0])
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
    manifest = read("card", "manifest.json")
    hardware = manifest["hardware"]
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


def replaced(readme: str) -> str:
    """README text with its generated part made anew."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{rendered()}\n{END}{rest.split(END, 1)[1]}"


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
}
PAGES = ("benchmarks.md", "drift.md", "merging.md")  # in docs/


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


def main() -> None:
    """Entry point."""
    pages = {ROOT / "README.md": replaced, **{ROOT / "docs" / name: with_benchmarks for name in PAGES}}
    match sys.argv[1:]:
        case ["keep", run]:
            keep(Path(run))
        case ["render"]:
            for page, render in pages.items():
                page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")
        case ["check"]:
            for page, render in pages.items():
                if render(page.read_text(encoding="utf-8")) != page.read_text(encoding="utf-8"):
                    raise SystemExit(f"error: {page.name} differs from results/. Run: make results")
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
