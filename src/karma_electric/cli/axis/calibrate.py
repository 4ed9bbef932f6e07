"""`karma axis calibrate`: a new cap from an axis that is there, without extracting again."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from karma_electric.core.progress import Progress
    from karma_electric.core.recipe import AxisSection
    from karma_electric.steer.axis import Axis
    from karma_electric.steer.spec import CapSpec

_DEPTH = (0.70, 0.88)
_OPTIONS = {"threshold": "--method", "mixture": "--weights"}  # key of a recipe -> option; the others are alike
_LOAD_IN = ("nf4",)


def calibrate(
    model: Annotated[
        str,
        typer.Argument(
            help="The model the cap is for, uncapped: a folder (runs/demo/merged), a hub id, builtin:smollm2-135m, "
            "or a GGUF file."
        ),
    ],
    axis: Annotated[Path, typer.Argument(help="axis.safetensors or its folder (runs/demo/axis).")],
    out: Annotated[Path, typer.Argument(help="New folder for the axis, the cap, its responses and plots.")],
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="runtime-q (a quantile of the model's own responses) or persona-p25 (the original's: the 25th "
            "percentile of persona-prompted contrast prompts; it caps most tokens).",
        ),
    ] = "runtime-q",
    quantile: Annotated[
        float | None,
        typer.Option("--quantile", help="q of runtime-q: 1 - q of the tokens are above the threshold. [0.75]"),
    ] = None,
    target_cap_rate: Annotated[
        float | None,
        typer.Option(
            "--target-cap-rate", help="Solve for q so that this share of tokens is capped while the cap acts."
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option("--layers", help="First and last block, e.g. 21-26; those of the cap beside AXIS when not given."),
    ] = None,
    depth: Annotated[
        str | None,
        typer.Option("--depth", help="The same as fractions of depth. [0.70-0.88 without a cap beside AXIS]"),
    ] = None,
    site: Annotated[
        str | None, typer.Option("--site", help="mlp (can be baked) or block; of the cap beside AXIS, else mlp.")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            "--alpha", help="Strength it is measured at and used with, 0.5 soft, 1 hard. [as beside AXIS, 0.5]"
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            help="Weights of the kinds of responses, 0 for those not named. [deployment=2,generic=1,adversarial=1]",
        ),
    ] = None,
    calibration: Annotated[
        str, typer.Option("--calibration", help="JSONL of prompts (id, kind, prompt) the thresholds are set on.")
    ] = "suites/calibration-96.jsonl",
    heldout: Annotated[
        str, typer.Option("--heldout", help="JSONL of prompts the cap is measured on; none of the above.")
    ] = "suites/heldout-48.jsonl",
    responses: Annotated[
        Path | None,
        typer.Option("--responses", help="Use the responses.jsonl of an earlier calibration instead of prompts."),
    ] = None,
    response_tokens: Annotated[
        int, typer.Option("--response-tokens", min=1, help="Tokens generated per response.")
    ] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the responses.")] = 0,
    dtype: Annotated[str, typer.Option("--dtype", help="auto, bfloat16 or float32.")] = "auto",
    load_in: Annotated[
        str | None, typer.Option("--load-in", help="nf4: calibrate the model as it is with 4-bit weights.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it was made from something else.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print cap.json.")] = False,
) -> None:
    """Set the thresholds of a cap on the model's own responses, and measure how often and how hard it acts.

    Answers are generated under the persona's prompt, under generic ones and to adversarial prompts; a killed
    calibration continues with the answers it had. OUT has the axis, cap.json, responses.jsonl and plots: enough for
    karma chat --cap OUT and karma bake MODEL OUT. Calibrate again after the model was quantised; after it was
    trained, extract the axis again first.

    Example: karma axis calibrate runs/demo/merged runs/demo/axis cap-20 --target-cap-rate 0.2
    """
    from karma_electric.core.extras import require

    require("model")
    require("evidence")
    settings = {
        "threshold": method,
        "quantile": quantile,
        "target_cap_rate": target_cap_rate,
        "layers": _range("--layers", layers, int),
        "depth": _range("--depth", depth, float),
        "site": site,
        "alpha": alpha,
        "mixture": _weights(weights),
        "response_tokens": response_tokens,
        "seed": seed,
    }
    from karma_electric.core.progress import Console

    plan = Plan(
        axis,
        out,
        {key: value for key, value in settings.items() if value is not None},
        (calibration, heldout),
        responses,
        dtype,
        load_in,
    )
    spec = run(model, plan, force=force, progress=Console())
    if json_:
        from karma_electric.steer.spec import CAP_FILE

        print((out / CAP_FILE).read_text(encoding="utf-8"), end="")
        return
    print(table(spec))


@dataclass(frozen=True)
class Plan:
    """What was asked for on the command line: settings are keys of a recipe's [axis]."""

    axis: Path
    out: Path
    settings: dict[str, Any]
    prompts: tuple[str, str]
    responses: Path | None
    dtype: str
    load_in: str | None


def run(model: str, plan: Plan, *, force: bool, progress: Progress) -> CapSpec:
    """Calibrate as a stage of its own: skipped when it is there, continued after a kill. Returns the cap.

    Raises:
        InputError: settings that cannot be, or OUT is where the axis is.
        MissingError: no such model, axis, prompts or responses.
        DataError: prompts or responses that cannot be used.
        ArtifactError: the axis has another shape than the model; OUT holds something else and `force` is not set.
    """
    from karma_electric.core.artifact import hash_file
    from karma_electric.core.errors import InputError
    from karma_electric.core.resources import find
    from karma_electric.models.blocks import layer_range
    from karma_electric.pipeline import Stage, make_artifacts
    from karma_electric.steer.axis import load_axis
    from karma_electric.steer.calibrate import persona_thresholds
    from karma_electric.steer.contrast import load_prompts, require_disjoint
    from karma_electric.steer.responses import SPLITS, load_responses, plan_responses, require_kinds
    from karma_electric.steer.spec import AXIS_FILE, CAP_FILE, load_spec

    source = plan.axis / AXIS_FILE if plan.axis.is_dir() else plan.axis
    axis = load_axis(source)
    if plan.out.resolve() == source.parent.resolve():
        raise InputError(f"{plan.out} is the folder the axis is in.", "Give a new folder for the new cap.")
    section = _section(plan.settings, source.parent / CAP_FILE)
    _require_choice("--dtype", plan.dtype, ("auto", "bfloat16", "float32"))
    if plan.load_in is not None:
        _require_choice("--load-in", plan.load_in, _LOAD_IN)
    path, fingerprint = _model(model, axis, plan.load_in)
    if section.site not in axis.directions:
        raise InputError(f"The axis has no directions for the site {section.site!r}.", "Extract the axis again.")
    blocks = layer_range(axis.n_layers, layers=section.layers, depth=section.depth)
    if section.threshold == "persona-p25":
        persona_thresholds(axis, section, blocks)  # an axis without them is refused before a model is loaded
    shares = section.mixture.shares
    inputs = {"model": fingerprint, "axis_file": hash_file(source)}
    if plan.responses is not None:
        require_kinds(load_responses(plan.responses), shares)
        planned = None
        inputs["responses"] = hash_file(plan.responses)
    else:
        files = dict(zip(SPLITS, (find("suites", name) for name in plan.prompts), strict=True))
        prompts = {split: load_prompts(file) for split, file in files.items()}
        require_disjoint(**prompts)
        planned = plan_responses(prompts, toward=axis.toward, away=axis.away or ("",), shares=shares)
        inputs |= {split: hash_file(file) for split, file in files.items()}

    def execute(folder: Path, progress: Progress) -> None:
        from karma_electric.core.artifact import write_atomic
        from karma_electric.models.loading import load_tokenizer
        from karma_electric.steer.calibrate import calibrate_into
        from karma_electric.steer.responses import FILE
        from karma_electric.steer.spec import describe

        if axis.model != fingerprint:
            progress.say(
                "  warning: The axis was extracted from another model. That is as it should be where MODEL is the same "
                "model quantised; after training, extract the axis again first."
            )
        write_atomic(folder / AXIS_FILE, source.read_bytes())
        if plan.responses is not None:
            given = plan.responses.read_bytes()  # without a line break at its end the last line would count as torn
            write_atomic(folder / FILE, given if given.endswith(b"\n") else given + b"\n")
        spec = calibrate_into(
            folder,
            _load(path, axis, plan),
            load_tokenizer(path),
            axis,
            planned,
            section,
            blocks,
            fingerprint=fingerprint,
            quantisation=plan.load_in or ("gguf" if path.is_file() else "none"),
            progress=progress,
        )
        progress.say(f"  {describe(spec)}")

    config = {
        **section.model_dump(
            mode="json", exclude={"contrast", "calibration", "heldout", "position", "layers", "depth"}
        ),
        "mixture": shares,
        "layers": blocks,
        "dtype": plan.dtype,
        "load_in": plan.load_in,
    }
    stage = Stage(plan.out.name, "axis", config, inputs, execute, resumable=True)
    make_artifacts(plan.out.parent, [stage], force=force, progress=progress)
    return load_spec(plan.out / CAP_FILE)


def _section(settings: dict[str, Any], beside: Path) -> AxisSection:
    """The settings as a recipe's [axis]; what is not given is taken from the cap beside the axis, if there is one."""
    from pydantic import ValidationError

    from karma_electric.core.errors import InputError
    from karma_electric.core.recipe import AxisSection
    from karma_electric.steer.spec import load_spec

    chosen = dict(settings)
    if beside.is_file():
        cap = load_spec(beside)
        chosen.setdefault("site", cap.site)
        chosen.setdefault("alpha", cap.alpha)
        if "layers" not in chosen and "depth" not in chosen:
            chosen["layers"] = (cap.layers[0], cap.layers[-1])
    elif "layers" not in chosen and "depth" not in chosen:
        chosen["depth"] = _DEPTH
    try:
        return AxisSection(**chosen)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        message = str(problem["msg"]).removeprefix("Value error, ")
        keys = [str(part) for part in problem["loc"]]
        option = _OPTIONS.get(keys[0], "--" + keys[0].replace("_", "-")) if keys else ""
        where = f"{option} is {problem['input']!r}: " if option else ""
        raise InputError(f"{where}{message}.", "See karma axis calibrate --help.") from None


def _model(name: str, axis: Axis, load_in: str | None) -> tuple[Path, str]:
    """Where a model is, and its fingerprint; refuses one of another shape where its config says so."""
    from karma_electric.core.artifact import hash_file, read_json
    from karma_electric.core.errors import InputError
    from karma_electric.core.extras import require
    from karma_electric.models.loading import is_gguf, read_gguf
    from karma_electric.models.refs import resolve
    from karma_electric.steer.axis import require_fits

    if is_gguf(Path(name)):
        require("gguf")
        if load_in is not None:
            raise InputError(f"{name} is quantised already, and --load-in {load_in} was given.", "Keep one of the two.")
        read_gguf(Path(name))  # a torn file is refused before anything runs
        return Path(name), hash_file(Path(name))[:16]
    ref = resolve(name)
    config = read_json(ref.path / "config.json")
    n_layers, hidden = config.get("num_hidden_layers"), config.get("hidden_size")
    if isinstance(n_layers, int) and isinstance(hidden, int):
        require_fits(axis, n_layers=n_layers, hidden=hidden)
    return ref.path, ref.fingerprint


def _load(path: Path, axis: Axis, plan: Plan) -> Any:
    """The model, quantised as asked for."""
    from karma_electric.models.blocks import decoder_blocks, hidden_size
    from karma_electric.models.loading import load_model, nf4_config, pick_device, pick_dtype
    from karma_electric.steer.axis import require_fits

    compute = pick_dtype(plan.dtype, pick_device())
    quantisation = nf4_config(path, compute) if plan.load_in == "nf4" else None
    model = load_model(path, dtype=compute, quantisation=quantisation)
    require_fits(axis, n_layers=len(decoder_blocks(model)), hidden=hidden_size(model))
    return model


def _range(option: str, text: str | None, number: type[int] | type[float]) -> tuple[Any, Any] | None:
    """`21-26` as (21, 26), `21` as (21, 21); None stays None."""
    from karma_electric.core.errors import InputError

    if text is None:
        return None
    found = re.fullmatch(r"\s*([0-9.]+)\s*(?:-\s*([0-9.]+)\s*)?", text)
    try:
        assert found is not None
        return number(found[1]), number(found[2] or found[1])
    except (AssertionError, ValueError):
        example = "21-26" if number is int else "0.70-0.88"
        raise InputError(f"{option} is {text!r}, expected first and last.", f"Example: {option} {example}") from None


def _weights(text: str | None) -> dict[str, float] | None:
    """`deployment=2,generic=1` as a dict with every kind; None stays None."""
    from karma_electric.core.errors import InputError
    from karma_electric.core.recipe import MixtureSection

    if text is None:
        return None
    kinds = list(MixtureSection.model_fields)
    weights = dict.fromkeys(kinds, 0.0)
    for part in text.split(","):
        kind, _, value = (piece.strip() for piece in part.partition("="))
        try:
            if kind not in kinds:
                raise ValueError(kind)
            weights[kind] = float(value)
        except ValueError:
            raise InputError(
                f"--weights: {part!r} is not KIND=NUMBER with a kind of {', '.join(kinds)}.",
                "Example: --weights deployment=2,generic=1,adversarial=1",
            ) from None
    return weights


def _require_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    from karma_electric.core.errors import InputError

    if value not in choices:
        raise InputError(f"{option} is {value!r}, expected {' or '.join(choices)}.", "See karma axis calibrate --help.")


def table(spec: CapSpec) -> str:
    """What was set and measured, a line per block, then by kind of response."""
    both = [spec.measured[split] for split in ("calibration", "heldout")]
    lines = [
        f"{'':>6} {'':>11} {'t, sd from':>12} {'cap rate':>11} {'cap rate':>9} {'dose':>8}",
        f"{'block':>6} {'threshold':>11} {'runtime mean':>12} {'calibration':>11} {'held-out':>9} {'held-out':>8}",
    ]
    for layer in map(str, spec.layers):
        first, second = (split["cap_rate"][layer] for split in both)
        lines.append(
            f"{layer:>6} {spec.thresholds[int(layer)]:>11.3f} {spec.measured['threshold_sd'][layer]:>+12.2f} "
            f"{first:>11.1%} {second:>9.1%} {spec.dose[layer]:>8.2%}"
        )
    first, second = (split["cap_rate"]["mean"] for split in both)
    lines.append(f"{'mean':>6} {'':>11} {'':>12} {first:>11.1%} {second:>9.1%} {spec.dose['mean']:>8.2%}")
    lines += [
        "",
        f"{'held-out':<13}{'weight':>7} {'answers':>9} {'tokens':>7} {'cap rate':>9} {'95% interval':>15} {'dose':>7}",
    ]
    kinds = {**both[1].get("kinds", {}), "all, weighted": {"weight": None, **both[1]}}
    for kind, found in kinds.items():
        weight = "" if found["weight"] is None else f"{found['weight']:.2f}"
        interval = found["cap_rate_interval"]
        between = "" if interval is None else f"{interval['low']:.1%}-{interval['high']:.1%}"
        lines.append(
            f"{kind:<13}{weight:>7} {found['responses']:>9} {found['tokens']:>7} {found['cap_rate']['mean']:>9.1%} "
            f"{between:>15} {found['dose']['mean']:>7.2%}"
        )
    method = spec.method
    if "target_cap_rate" in method:
        lines += [
            "",
            f"target cap rate {method['target_cap_rate']:.1%}: {method['reached_on_calibration']:.1%} on calibration "
            f"text, {method['reached_on_heldout']:.1%} held-out, at q = {method['quantile']:.4f} "
            f"({method['passes']} tried)",
        ]
    return "\n".join(lines)
