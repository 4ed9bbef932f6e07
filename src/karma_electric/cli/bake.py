"""`karma bake`: the cap compiled into a plain checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from karma_electric.core.progress import Progress

_TEXTS = "suites/heldout-48.jsonl"
_CONVERSATIONS = 24


def bake(
    model: Annotated[
        str, typer.Argument(help="The uncapped model: a folder (runs/demo/merged) or builtin:smollm2-135m.")
    ],
    cap: Annotated[Path, typer.Argument(help="cap.json or its folder (runs/demo/axis), with its responses.jsonl.")],
    out: Annotated[Path, typer.Argument(help="New folder; with several alphas one below it each (OUT/alpha-0.5).")],
    alpha: Annotated[
        str | None, typer.Option("--alpha", help="Strengths in (0, 1], e.g. 0.3,0.5,1; the cap's own when not given.")
    ] = None,
    placement: Annotated[
        str, typer.Option("--placement", help="append (grow every MLP by 32) or replace (a neuron that can be spared).")
    ] = "append",
    ridge: Annotated[
        float | None, typer.Option("--ridge", help="Ridge strength; chosen by held-out error when not given.")
    ] = None,
    sharpness: Annotated[
        float, typer.Option("--sharpness", min=1.0, help="beta in units of 1/std of the excess.")
    ] = 60.0,
    max_kl_ratio: Annotated[
        float, typer.Option("--max-kl-ratio", help="Refuse a cap that is less faithful than this.")
    ] = 0.02,
    force: Annotated[
        bool, typer.Option("--force", help="Keep a checkpoint that is not faithful; replace OUT.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the fidelity reports as JSON.")] = False,
) -> None:
    """Compile a cap into the weights: a plain checkpoint that stock transformers, llama.cpp, Ollama and vLLM run.

    One neuron per capped layer is fitted on the calibration responses beside the cap, and compared with the hooks on
    the held-out ones: KL(hooked||baked) / KL(hooked||uncapped), agreement, perplexity and speed go to fidelity.json.

    Example: karma bake runs/demo/merged runs/demo/axis baked --alpha 0.3,0.5,1
    """
    import json

    from karma_electric.core.artifact import read_json
    from karma_electric.core.extras import require
    from karma_electric.core.progress import Console
    from karma_electric.steer.bake import REPORT

    require("model")
    folders = plan(
        model,
        cap,
        out,
        alphas=_alphas(alpha),
        settings={"placement": placement, "ridge": ridge, "sharpness": sharpness, "max_kl_ratio": max_kl_ratio},
        force=force,
        progress=Console(),
    )
    reports = {folder: read_json(folder / REPORT) for folder in folders}
    if json_:
        print(json.dumps({str(folder): report for folder, report in reports.items()}, indent=2))
        return
    print(f"{'alpha':>6} {'KL ratio':>9} {'prompt':>8} {'response':>9} {'same top':>9} {'perplexity':>17}  folder")
    for folder, report in reports.items():
        text = report["ordinary_text"]
        print(
            f"{report['alpha']:>6g} {report['all']['kl_ratio']:>9.4f} {report['prompt']['kl_ratio']:>8.4f} "
            f"{report['response']['kl_ratio']:>9.4f} {report['all']['same_top_token_baked']:>9.1%} "
            f"{text['perplexity_uncapped']:>8.2f}->{text['perplexity_baked']:<7.2f}  {folder}"
        )


def plan(
    model: str,
    cap: Path,
    out: Path,
    *,
    alphas: list[float | None],
    settings: dict[str, Any],
    force: bool,
    progress: Progress,
) -> list[Path]:
    """Bake every strength as a stage of its own: skipped when it is there, continued after a kill.

    Returns the folders.

    Raises:
        InputError: a setting that cannot be, or the model has its cap compiled in.
        MissingError: no such model or cap, or no responses beside it.
        ArtifactError: the cap is for a model of another shape.
        GateError: a baked cap is not faithful, and `force` is not set.
    """
    from pydantic import ValidationError

    from karma_electric.cli.chat import find_cap
    from karma_electric.core.artifact import hash_file, read_json
    from karma_electric.core.errors import InputError
    from karma_electric.core.recipe import BakeSection
    from karma_electric.core.resources import find
    from karma_electric.models.refs import resolve
    from karma_electric.pipeline import Stage, run_stages
    from karma_electric.steer.compat import check_cap_at
    from karma_electric.steer.contrast import load_prompts
    from karma_electric.steer.responses import FILE, by_split
    from karma_electric.steer.spec import load_cap

    try:
        section = BakeSection(**settings)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = str(problem["loc"][0])
        raise InputError(
            f"--{key.replace('_', '-')} is {problem['input']!r}: {problem['msg']}.", "See karma bake --help."
        ) from None
    ref = resolve(model)
    found = find_cap(ref.path, cap, needed=True)
    assert found is not None  # `needed`
    loaded, axis = load_cap(found)
    config = read_json(ref.path / "config.json")
    _require_shape(axis.n_layers, axis.hidden, config)
    for warning in check_cap_at(ref.path, loaded, axis, ref.fingerprint):
        progress.say(f"warning: {warning}")
    splits = by_split(found.parent / FILE)
    texts = find("suites", _TEXTS)
    stages = []
    for alpha in alphas:
        strength = loaded.spec.alpha if alpha is None else alpha

        def execute(folder: Path, progress: Progress, strength: float = strength) -> None:
            from karma_electric.steer.bake import bake as bake_one
            from karma_electric.steer.bake import require_faithful

            report = bake_one(
                ref.path,
                loaded,
                calibration=splits["calibration"],
                heldout=splits["heldout"][:_CONVERSATIONS],
                texts=[prompt.text for prompt in load_prompts(texts)],
                out=folder,
                section=section,
                alpha=strength,
                progress=progress,
            )
            if not force:
                require_faithful(report, section)

        inputs = {
            "model": ref.fingerprint,
            "axis": hash_file(found.parent / loaded.spec.axis),
            "cap": hash_file(found),
            "responses": hash_file(found.parent / FILE),
            "texts": hash_file(texts),
        }
        name = out.name if len(alphas) == 1 else f"alpha-{strength:g}"
        size = sum(f.stat().st_size for f in ref.path.glob("*.safetensors"))
        config_ = {**section.model_dump(mode="json"), "alpha": strength}
        stages.append(Stage(name, "capped", config_, inputs, execute, resumable=True, space_bytes=int(1.2 * size)))
    root = out.parent if len(alphas) == 1 else out
    run_stages(root, stages, force=force, progress=progress)
    return [root / stage.name for stage in stages]


def _alphas(text: str | None) -> list[float | None]:
    """`0.3,0.5,1` as numbers.

    Raises:
        InputError: not numbers in (0, 1], or one twice.
    """
    from karma_electric.core.errors import InputError

    if text is None:
        return [None]
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or len(set(values)) != len(values) or not all(0.0 < value <= 1.0 for value in values):
        raise InputError(
            f"--alpha is {text!r}, expected different numbers above 0 and up to 1, with commas.", "Example: 0.3,0.5,1"
        )
    return list(values)


def _require_shape(n_layers: int, hidden: int, config: dict[str, Any]) -> None:
    from karma_electric.core.errors import ArtifactError

    if (n_layers, hidden) != (config.get("num_hidden_layers"), config.get("hidden_size")):
        raise ArtifactError(
            f"The axis is for {n_layers} blocks of hidden size {hidden}, the model has "
            f"{config.get('num_hidden_layers')} of {config.get('hidden_size')}.",
            "Use the axis that was extracted from this model (an axis does not transfer).",
        )
