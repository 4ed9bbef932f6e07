"""Opens what `karma serve` serves: the live engine for a name, and what clients are told of the model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.serve.settings import Persona, Served

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from karma_electric.models.engines.live import LiveEngine, LiveRequest
    from karma_electric.models.engines.live_row import LiveMeter
    from karma_electric.steer.drift_reference import Reference
    from karma_electric.steer.spec import CapSpec

_ROWS = 16
_SLOTS = 4  # llama.cpp reserves a whole context for each


@dataclass(frozen=True)
class Opening:
    """How a model is opened: the options of `karma serve` of the same names. `queue`: answers that may wait."""

    cap: Path | None = None
    alpha: float | None = None
    drift: bool = True
    system: str | None = None
    persona: bool = True
    name: str | None = None
    engine: str = "auto"
    rows: int | None = None
    queue: int = 64
    context: int | None = None


def open_model(name: str, opening: Opening) -> tuple[LiveEngine, Served]:
    """Load a model for serving. Whoever asked closes the engine.

    Raises:
        MissingError: no such model or cap, or an extra is missing.
        InputError: an engine that cannot run it, alpha outside [0, 1], a cap on a model that has it compiled in.
        ArtifactError: a damaged model, or a cap for one of another shape.
    """
    from karma_electric.core.errors import InputError
    from karma_electric.kept import require_weights
    from karma_electric.models.engines.named import engine_kind

    if opening.alpha is not None and not 0.0 <= opening.alpha <= 1.0:
        raise InputError(f"--alpha is {opening.alpha:g}, expected a number from 0 (off) to 1 (hard).", "0.5 is soft.")
    require_weights(Path(name), "merged")
    kind = engine_kind(name, opening.engine, hooks=opening.cap is not None or bool(opening.alpha))
    if kind == "scripted":
        return _scripted(name, opening)
    return _llamacpp(Path(name), opening) if kind == "llamacpp" else _hf(name, opening)


def model_id(name: str) -> str:
    """A short name for requests: of a stage of a run `demo-merged`, else the last part of the name."""
    if name.startswith("builtin:"):
        return name.removeprefix("builtin:")
    path = Path(name)
    if path.suffix in (".gguf", ".json"):
        return _plain(path.stem)
    path = path.resolve() if path.is_dir() else path
    in_run = path.is_dir() and (path.parent / "recipe.toml").is_file()
    return _plain(f"{path.parent.name}-{path.name}" if in_run else path.name)


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-") or "model"


def _hf(name: str, opening: Opening) -> tuple[LiveEngine, Served]:
    from karma_electric.cli.chat import find_cap, open_cap
    from karma_electric.core.extras import require

    require("model")
    from karma_electric.models.engines.live_hf import LiveHf
    from karma_electric.models.loading import load_model, load_tokenizer
    from karma_electric.models.refs import resolve_loadable
    from karma_electric.steer.live import live_cap

    ref = resolve_loadable(name)
    found = find_cap(ref.path, opening.cap, alpha=opening.alpha)
    model, tokenizer = load_model(ref.path), load_tokenizer(ref.path)
    intervention, cap_told, reference, toward = None, _baked(ref.path), None, None
    if found is not None:
        cap, axis = open_cap(found, model, tokenizer, ref)
        toward = axis.toward
        if opening.drift:
            reference = _reference(model, tokenizer, cap, found, ref.fingerprint)
        alpha = cap.spec.alpha if opening.alpha is None else opening.alpha
        cap_told = _told(cap.spec, found, alpha)
        scales = None if reference is None else reference.scales

        def intervention(model: Any) -> AbstractContextManager[LiveMeter]:
            return live_cap(model, cap, alpha=alpha, scales=scales)

    engine = LiveHf(
        model,
        tokenizer,
        intervention=intervention,
        rows=opening.rows or _ROWS,
        queue=opening.queue,
        context=opening.context,
    )
    home = ref.path if ref.path.is_dir() else ref.path.parent
    files = [ref.path] if ref.path.is_file() else [ref.path / "config.json", *ref.path.glob("*.safetensors")]
    served = Served(
        id=opening.name or model_id(name),
        created=max(int(file.stat().st_mtime) for file in files),
        fingerprint=ref.fingerprint,
        family=str(model.config.model_type),
        parameters=int(model.num_parameters()),
        numbers=str(model.dtype).removeprefix("torch."),
        size_bytes=sum(file.stat().st_size for file in files),
        template=str(tokenizer.chat_template),
        persona=_persona(home, opening.system, toward),
        use_persona=opening.persona,
        cap=cap_told,
        drift_reference=None if reference is None else _reference_told(reference),
    )
    return engine, served


def _reference(model: Any, tokenizer: Any, cap: Any, file: Path, fingerprint: str) -> Reference | None:
    from karma_electric.core.progress import Console
    from karma_electric.steer.drift_reference import reference_for

    progress = Console()
    reference = reference_for(model, tokenizer, cap, file, fingerprint, progress=progress)
    if reference is None:
        progress.say(f"There is no responses.jsonl beside {file}: drift is not measured.")
    return reference


def _told(spec: CapSpec, file: Path, alpha: float | None) -> dict[str, Any]:
    """What clients are told of a cap."""
    from karma_electric.core.artifact import hash_file

    return {
        "site": spec.site,
        "layers": list(spec.layers),
        "thresholds": [spec.thresholds[layer] for layer in spec.layers],
        "alpha": alpha,
        "method": spec.method,
        "cap_rate": spec.cap_rate.get("mean"),
        "sha256": hash_file(file),
        "baked": False,
    }


def _baked(folder: Path) -> dict[str, Any] | None:
    """What clients are told of a cap that is compiled into the weights: it can be neither changed nor measured."""
    from karma_electric.core.artifact import read_json
    from karma_electric.steer.bake import REPORT
    from karma_electric.steer.neuron import FILE
    from karma_electric.steer.spec import CAP_FILE, load_spec

    beside = folder.parent / "axis" / CAP_FILE
    if not (folder / FILE).exists() or not beside.is_file():
        return None
    alpha = read_json(folder / REPORT)["alpha"] if (folder / REPORT).is_file() else None
    return _told(load_spec(beside), beside, alpha) | {"baked": True}


def _reference_told(reference: Reference) -> dict[str, Any]:
    from karma_electric.steer.drift_reference import Alarm

    alarm = Alarm.from_ordinary(reference)
    return {
        "scales": {str(layer): scale for layer, scale in reference.scales.items()},
        "ordinary": list(reference.ordinary),
        "alarm": {"level": alarm.level, "source": alarm.source},
    }


def _persona(folder: Path, system: str | None, toward: str | None) -> Persona | None:
    """Who answers: as asked for, as the run's recipe has it, or as the axis was extracted with."""
    if system is not None:
        return Persona("as given with --system", system) if system.strip() else None
    recipe = folder.parent / "recipe.toml"
    if recipe.is_file():
        from karma_electric.core.recipe import load_recipe

        persona = load_recipe(recipe).persona
        return Persona(persona.name, persona.system_prompt)
    return Persona("of the cap's axis", toward) if toward else None


def _llamacpp(path: Path, opening: Opening) -> tuple[LiveEngine, Served]:
    from karma_electric.core.artifact import hash_file
    from karma_electric.core.extras import require

    require("gguf")
    from karma_electric.models.engines.live_llamacpp import LiveLlamaCpp
    from karma_electric.models.loading import read_gguf

    rows = opening.rows or _SLOTS
    engine = LiveLlamaCpp(path, rows=rows, queue=opening.queue, context=opening.context)
    reader = read_gguf(path)

    def field(key: str) -> Any:
        found = reader.get_field(key)
        return None if found is None else found.contents()

    served = Served(
        id=opening.name or model_id(str(path)),
        created=int(path.stat().st_mtime),
        fingerprint=hash_file(path)[:16],
        family=str(field("general.architecture") or "unknown"),
        parameters=sum(int(tensor.n_elements) for tensor in reader.tensors),
        numbers=_file_type(field("general.file_type")),
        size_bytes=path.stat().st_size,
        template=str(field("tokenizer.chat_template") or ""),
        persona=_persona(path.resolve().parent, opening.system, None),
        use_persona=opening.persona,
    )
    return engine, served


def _file_type(number: int | None) -> str:
    from gguf import LlamaFileType

    try:
        name: str = LlamaFileType(number).name
    except ValueError:
        return "unknown"
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")


def _scripted(name: str, opening: Opening) -> tuple[LiveEngine, Served]:
    from karma_electric.core.messages import user
    from karma_electric.models.engines.live_scripted import LiveScripted
    from karma_electric.models.engines.named import read_script

    file = Path(name.removeprefix("scripted:"))
    script = read_script(file)

    def answer(request: LiveRequest) -> str:
        return script([user(request.prompt)] if isinstance(request.prompt, str) else request.prompt)

    engine = LiveScripted(answer, rows=opening.rows or _ROWS, queue=opening.queue, context=opening.context or 4096)
    persona = _persona(file.resolve().parent, opening.system, None)
    return engine, Served(opening.name or model_id(str(file)), persona=persona, use_persona=opening.persona)
