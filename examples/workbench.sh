#!/usr/bin/env bash
# From seed prompts to a release, through a local model: candidates, grades, penalties, filters, a decision, a release.
# With the embedded 135M model it takes ten minutes or more and shows the machinery: half of its answers are cut off, those
# left are not worth training on, and as a judge it cannot be understood, so nothing is filtered by grades. Name a better one
# and add --set release.minimum_grade=30 to the last command:
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
"$karma" data judge "$JUDGE" --samples "${SAMPLES:-1}" --retries 1 --max-tokens 160 || echo "(some answers are ungraded)"
"$karma" data penalize --show 1
"$karma" data dedupe --by both --apply
"$karma" data decontaminate --apply
if [ -n "${CHECK:-}" ]; then # 56 pairs: only a judge that passes may filter
    "$karma" data judge "$JUDGE" --check
fi
"$karma" data stats
# A person would read them: karma data review. Here all that is left is accepted.
mapfile -t left < <("$karma" data export --format messages --status candidate --force "$WORK/left.jsonl" >/dev/null &&
    sed -E 's/.*"id": "([^"]+)".*/\1/' "$WORK/left.jsonl")
accept=()
for id in "${left[@]}"; do accept+=(--accept "$id"); done
"$karma" data review "${accept[@]}" --reason "trial: kept what the filters left" --reviewer examples/workbench.sh
"$karma" data release recipes/smollm2-v1.toml --run-dir "$WORK/release-run" --force \
    --set release.corpus="$KARMA_WORKBENCH" --set 'release.versions=["unreleased"]'
