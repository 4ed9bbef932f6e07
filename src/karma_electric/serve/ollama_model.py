"""The served model in Ollama's words."""

from __future__ import annotations

from typing import Any

from karma_electric.core.artifact import hash_text
from karma_electric.serve.settings import Served, ServeSettings


def digest(served: Served) -> str:
    """64 hex digits that change with the model."""
    return hash_text(served.fingerprint or served.id)


def details(served: Served) -> dict[str, Any]:
    """`details` of lists and of /api/show."""
    return {
        "parent_model": "",
        "format": "gguf" if served.numbers.startswith(("Q", "F", "BF", "IQ")) else "safetensors",
        "family": served.family,
        "families": [served.family],
        "parameter_size": _size(served.parameters),
        "quantization_level": served.numbers,
    }


def model_info(served: Served, context: int) -> dict[str, Any]:
    """`model_info`: under names like those of a GGUF file, and the cap under ours."""
    return {
        "general.architecture": served.family,
        "general.basename": served.id,
        "general.parameter_count": served.parameters,
        f"{served.family}.context_length": context,
        "karma.persona": None if served.persona is None else served.persona.name,
        "karma.persona_is_default": served.default_system is not None,
        "karma.cap": served.cap,
    }


def parameters(settings: ServeSettings) -> str:
    """The defaults, a line each."""
    return f"temperature {settings.temperature:g}\ntop_p {settings.top_p:g}\nnum_predict {settings.limits.max_tokens}"


def modelfile(settings: ServeSettings) -> str:
    """What is served, as a Modelfile would say it. No path of this machine is told."""
    lines = [f"# served by karma-electric; karma modelfile writes one for Ollama\nFROM {settings.served.id}"]
    if (prompt := settings.served.default_system) is not None and '"""' not in prompt:
        lines.append(f'SYSTEM """{prompt}"""')
    lines += [f"PARAMETER {line}" for line in parameters(settings).splitlines()]
    return "\n".join(lines) + "\n"


def _size(parameters: int | None) -> str:
    if parameters is None:
        return "unknown"
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"
