"""`karma drift`: how far a conversation takes the model away from its persona, per token and per turn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from karma_electric.cli.options import CapFile

if TYPE_CHECKING:
    from karma_electric.core.transcripts import Transcript
    from karma_electric.steer.conversation_drift import ConversationDrift
    from karma_electric.steer.drift_reference import Alarm
    from karma_electric.steer.spec import CapSpec

_MOST_NOTES = 5  # about single conversations


@dataclass(frozen=True)
class AskedAlarm:
    """--alarm: a level in sd, or a share of ordinary answers; neither asks for the default share."""

    level: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Measured:
    """Everything that is reported."""

    model: Path
    cap: Path
    spec: CapSpec
    alpha: float
    compiled: bool
    scales: dict[int, float]
    alarm: Alarm
    ordinary: tuple[float, ...]
    conversations: dict[str, ConversationDrift]


def drift(
    transcript: Annotated[
        str, typer.Argument(help="Conversations: .json or .jsonl with messages (/save in a chat writes one), or -.")
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", help="The uncapped model; beside the cap in a run, or named in the transcript."),
    ] = None,
    cap: CapFile = None,
    alpha: Annotated[
        float, typer.Option("--alpha", help="Measure with the cap acting this strongly; 0 measures the bare model.")
    ] = 0.0,
    alarm: Annotated[
        str | None,
        typer.Option(
            "--alarm", help="Level of an answer's mean: 1.5 (sd), or 5% (what 5% of ordinary answers exceed)."
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw every token along the conversation: a .png.")
    ] = None,
    tokens: Annotated[
        bool,
        typer.Option("--tokens", help="Show the answers with their tokens beyond the ceiling; in JSON, all tokens."),
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 when an answer is beyond the alarm level.")
    ] = False,
) -> None:
    """Measure how far a conversation drifts from the persona: the projection of every token on the axis.

    drift = mean over the capped blocks of (projection - threshold) / sd of the model's own answers: 0 is the ceiling of
    the cap, positive is beyond it, away from the persona. Columns: mean and max per turn; above, the share of its
    tokens above the ceiling; rank, the share of ordinary answers that are lower.

    Example: karma drift chat.json --model runs/demo/merged --plot drift.png
    """
    import json

    from karma_electric.cli.drift_report import print_conversation
    from karma_electric.core.errors import GateError, InputError
    from karma_electric.core.extras import require
    from karma_electric.core.transcripts import read_transcripts

    if not 0.0 <= alpha <= 1.0:
        raise InputError(f"--alpha is {alpha:g}, expected a number from 0 (off) to 1 (hard).", "0.5 is the soft cap.")
    if plot is not None and (plot.suffix.lower() != ".png" or not plot.parent.is_dir()):
        raise InputError(
            f"--plot is {plot}, expected a .png file in a folder that exists.", "Example: --plot drift.png"
        )
    asked = _read_alarm(alarm)
    transcripts = read_transcripts(transcript)
    folder, cap_file = locate(model, cap, transcripts)
    require("model")
    if plot is not None:
        require("evidence")
    found = measure(folder, cap_file, transcripts, alpha=alpha, asked=asked)
    if json_:
        print(json.dumps(as_json(found, tokens=tokens), indent=2, ensure_ascii=False))
    else:
        print(_heading(found))
        for name, one in found.conversations.items():
            print_conversation(name, one, tokens=tokens)
    if plot is not None:
        _draw(found, plot)
    beyond = [name for name, one in found.conversations.items() if one.beyond]
    if check and beyond:
        raise GateError(
            f"{len(beyond)} of {len(found.conversations)} conversations went beyond the alarm level "
            f"({found.alarm.level:+.2f} sd): {', '.join(beyond[:5])}.",
            "Read their turns above, or cap the model: karma chat --alpha 0.5.",
        )


def locate(model: str | None, cap: Path | None, transcripts: list[Transcript]) -> tuple[str, Path]:
    """Name of the model and path of cap.json: as given, else from each other (a run), else from the transcripts.

    Raises:
        InputError: a GGUF file, or a model that has its cap compiled in without a cap to measure by.
        MissingError: they are not there, or nothing says which.
    """
    from karma_electric.core.errors import InputError, MissingError
    from karma_electric.core.lineage import missing_run_hint
    from karma_electric.steer.neuron import FILE as COMPILED
    from karma_electric.steer.spec import CAP_FILE

    models, caps = ({getattr(t, key) for t in transcripts} for key in ("model", "cap"))
    if model is None and cap is None:
        if len(models) > 1 or len(caps) > 1 or None in models | caps:
            raise MissingError(
                "Nothing says which model and cap to measure with.", "Give --model runs/demo/merged, or --cap."
            )
        model, cap = models.pop(), Path(caps.pop())
    elif model is None and len(models) == 1 and not _model_beside(cap):
        model = models.pop()  # None where the transcripts do not say
    elif cap is None and len(caps) == 1 and None not in caps and not (Path(model or "").parent / "axis").is_dir():
        cap = Path(caps.pop())
    if model is not None and (model.endswith(".gguf") or model.startswith("scripted:")):
        raise InputError(
            f"{model} has no activations to look at.",
            "Give the checkpoint that it was made from, such as runs/demo/merged.",
        )
    compiled = model is not None and (Path(model) / COMPILED).exists()
    if cap is None:
        assert model is not None  # one of them is given
        if compiled:
            raise InputError(
                f"{model} has its cap compiled into the weights; nothing says where its ceiling is.",
                f"Give the cap with --cap, such as {Path(model).parent / 'axis'}.",
            )
        cap = Path(model).parent / "axis"
        if not (cap / CAP_FILE).is_file() or not Path(model).is_dir():
            raise MissingError(
                f"There is no cap beside {model} (looked for {cap / CAP_FILE}).", "Give one: --cap runs/demo/axis"
            )
    file = cap / CAP_FILE if cap.is_dir() else cap
    if not file.is_file():
        hint = missing_run_hint(cap) or "Give the cap.json of a run: --cap runs/demo/axis"
        raise MissingError(f"The cap {cap} does not exist.", hint)
    if model is None:
        merged = file.resolve().parent.parent / "merged"
        if not merged.is_dir():
            raise MissingError(f"There is no model beside the cap (looked for {merged}).", "Give one with --model.")
        model = str(merged)
    return model, file


def _model_beside(cap: Path | None) -> bool:
    """Whether a run's model lies beside a cap (its folder or its cap.json)."""
    if cap is None:
        return False
    folder = cap.resolve() if cap.is_dir() else cap.resolve().parent
    return (folder.parent / "merged").is_dir()


def measure(name: str, cap_file: Path, transcripts: list[Transcript], *, alpha: float, asked: AskedAlarm) -> Measured:
    """Load the model and measure.

    Raises:
        MissingError: no such model. ArtifactError: the cap is for a model of another shape.
        DataError, InputError: a conversation without an answer, or too long; an alpha on top of a compiled cap; a
            share without ordinary answers.
    """
    import sys

    from karma_electric.cli.chat import open_cap
    from karma_electric.core.errors import InputError
    from karma_electric.core.progress import Console
    from karma_electric.models.blocks import context_length
    from karma_electric.models.loading import load_model, load_tokenizer
    from karma_electric.models.refs import resolve
    from karma_electric.steer.conversation_drift import ConversationDrift, project, render_all, turn_drifts
    from karma_electric.steer.drift_reference import Alarm, own_reference, reference_for
    from karma_electric.steer.neuron import FILE as COMPILED

    ref = resolve(name)
    compiled = (ref.path / COMPILED).exists()
    if compiled and alpha:
        raise InputError(
            f"{name} has its cap compiled into the weights; hooks on top would cap twice.", "Leave out --alpha."
        )
    progress = Console()
    tokenizer = load_tokenizer(ref.path)
    model = load_model(ref.path)
    loaded, _ = open_cap(cap_file, model, tokenizer, ref, warn=not compiled)
    if not compiled:
        _say_strengths(transcripts, alpha)
    conversations = {transcript.name: transcript.messages for transcript in transcripts}
    rendered = render_all(tokenizer, conversations, context_length(model))
    reference = reference_for(model, tokenizer, loaded, cap_file, ref.fingerprint, progress=progress)
    if reference is None and asked.share is not None:
        raise InputError(
            f"--alarm is a share of ordinary answers, and there is no responses.jsonl beside {cap_file}.",
            "Give a level instead, such as --alarm 1.5.",
        )
    projections = project(model, tokenizer, loaded, rendered, alpha=alpha, progress=progress)
    if reference is None:
        print(
            "warning: no responses beside the cap: drift is in units of this transcript's own spread, which cannot be "
            "compared with another's, and the alarm level is the ceiling.",
            file=sys.stderr,
        )
        reference = own_reference(rendered, projections, loaded)
    if asked.level is not None:
        alarm = Alarm.at(asked.level)
    else:
        alarm = Alarm.from_ordinary(reference, *([] if asked.share is None else [asked.share]))
    drifts = {
        one.name: ConversationDrift(
            turn_drifts(text, values, loaded, reference.scales), alarm.level, reference.ordinary
        )
        for one, text, values in zip(transcripts, rendered, projections, strict=True)
    }
    return Measured(
        ref.path, cap_file, loaded.spec, alpha, compiled, reference.scales, alarm, reference.ordinary, drifts
    )


def _say_strengths(transcripts: list[Transcript], alpha: float) -> None:
    """Say on stderr at which strengths the answers were given, where they are measured at another."""
    import sys

    steady = {next(iter(t.answered_at)) for t in transcripts if len(t.answered_at) == 1}
    if others := sorted(strength for strength in steady - {alpha} if strength):
        print(
            f"note: the transcript was saved at alpha {others[-1]:g} and is measured at {alpha:g} "
            f"(--alpha {others[-1]:g} measures with that cap acting).",
            file=sys.stderr,
        )
    changing = [transcript for transcript in transcripts if len(transcript.answered_at) > 1]
    for transcript in changing[:_MOST_NOTES]:
        each = "; ".join(f"{alpha:g} in {_turns(turns)}" for alpha, turns in transcript.answered_at.items())
        print(
            f"note: the strength changed during {transcript.name}: alpha {each}. All of it is measured at {alpha:g}.",
            file=sys.stderr,
        )
    if len(changing) > _MOST_NOTES:
        print(f"note: it changed during {len(changing) - _MOST_NOTES} more conversations.", file=sys.stderr)


def _turns(numbers: list[int]) -> str:
    return f"turn{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def as_json(found: Measured, *, tokens: bool) -> dict[str, Any]:
    """Everything that was measured."""
    return {
        "model": str(found.model),
        "cap": str(found.cap),
        "site": found.spec.site,
        "layers": list(found.spec.layers),
        "thresholds": [found.spec.thresholds[layer] for layer in found.spec.layers],
        "scales": [found.scales[layer] for layer in found.spec.layers],
        "alpha": found.alpha,
        "compiled_cap": found.compiled,
        "alarm": found.alarm.level,
        "alarm_source": found.alarm.source,
        "ordinary_answers": list(found.ordinary),
        "conversations": [{"name": name, **one.as_dict(tokens=tokens)} for name, one in found.conversations.items()],
    }


def _heading(found: Measured) -> str:
    return (
        f"{found.model}: {_where(found)}.\nDrift in sd above the ceiling. Alarm level {found.alarm.level:+.2f} sd: "
        f"{found.alarm.source}."
    )


def _where(found: Measured) -> str:
    layers = found.spec.layers
    acting = f"cap acting, alpha {found.alpha:g}" if found.alpha else "no cap acting"
    if found.compiled:
        acting = "its compiled cap acting"
    return f"blocks {layers[0]}-{layers[-1]}, site {found.spec.site}, {acting}"


def _draw(found: Measured, path: Path) -> None:
    import sys

    from karma_electric.steer.drift_plot import MOST_PANELS, plot_drift

    plot_drift(found.conversations, f"{found.model.parent.name}/{found.model.name}: {_where(found)}", path)
    left = len(found.conversations) - MOST_PANELS
    print(f"drawn: {path}" + (f" (without the last {left} conversations)" if left > 0 else ""), file=sys.stderr)


def _read_alarm(text: str | None) -> AskedAlarm:
    """`1.5` is a level, `5%` a share of ordinary answers, nothing the default share.

    Raises:
        InputError: neither.
    """
    import math

    from karma_electric.core.errors import InputError

    if text is None:
        return AskedAlarm()
    share = text.endswith("%")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (share and not 0.0 < value < 100.0):
        raise InputError(f"--alarm is {text!r}, expected a level such as 1.5, or a share such as 5%.", "")
    return AskedAlarm(share=value / 100.0) if share else AskedAlarm(level=value)
