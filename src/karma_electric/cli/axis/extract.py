"""`karma axis extract`: the direction away from a persona, at both sites of every block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from karma_electric.core.progress import Progress
    from karma_electric.core.recipe import Recipe
    from karma_electric.models.processes import Processes
    from karma_electric.steer.axis import Axis
    from karma_electric.steer.contrast import ContrastSet

_CONTRAST = "suites/contrast-200.jsonl"
_DEPTH = (0.70, 0.88)  # marked in the plot: where a recipe caps that does not say it
_DTYPES = ("auto", "bfloat16", "float32")
_POSITIONS = ("last-prompt", "response")


def extract(
    model: Annotated[
        str, typer.Argument(help="The uncapped model: a folder (runs/demo/merged), a hub id, or builtin:smollm2-135m.")
    ],
    out: Annotated[Path, typer.Argument(help="New folder for axis.safetensors and norms.png.")],
    contrast: Annotated[
        str | None,
        typer.Option("--contrast", help=f"User prompts, JSONL with id, kind, prompt. [default: {_CONTRAST}]"),
    ] = None,
    toward: Annotated[
        str | None, typer.Option("--toward", help="The persona's system prompt: text, or @FILE. Or give --recipe.")
    ] = None,
    away: Annotated[
        list[str] | None,
        typer.Option(
            "--away",
            metavar="TEXT",
            help="A generic system prompt: text, or @FILE. Any number; the empty one is always there.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="Take what is not given here from this recipe: prompts, position, dtype."),
    ] = None,
    position: Annotated[
        str | None,
        typer.Option("--position", help="last-prompt (default), or response: the mean over the tokens of an answer."),
    ] = None,
    responses: Annotated[
        Path | None,
        typer.Option(
            "--responses",
            help="For --position response: given answers, JSONL with id, system, prompt, text. Else the model answers.",
        ),
    ] = None,
    response_tokens: Annotated[
        int | None, typer.Option("--response-tokens", min=1, help="Tokens per generated answer. [default: 64]")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the generated answers. [default: 0]")] = None,
    batch_tokens: Annotated[
        int | None, typer.Option("--batch-tokens", min=1, help="Padded tokens per forward pass. [default: 4096]")
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length", min=2, help="Tokens per sequence; longer user texts are cut. [default: the model's context]"
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="auto (default), bfloat16 or float32: arithmetic of the model.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if something else is there.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print what was extracted as JSON.")] = False,
) -> None:
    """Extract the axis of a model: the mean difference between generic and persona-prompted activations.

    For every user prompt the residual stream is read under the persona's system prompt and under each generic one, at
    both sites of every block in one pass. The direction points away from the persona. It belongs to this model alone:
    extract again after every training. A run that was stopped continues where it was.

    Several processes share the work when started with accelerate launch -m karma_electric axis extract ... (on GPUs)
    or, on the CPU, with accelerate launch --config_file recipes/accelerate/cpu.yaml -m karma_electric axis extract ...

    Example: karma axis extract runs/demo/merged axis --recipe demo.toml
    """
    import json

    from karma_electric.core.extras import require
    from karma_electric.models.processes import joined

    require("model")
    with joined() as processes:
        if not processes.first:
            _follow(processes)
            return
        with _Followers(processes) as followers:
            job = plan_job(
                model,
                contrast=contrast,
                toward=toward,
                away=away,
                recipe=recipe,
                position=position,
                responses=responses,
                response_tokens=response_tokens,
                seed=seed,
                batch_tokens=batch_tokens,
                max_length=max_length,
                dtype=dtype,
            )
            axis = _run(job, out, followers, force=force)
    if json_:
        print(json.dumps(_report(axis, out), indent=2))
    else:
        _print(axis, out)


@dataclass(frozen=True)
class Job:
    """All that decides the result, and that another process needs to do its share.

    Attributes:
        model: the model's folder.
        fingerprint: of the model.
        contrast: prompts and system prompts.
        answers: (prompt id, system prompt) -> answer, where they are given.
        settings: what else `steer.extract.extract` takes, and the dtype.
        inputs: role -> hash, for the manifest.
        layers: blocks to mark in the plot, first and last; or fractions of depth.
    """

    model: Path
    fingerprint: str
    contrast: ContrastSet
    answers: dict[tuple[str, str], str] | None
    settings: dict[str, Any]
    inputs: dict[str, str]
    layers: tuple[int, int] | None
    depth: tuple[float, float] | None

    def extract(self, folder: Path, processes: Processes, progress: Progress) -> Axis:
        """Load the model and extract, or do this process's share of it."""
        from karma_electric.models.engines.protocol import Sampling
        from karma_electric.models.loading import load_model, load_tokenizer
        from karma_electric.steer.extract import extract as extract_axis

        settings = self.settings
        model = load_model(self.model, dtype=settings["dtype"], device=processes.device)
        return extract_axis(
            model,
            load_tokenizer(self.model),
            self.contrast,
            folder,
            fingerprint=self.fingerprint,
            position=settings["position"],
            answers=self.answers,
            sampling=Sampling(**settings.get("sampling", {})),
            max_length=settings["max_length"],
            batch_tokens=settings["batch_tokens"],
            processes=processes,
            progress=progress,
        )


def plan_job(
    model: str,
    *,
    contrast: str | None,
    toward: str | None,
    away: Sequence[str] | None,
    recipe: str | None,
    position: str | None,
    responses: Path | None,
    response_tokens: int | None,
    seed: int | None,
    batch_tokens: int | None,
    max_length: int | None,
    dtype: str | None,
) -> Job:
    """Read and check everything that was asked for. None takes what the recipe says, or the default.

    Raises:
        InputError: options that cannot be, or no persona prompt.
        MissingError: no such model, recipe or file.
        DataError: prompts or responses that cannot be used.
    """
    from dataclasses import replace

    from karma_electric.core.artifact import hash_file
    from karma_electric.core.errors import InputError
    from karma_electric.core.recipe import load_recipe
    from karma_electric.core.resources import find
    from karma_electric.models.refs import resolve
    from karma_electric.steer.answers import read_answers
    from karma_electric.steer.contrast import ContrastSet, load_prompts
    from karma_electric.steer.extract import SAMPLING

    base: Recipe | None = load_recipe(recipe) if recipe else None
    section = base.axis if base else None
    position = position or (section.position if section else "last-prompt")
    dtype = dtype or (base.model.dtype if base else "auto")
    _one_of("--position", position, _POSITIONS)
    _one_of("--dtype", dtype, _DTYPES)
    if position != "response":
        for option, value in (("--responses", responses), ("--response-tokens", response_tokens), ("--seed", seed)):
            if value is not None:
                raise InputError(f"{option} has no use at position {position}.", "Add --position response, or drop it.")
    if toward is None and base is None:
        raise InputError("There is no persona prompt.", "Give --toward TEXT, --toward @FILE or --recipe demo.toml.")
    ref = resolve(model)
    persona = _text("--toward", toward) if toward is not None else (base.persona.system_prompt if base else "")
    if not persona.strip():
        raise InputError("The persona prompt (--toward) is empty.", "Give the system prompt that calls the persona up.")
    generic = [_text("--away", text) for text in away] if away else (base.persona.away if base else [])
    file = find("suites", contrast or (section.contrast if section else _CONTRAST))
    prompts = ContrastSet(load_prompts(file), persona, tuple(dict.fromkeys(["", *generic])))
    if persona in prompts.away:
        raise InputError("The persona prompt is one of the --away prompts.", "Leave it out there.")
    settings: dict[str, Any] = {
        "position": position,
        "dtype": dtype,
        "batch_tokens": batch_tokens or (section.batch_tokens if section else 4096),
        "max_length": max_length,
    }
    inputs = {"model": ref.fingerprint, "contrast": hash_file(file)}
    answers = None
    if responses is not None:
        answers = read_answers(responses, prompts)
        inputs["responses"] = hash_file(responses)
    elif position == "response":
        length = response_tokens or (section.response_tokens if section else SAMPLING.max_new_tokens)
        chosen = seed if seed is not None else (section.seed if section else SAMPLING.seed)
        settings["sampling"] = vars(replace(SAMPLING, max_new_tokens=length, seed=chosen))
    layers, depth = (section.layers, section.depth) if section else (None, _DEPTH)
    return Job(ref.path, ref.fingerprint, prompts, answers, settings, inputs, layers, depth)


class _Followers:
    """The other processes: called in when there is work, and sent home when there is no more."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self._at_work = False

    def __enter__(self) -> _Followers:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._at_work:  # else something failed in the middle: they are not listening, and end by themselves
            self.processes.tell(None)

    def extract(self, job: Job, folder: Path, progress: Progress) -> Axis:
        """Extract together with them."""
        self.processes.tell((job, folder.absolute()))
        self._at_work = True
        axis = job.extract(folder, self.processes, progress)
        self._at_work = False
        return axis


def _follow(processes: Processes) -> None:
    """Do this process's share of whatever the first one begins, until it says that there is nothing more."""
    from karma_electric.core.progress import Silent

    while (task := processes.tell(None)) is not None:
        job, folder = task
        job.extract(folder, processes, Silent())


def _run(job: Job, out: Path, followers: _Followers, *, force: bool) -> Axis:
    """As a stage: skipped when it is there, continued after a kill."""
    from karma_electric.core.artifact import read_json
    from karma_electric.core.progress import Console
    from karma_electric.pipeline import Stage, make_artifacts
    from karma_electric.steer.axis import load_axis
    from karma_electric.steer.spec import AXIS_FILE

    def execute(folder: Path, progress: Progress) -> None:
        from karma_electric.models.blocks import layer_range
        from karma_electric.steer.axis import save_axis
        from karma_electric.steer.diagnose import diagnose
        from karma_electric.steer.diagnostics import DIAGNOSTICS_FILE, write_diagnostics
        from karma_electric.steer.extract import forget_chunks, iter_chunks
        from karma_electric.steer.figures import plot_norms

        axis = followers.extract(job, folder, progress)
        save_axis(axis, folder / AXIS_FILE)
        layers = layer_range(axis.n_layers, layers=job.layers, depth=job.depth)
        diagnostics = None
        if axis.n > 1:  # one prompt says nothing of other prompts
            diagnostics = diagnose(lambda: iter_chunks(folder), progress=progress)
            write_diagnostics(diagnostics, folder / DIAGNOSTICS_FILE)
        plot_norms(axis, layers, folder / "norms.png", diagnostics)
        forget_chunks(folder)

    config = {**job.settings, "toward": job.contrast.toward, "away": list(job.contrast.away)}
    shape = read_json(job.model / "config.json")
    per_prompt = 16 * int(shape.get("num_hidden_layers") or 0) * int(shape.get("hidden_size") or 0)  # 2 sites, 2 sides
    space = per_prompt * len(job.contrast.prompts) + 10_000_000
    stage = Stage(out.name, "axis", config, job.inputs, execute, resumable=True, space_bytes=space)
    make_artifacts(out.parent, [stage], force=force, progress=Console())
    return load_axis(out / AXIS_FILE)


def _one_of(option: str, value: str, allowed: Sequence[str]) -> None:
    from karma_electric.core.errors import InputError

    if value not in allowed:
        raise InputError(
            f"{option} is {value!r}, expected one of {', '.join(allowed)}.", "See karma axis extract --help."
        )


def _text(option: str, value: str) -> str:
    """A text, or the contents of the file that `@FILE` names, without the line end that editors add.

    Raises:
        MissingError: no such file.
        InputError: it is not text.
    """
    from karma_electric.core.errors import InputError, MissingError

    if not value.startswith("@"):
        return value
    path = Path(value[1:])
    if not path.is_file():
        raise MissingError(f"{option} {value}: {path} does not exist.", "Give a text file after the @.")
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except UnicodeDecodeError:
        raise InputError(f"{option} {value}: {path} is not UTF-8 text.", "Save it as UTF-8.") from None


def _best(axis: Axis, site: str) -> int:
    scores = axis.stats[site]["d_prime"]
    return int(max(range(len(scores)), key=scores.__getitem__))


def _report(axis: Axis, out: Path) -> dict[str, Any]:
    sites = {
        site: {"norm": [float(f"{x:.5g}") for x in norms.tolist()], **axis.stats[site]}
        for site, norms in axis.norms.items()
    }
    notes = {key: axis.stats[key] for key in ("max_length", "shortened", "left_out")}
    return {
        "folder": str(out),
        "n": axis.n,
        "position": axis.position,
        "away": list(axis.away),
        **notes,
        "sites": sites,
    }


def _print(axis: Axis, out: Path) -> None:
    print(
        f"{out}: {axis.n_layers} blocks x {axis.hidden}, position {axis.position}, "
        f"{axis.n} prompts under {1 + len(axis.away)} system prompts"
    )
    unseen = "d' (other half)"
    print(f"{'site':<6} {'clearest block':>14} {'|d|':>9} {'|d|/error':>10} {unseen:>15}")
    for site in axis.directions:
        block, of = _best(axis, site), axis.stats[site]
        print(
            f"{site:<6} {block:>14} {axis.norms[site][block]:>9.3g} {of['norm_to_error'][block]:>10.1f} "
            f"{of['d_prime'][block]:>15.2f}"
        )
    print(f"Is it real? karma axis show {out}")
