#!/usr/bin/env bash
# From seed prompts to a release, through a local model: candidates, grades, penalties, filters, a decision, a release.
# With the embedded 135M model it takes some minutes and shows the machinery; its answers are not worth training on,
# and as a judge it fails its check, which is why the release has to be forced. Name a better one:
#   MODEL=ollama/llama3.1 JUDGE=openai/gpt-4o-mini examples/workbench.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
MODEL=${MODEL:-karma/builtin:smollm2-135m}
JUDGE=${JUDGE:-$MODEL}
WORK=${WORK:-runs/workbench}
karma=$(command -v karma || echo .venv/bin/karma)
mkdir -p "$WORK"
export KARMA_WORKBENCH="$WORK/workbench.db"

"$karma" data generate "$MODEL" --prompts "$here/seed-prompts.jsonl" --samples 2 --max-tokens 160
"$karma" data judge "$JUDGE" --samples 3 --max-tokens 160
"$karma" data penalize --show 1
"$karma" data dedupe --by both --apply
"$karma" data decontaminate --apply
"$karma" data judge "$JUDGE" --check --limit "${PAIRS:-21}" --samples 1 --max-tokens 160 || echo "(the judge did not pass its check)"
"$karma" data stats
# A person would read them: karma data review. Here all that is left is accepted.
mapfile -t left < <("$karma" data export --format messages --status candidate --force "$WORK/left.jsonl" >/dev/null &&
    sed -E 's/.*"id": "([^"]+)".*/\1/' "$WORK/left.jsonl")
accept=()
for id in "${left[@]}"; do accept+=(--accept "$id"); done
"$karma" data review "${accept[@]}" --reason "trial: kept what the filters left" --reviewer examples/workbench.sh
"$karma" data release recipes/smollm2-v1.toml --run-dir "$WORK/release-run" --force \
    --set release.corpus="$KARMA_WORKBENCH" --set 'release.versions=["unreleased"]' --set release.minimum_grade=0
