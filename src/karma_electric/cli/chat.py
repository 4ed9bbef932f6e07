"""`karma chat`, and the original's command line: talk to a model with its activations capped, or not."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from karma_electric.cli.options import CapFile, Model

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from karma_electric.cli.chat_drift import Gauge
    from karma_electric.cli.chat_session import Session
    from karma_electric.models.engines.protocol import Alpha, Sampling
    from karma_electric.models.refs import ModelRef
    from karma_electric.steer.axis import Axis
    from karma_electric.steer.spec import Cap


def chat(
    model: Model,
    cap: CapFile = None,
    alpha: Annotated[
        float | None,
        typer.Option("--alpha", help="Strength: 0 off, 0.5 soft, 1 hard; the cap's own when not given."),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Answer this and leave.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Show capped and uncapped answers side by side.")] = False,
    system: Annotated[
        str | None,
        typer.Option("--system", help="System prompt; the persona of the cap or run when not given."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0 always takes the likeliest token.")
    ] = 0.7,
    top_p: Annotated[
        float, typer.Option("--top-p", min=0.01, max=1.0, help="Sample from the likeliest tokens that sum to this.")
    ] = 0.9,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of the sampling.")] = 0,
    drift: Annotated[bool, typer.Option("--drift", help="Tell how far each answer went from the persona.")] = False,
    engine: Annotated[
        str,
        typer.Option("--engine", help="auto, hf, llamacpp or scripted; auto is the fastest that can do what is asked."),
    ] = "auto",
    history: Annotated[
        bool, typer.Option("--history/--no-history", help="Keep the lines you type for the next chat.")
    ] = True,
) -> None:
    """Chat with a model, with its activations capped as strongly as you like. Type /help in the chat for commands.

    Example: karma chat runs/demo/merged --alpha 0.5

    Example: karma chat runs/demo/gguf/karma-electric-smollm2-135m-demo-q8_0.gguf (in llama.cpp)
    """
    from karma_electric.cli.chat_session import ask, interactive, print_comparison
    from karma_electric.models.engines.protocol import Sampling

    if not math.isfinite(temperature) or temperature > 10:
        from karma_electric.core.errors import InputError

        raise InputError(f"--temperature is {temperature}, expected a number from 0 to 10.", "0.7 is usual.")
    sampling = Sampling(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed)
    if prompt is not None and not prompt.strip():
        from karma_electric.core.errors import InputError

        raise InputError("--prompt is empty.", "Give the question in quotes.")
    needs_cap = compare or drift
    session = open_session(
        model, cap=cap, alpha=alpha, system=system, sampling=sampling, needs_cap=needs_cap, engine=engine
    )
    if drift:
        session.switch_drift(on=True)
    if prompt is None:
        interactive(session, compare=compare, keep_history=history)
    elif compare:
        print_comparison(session, session.conversation([], prompt))
    else:
        ask(session, session.conversation([], prompt), keep_what_was_said=False)


def open_session(
    name: str,
    *,
    cap: Path | None,
    alpha: float | None,
    system: str | None,
    sampling: Sampling,
    needs_cap: bool = False,
    engine: str = "auto",
) -> Session:
    """Load a model and the cap that belongs to it, in the fastest engine that can do what is asked.

    Raises:
        MissingError: no such model; or a strength is asked for, and there is no cap.
        InputError: alpha outside [0, 1]; or one is given for a model with the cap compiled in.
        ArtifactError: the cap is for a model of another shape.
    """
    from karma_electric.cli.chat_session import Session
    from karma_electric.core.errors import InputError
    from karma_electric.core.extras import require
    from karma_electric.kept import require_weights
    from karma_electric.models.engines.hf import HfEngine
    from karma_electric.models.engines.named import engine_kind, open_engine
    from karma_electric.models.loading import load_model, load_tokenizer
    from karma_electric.models.refs import resolve_loadable

    if alpha is not None and not 0.0 <= alpha <= 1.0:
        raise InputError(f"--alpha is {alpha:g}, expected a number from 0 (off) to 1 (hard).", "0.5 is the soft cap.")
    require_weights(Path(name), "merged")
    if engine_kind(name, engine, hooks=cap is not None or bool(alpha) or needs_cap) != "hf":
        file = Path(name.removeprefix("scripted:"))
        prompt = system if system is not None else run_persona(file.resolve().parent)
        return Session(open_engine(name, engine), sampling, prompt, 0.0, has_cap=False, model=name)
    require("model")
    ref = resolve_loadable(name)
    found = find_cap(ref.path, cap, alpha=alpha, needed=needs_cap)
    model, tokenizer = load_model(ref.path), load_tokenizer(ref.path)
    if found is None:
        prompt = system if system is not None else run_persona(ref.path)
        compiled = is_compiled(ref.path)
        if compiled:
            print("capped (compiled in)", file=sys.stderr)
        engine_ = HfEngine(model, tokenizer)
        return Session(engine_, sampling, prompt, 0.0, has_cap=False, compiled=compiled, model=str(ref.path))
    from karma_electric.steer.cap import capped
    from karma_electric.steer.spec import describe

    loaded, axis = open_cap(found, model, tokenizer, ref)

    def intervene(model: Any, strength: Alpha) -> AbstractContextManager[Any]:
        return capped(model, loaded, alpha=strength)

    def gauge() -> Gauge:
        from karma_electric.cli.chat_drift import open_gauge

        return open_gauge(model, tokenizer, loaded, found, ref.fingerprint)

    strength = loaded.spec.alpha if alpha is None else alpha
    print(f"{describe(loaded.spec)}; alpha now {strength:g}", file=sys.stderr)
    return Session(
        HfEngine(model, tokenizer, intervention=intervene),
        sampling,
        system if system is not None else axis.toward,
        strength,
        has_cap=True,
        model=str(ref.path),
        cap=str(found.resolve()),
        open_gauge=gauge,
    )


def open_cap(
    file: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ref: ModelRef, *, warn: bool = True
) -> tuple[Cap, Axis]:
    """Read a cap for a model, which was loaded as it is at `ref`; with `warn`, say on stderr what does not go with it.

    Raises:
        ArtifactError: it is for a model of another shape.
    """
    from karma_electric.models.blocks import decoder_blocks, hidden_size
    from karma_electric.steer.axis import require_fits
    from karma_electric.steer.compat import check_cap
    from karma_electric.steer.spec import load_cap

    cap, axis = load_cap(file)
    require_fits(axis, n_layers=len(decoder_blocks(model)), hidden=hidden_size(model))
    if warn:
        quantisation = "gguf" if ref.path.is_file() else "none"
        for warning in check_cap(model, tokenizer, cap, axis, ref.fingerprint, quantisation=quantisation):
            print(f"warning: {warning}", file=sys.stderr)
    return cap, axis


def is_compiled(model: Path) -> bool:
    """Whether a model, by its folder, has a cap compiled into its weights."""
    from karma_electric.steer.neuron import FILE

    return (model / FILE).exists()


def require_changeable(model: Path) -> None:
    """Refuse what needs a cap that can be changed or left out.

    Raises:
        InputError: the model has its cap compiled in.
    """
    from karma_electric.core.errors import InputError

    if is_compiled(model):
        raise InputError(
            f"{model} has its cap compiled into the weights: it can be neither changed nor left out, and hooks on top "
            "would cap twice.",
            f"Give the uncapped model ({model.parent / 'merged'}) to change alpha, or leave out --cap and --alpha.",
        )


def find_cap(model: Path, given: Path | None, *, alpha: float | None = None, needed: bool = False) -> Path | None:
    """The cap for a model: the one given, else `axis/cap.json` beside the model in its run folder.

    Args:
        model: its folder, or a GGUF file.
        given: a cap or its folder.
        alpha: the strength asked for; any but 0 needs a cap.
        needed: whether a cap is needed whatever the strength.

    Raises:
        InputError: the model has its cap compiled in. MissingError: a cap is needed and there is none.
    """
    from karma_electric.core.errors import MissingError
    from karma_electric.core.lineage import missing_run_hint
    from karma_electric.steer.spec import CAP_FILE

    needed = needed or bool(alpha)
    if given is not None or needed or alpha is not None:  # 0 too: such a model cannot do without its cap
        require_changeable(model)
    elif is_compiled(model):
        return None
    if given is not None:
        file = given / CAP_FILE if given.is_dir() else given
        if not file.is_file():
            raise MissingError(
                f"The cap {given} does not exist.",
                missing_run_hint(given) or "Give the cap.json of a run, such as runs/demo/axis/cap.json.",
            )
        return file
    beside = model.parent / "axis" / CAP_FILE
    if beside.is_file() and (model.parent / "merged").resolve() == model.resolve():
        return beside
    if needed:
        raise MissingError(
            f"There is no cap beside {model} (looked for {beside}).",
            "Give one with --cap, or use --alpha 0 for the plain model.",
        )
    return None


def run_persona(model: Path) -> str | None:
    """The deployment prompt of the run a model lies in, if it lies in one."""
    recipe = model.parent / "recipe.toml"
    if not recipe.is_file():
        return None
    from karma_electric.core.recipe import load_recipe

    return load_recipe(recipe).persona.system_prompt
