"""Whether llama.cpp's own server answers from a GGUF file as our llama.cpp engine does, asked by OpenAI's client.

With --server PATH the program llama-server is started with the command line of docs/serving.md; it is not ours to
install. Without, the server inside xllamacpp is, which is the same code in another package.

    python benchmarks/check_llama_server.py runs/demo/gguf/capped.gguf [--server PATH] [--out check.json]

Exits 1 unless most greedy answers are the same: two builds of llama.cpp differ in the last bits of their arithmetic.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai

from karma_electric.core.artifact import hash_file, write_json
from karma_electric.core.messages import user
from karma_electric.core.resources import find
from karma_electric.models.engines.llamacpp import LlamaCppEngine
from karma_electric.models.engines.protocol import Sampling
from karma_electric.steer.contrast import load_prompts

KEY = "a-key-for-this-check-only"
SLOTS = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--server", type=Path, help="the program llama-server; the server in xllamacpp when not given")
    parser.add_argument("--prompts", type=int, default=16, help="of suites/heldout-48.jsonl")
    parser.add_argument("--tokens", type=int, default=32, help="of every answer")
    parser.add_argument("--context", type=int, default=1024, help="tokens of prompt and answer")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    asked = parser.parse_args()
    texts = [prompt.text for prompt in load_prompts(find("suites", "heldout-48.jsonl"))][: asked.prompts]
    engine = LlamaCppEngine(asked.gguf, context=asked.context, slots=1)
    sampling = Sampling(max_new_tokens=asked.tokens)
    ours = [engine.generate([[user(text)]], sampling)[0].text for text in texts]
    engine.close()
    program = "the server in xllamacpp" if asked.server is None else "llama-server"
    packed = asked.server is None
    with packaged(asked.gguf, asked.context) if packed else started(asked.server, asked.gguf, asked.context) as url:
        theirs = answers(url, texts, asked.tokens)
    same = sum(one.strip() == other.strip() for one, other in zip(ours, theirs, strict=True))
    print(f"{program}: {same} of {len(texts)} greedy answers of {asked.tokens} tokens as our engine's")
    if asked.out:
        write_json(
            asked.out, {"program": program, "gguf_sha256": hash_file(asked.gguf), "answers": len(texts), "same": same}
        )
    return int(same <= len(texts) / 2)


def answers(url: str, texts: list[str], tokens: int) -> list[str]:
    """Greedy answers of a server, through OpenAI's client."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
        replies = [
            client.chat.completions.create(
                model="any", messages=[{"role": "user", "content": text}], temperature=0, max_tokens=tokens
            )
            for text in texts
        ]
    return [str(reply.choices[0].message.content) for reply in replies]


@contextmanager
def packaged(gguf: Path, context: int) -> Iterator[str]:
    """Address of the server in xllamacpp, in this process."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(gguf)
    parameters.n_ctx, parameters.n_parallel = context * SLOTS, SLOTS
    parameters.api_keys = [KEY]
    parameters.verbosity = -1
    server = xllamacpp.Server(parameters)
    yield str(server.listening_address)


@contextmanager
def started(program: Path, gguf: Path, context: int) -> Iterator[str]:
    """Address of a llama-server that is started for the time being."""
    port = free_port()
    command = [
        str(program), "--model", str(gguf), "--host", "127.0.0.1", "--port", str(port),
        "--ctx-size", str(context * SLOTS), "--parallel", str(SLOTS), "--jinja", "--api-key", KEY,
    ]  # fmt: skip
    environment = os.environ | {"LD_LIBRARY_PATH": str(program.resolve().parent)}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            url = f"http://127.0.0.1:{port}"
            while not _is_ready(url):
                if process.poll() is not None:
                    log.seek(0)
                    sys.exit(f"llama-server ended with {process.returncode}:\n{log.read().decode()[-2000:]}")
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    sys.exit(main())
