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
        str, typer.Argument(help="The uncapped model: a folder (runs/demo/merged), a hub id, or builtin:smollm2-135m.")
    ],
    cap: Annotated[Path, typer.Argument(help="cap.json or its folder (runs/demo/axis), with its responses.jsonl.")],
    out: Annotated[Path, typer.Argument(help="New folder; with several alphas one below it each (OUT/alpha-0.5).")],
    with_: Annotated[
        list[Path] | None,
        typer.Option(
            "--with", metavar="CAP", help="A further cap that acts beside CAP, like a nested hook; can be given again."
        ),
    ] = None,
    alpha: Annotated[
        str | None,
        typer.Option("--alpha", help="Strengths in (0, 1] of all caps, e.g. 0.3,0.5,1; each cap's own when not given."),
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

    One neuron per cap and capped block is fitted on the calibration responses beside CAP, for each strength, and
    compared with the hooks on the held-out ones: KL(hooked||baked) / KL(hooked||uncapped) with its interval, greedy
    agreement, perplexity of the held-out prompts (as plain text) and speed go to fidelity.json. A ratio above
    --max-kl-ratio is refused (exit code 1).

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
        [cap, *(with_ or [])],
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
    print(_HEADER)
    for folder, report in reports.items():
        print(_line(report, folder))


_HEADER = (
    f"{'alpha':>6} {'KL ratio (95%)':>22} {'prompt':>7} {'response':>9} {'same top':>9} {'same answer':>12} "
    f"{'perplexity':>16}  folder"
)


def _line(report: dict[str, Any], folder: Path) -> str:
    everything = report["all"]
    text = report["heldout_prompts"] if "heldout_prompts" in report else report["ordinary_text"]  # its name before
    interval = everything["kl_ratio_interval"]
    spread = f" ({interval['low']:.4f}-{interval['high']:.4f})" if interval else ""
    change = f"{text['perplexity_uncapped']:.2f}->{text['perplexity_baked']:.2f}" if text["tokens"] else "not measured"
    return (
        f"{report['alpha']:>6g} {everything['kl_ratio']:.4f}{spread:<16} {report['prompt']['kl_ratio']:>7.4f} "
        f"{report['response']['kl_ratio']:>9.4f} {everything['same_top_token_baked']:>9.1%} "
        f"{report['greedy']['identical_baked']:>12.0%} {change:>16}  {folder}"
    )


def plan(
    model: str,
    caps: list[Path],
    out: Path,
    *,
    alphas: list[float | None],
    settings: dict[str, Any],
    force: bool,
    progress: Progress,
) -> list[Path]:
    """Bake every strength as a stage of its own, from one calibration: skipped when there, continued after a kill.

    The first of `caps` has the responses to calibrate on beside it. Returns the folders.

    Raises:
        InputError: a setting that cannot be, a model that cannot hold the caps, or one that has a cap compiled in.
        MissingError: no such model or cap, or no responses beside it.
        ArtifactError: the cap is for a model of another shape.
        GateError: a baked cap is not faithful, and `force` is not set.
    """
    from pydantic import ValidationError

    from karma_electric.cli.chat import find_cap
    from karma_electric.core.artifact import hash_file, read_json
    from karma_electric.core.errors import GateError, InputError, MissingError
    from karma_electric.core.recipe import BakeSection
    from karma_electric.core.resources import find
    from karma_electric.models.refs import resolve
    from karma_electric.pipeline import Stage, make_artifacts
    from karma_electric.steer.responses import FILE, by_split
    from karma_electric.steer.spec import Cap, load_cap, load_spec

    try:
        section = BakeSection(**settings)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = str(problem["loc"][0])
        raise InputError(
            f"--{key.replace('_', '-')} is {problem['input']!r}: {problem['msg']}.", "See karma bake --help."
        ) from None
    ref = resolve(model)
    found = [file for cap in caps if (file := find_cap(ref.path, cap, needed=True)) is not None]
    specs = [load_spec(file) for file in found]
    axes = [file.parent / spec.axis for file, spec in zip(found, specs, strict=True)]
    if missing := [axis for axis in axes if not axis.is_file()]:
        raise MissingError(f"{missing[0]} does not exist.", "It belongs beside cap.json: copy the whole folder.")
    splits = by_split(found[0].parent / FILE)
    texts = find("suites", _TEXTS)
    caps_read: list[Cap] = []

    def prepare() -> None:
        """What is only of use if something is to be made: it reads weights, and may run the model."""
        from karma_electric.steer.compat import check_cap_at
        from karma_electric.steer.neuron import read_config, require_bakeable

        config, loaded = read_config(ref.path), [load_cap(file) for file in found]
        for file, (_, axis) in zip(found, loaded, strict=True):
            _require_shape(axis.n_layers, axis.hidden, config, file)
        require_bakeable(config, [each for each, _ in loaded])
        for each, axis in loaded:
            for warning in check_cap_at(ref.path, each, axis, ref.fingerprint):
                progress.say(f"warning: {warning}")
            caps_read.append(each)

    stages = []
    for alpha in alphas:

        def execute(folder: Path, progress: Progress, alpha: float | None = alpha) -> None:
            from karma_electric.steer.bake import bake as bake_one
            from karma_electric.steer.bake import require_faithful
            from karma_electric.steer.contrast import load_prompts

            report = bake_one(
                ref.path,
                caps_read,
                calibration=splits["calibration"],
                heldout=splits["heldout"][:_CONVERSATIONS],
                texts=[prompt.text for prompt in load_prompts(texts)],
                out=folder,
                section=section,
                alpha=alpha,
                progress=progress,
            )
            try:
                if not force:
                    require_faithful(report, section)
            except GateError as refused:
                kept = f"What was written is in {folder}: remove it if you leave it at that."
                raise GateError(refused.message, f"{refused.hint} {kept}") from None

        inputs = {
            "model": ref.fingerprint,
            "responses": hash_file(found[0].parent / FILE),
            "texts": hash_file(texts),
        }
        for number, (file, axis) in enumerate(zip(found, axes, strict=True), 1):
            suffix = "" if number == 1 else f"_{number}"
            # not "axis": in a run's artifacts that is the id of the run's own
            inputs |= {f"axis_file{suffix}": hash_file(axis), f"cap{suffix}": hash_file(file)}
        strengths = [spec.alpha if alpha is None else alpha for spec in specs]
        name = out.name if len(alphas) == 1 else f"alpha-{strengths[0]:g}"
        size = sum(f.stat().st_size for f in ref.path.glob("*.safetensors"))
        config_ = {**section.model_dump(mode="json"), "alpha": strengths[0] if len(strengths) == 1 else strengths}
        stages.append(Stage(name, "capped", config_, inputs, execute, resumable=True, space_bytes=int(1.2 * size)))
    root = out.parent if len(alphas) == 1 else out
    make_artifacts(root, stages, force=force, before=prepare, progress=progress)
    if not force:  # also of what was there already, which --force may have kept
        from karma_electric.steer.bake import require_faithful

        for stage in stages:
            require_faithful(read_json(root / stage.name / "fidelity.json"), section)
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
    if (
        not values
        or len({f"{value:g}" for value in values}) != len(values)
        or not all(0.0 < value <= 1.0 for value in values)
    ):
        raise InputError(
            f"--alpha is {text!r}, expected different numbers above 0 and up to 1, with commas.", "Example: 0.3,0.5,1"
        )
    return list(values)


def _require_shape(n_layers: int, hidden: int, config: dict[str, Any], cap: Path) -> None:
    from karma_electric.core.errors import ArtifactError

    if (n_layers, hidden) != (config.get("num_hidden_layers"), config.get("hidden_size")):
        raise ArtifactError(
            f"The axis of {cap} is for {n_layers} blocks of hidden size {hidden}, the model has "
            f"{config.get('num_hidden_layers')} of {config.get('hidden_size')}.",
            "Use the axis that was extracted from this model (an axis does not transfer).",
        )
