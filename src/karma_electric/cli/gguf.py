"""`karma gguf`: a checkpoint as one file for llama.cpp and Ollama, and the proof that it is the same model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

if TYPE_CHECKING:
    from karma_electric.core.progress import Progress
    from karma_electric.export.gguf import FileType
_PROMPTS = "suites/heldout-48.jsonl"
_N_PROMPTS = 8


def gguf(
    model: Annotated[str, typer.Argument(help="The model: a folder (runs/demo/capped), a hub id, or builtin:NAME.")],
    out: Annotated[Path, typer.Argument(help="New folder for NAME-TYPE.gguf and its manifest.")],
    type_: Annotated[str, typer.Option("--type", help="Type of the matrices: q8_0, f16, bf16 or f32.")] = "q8_0",
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the model and the file; that of MODEL's folder when not given."),
    ] = None,
    license_: Annotated[
        str | None, typer.Option("--license", help="Licence of the weights, as the hub spells it (apache-2.0).")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare the file in llama.cpp with MODEL in transformers; a gate.")
    ] = False,
    prompts: Annotated[str, typer.Option("--prompts", help="Prompts of the check, JSONL.")] = _PROMPTS,
    system: Annotated[
        str | None, typer.Option("--system", help="System prompt of the check; none is sent when not given.")
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option("--max-kl", min=0.0, help="Mean KL in nats the check lets pass; by type when not given."),
    ] = None,
    converter: Annotated[
        Path | None,
        typer.Option("--converter", help="Run llama.cpp's own convert_hf_to_gguf.py, for other architectures."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print file, size and figures as JSON.")] = False,
) -> None:
    """Write a model as GGUF, for llama.cpp, Ollama and what is built on them.

    Llama (2 to 3.x), Mistral, Qwen 2 and 3 are written here, tensor for tensor what llama.cpp's converter writes, with
    the memory of a piece of a tensor. Other architectures go through llama.cpp's own program with --converter.

    --check runs both in this process: token ids of 50 varied texts, greedy answers to 8 prompts, and mean KL along
    them. The figures go into the manifest. A file that is not the model is refused (exit code 1). One that is there
    already is kept, and compared again where other prompts or another system prompt are asked for.

    Example: karma gguf runs/demo/capped capped-gguf --type q8_0 --check
    """
    import json

    from karma_electric.core.extras import require
    from karma_electric.core.progress import Console

    require("gguf")
    made = make(
        model,
        out,
        file_type=_file_type(type_),
        name=name,
        license_id=license_,
        converter=converter,
        check={"prompts": prompts, "system": system, "max_kl": max_kl} if check else None,
        force=force,
        progress=Console(),
    )
    if json_:
        print(json.dumps(made, indent=2))
        return
    print(f"{made['file']}: {made['bytes'] / 1e6:.1f} MB")
    if "parity" in made:
        print(describe(made["parity"]))


def _file_type(text: str) -> FileType:
    from karma_electric.core.errors import InputError
    from karma_electric.export.gguf import FileType

    known: tuple[FileType, ...] = get_args(FileType)
    for file_type in known:
        if text.lower() == file_type:
            return file_type
    raise InputError(
        f"--type is {text!r}, expected one of {', '.join(known)}.",
        "Smaller types are made from f16 or bf16 by llama.cpp's llama-quantize.",
    )


def describe(parity: dict[str, Any]) -> str:
    """The figures of a check, in two lines."""
    beyond = parity["beyond_llama_cpp"]
    note = f" ({len(beyond)} texts beyond llama.cpp's own tokenizer)" if beyond else ""
    return (
        f"token ids as in transformers for {parity['n_texts'] - len(beyond)} of {parity['n_texts']} texts{note}; mean "
        f"KL {parity['mean_kl_nats']:.2g} nats over {parity['kl_tokens']} tokens\n"
        f"greedy answers: {parity['exact_matches']} of {parity['n_prompts']} identical over "
        f"{parity['max_new_tokens']} tokens, {parity['greedy_agreement']:.0%} of tokens before the first difference, "
        f"which was worth {parity['largest_gap_nats']:.2g} nats at most"
    )


def make(
    model: str,
    out: Path,
    *,
    file_type: FileType,
    name: str | None,
    license_id: str | None,
    converter: Path | None,
    check: dict[str, Any] | None,
    force: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Export as a stage of its own, and check where asked. Returns what `--json` prints.

    A file that is there already is kept. Asked to check, it is compared then, unless its manifest has the figures of
    the same prompts and system prompt; either way they are held against the limits asked for now.

    Raises:
        GateError: the file is not the model. One that was there before stays, with the figures of earlier checks.
        InputError, MissingError, DataError: arguments that cannot be. ArtifactError: something else is at `out`.
    """
    from karma_electric.core.artifact import amend, hash_file, read_manifest
    from karma_electric.core.errors import InputError
    from karma_electric.models.refs import resolve
    from karma_electric.pipeline import Stage, make_artifacts

    if out.suffix == ".gguf":
        raise InputError(
            f"{out} is a file name, expected a new folder for the file and its manifest.",
            f"Type: karma gguf {model} {out.with_suffix('')} --name {out.stem}",
        )
    ref = resolve(model)
    if out.resolve() == ref.path.resolve():
        raise InputError(f"{out} is what is exported.", "Give a new folder for OUT.")
    # a hub id or `builtin:NAME` by its last part
    name = name or (ref.path.name if Path(model).is_dir() else model.rpartition("/")[2].rpartition(":")[2])
    file_name = f"{name}-{file_type}.gguf"
    if "/" in name or name.startswith(".") or not file_name.isprintable():
        raise InputError(f"--name {name!r} cannot be part of a file name.", "Give a plain name.")
    inputs = {"model": ref.fingerprint}
    config: dict[str, Any] = {"type": file_type, "name": name, "license": license_id}
    if converter is not None:
        from karma_electric.export.converter import find_script

        converter = find_script(converter)
        inputs["converter"] = hash_file(converter)

    texts = _prompts(check["prompts"]) if check else []  # a wrong file is told before anything is written

    def execute(folder: Path, progress: Progress) -> dict[str, Any] | None:
        from karma_electric.export.converter import run_converter
        from karma_electric.export.gguf import export_gguf

        file = folder / file_name
        if not file.exists():
            if converter is not None:
                run_converter(converter, ref.path, file, file_type=file_type, name=name, progress=progress)
            else:
                export_gguf(
                    ref.path,
                    file,
                    file_type=file_type,
                    name=name,
                    lineage=_lineage(ref.path, ref.fingerprint),
                    license_id=license_id,
                    progress=progress,
                )
        return _checked(ref.path, file, file_type, texts, check, progress) if check else None

    weights = sum(file.stat().st_size for file in ref.path.glob("*.safetensors"))
    space = weights * (2 if file_type == "f32" else 1)
    stage = Stage(out.name, "gguf", config, inputs, execute, resumable=True, space_bytes=space)
    make_artifacts(out.resolve().parent, [stage], force=force, progress=progress)
    measured = read_manifest(out).measured
    if check:
        from karma_electric.export.parity import recorded_parity, require_parity

        known = recorded_parity(measured.get("parity", {}), prompts=texts, system=check["system"])
        if known is not None:
            require_parity(known, file_type, max_kl=check["max_kl"])
        else:  # into the manifest alone: another file would be damage until the manifest names it
            figures = _checked(ref.path, out / file_name, file_type, texts, check, progress)
            measured = amend(out, measured=figures).measured
    return {"file": str(out / file_name), "bytes": (out / file_name).stat().st_size, **measured}


def _lineage(folder: Path, fingerprint: str) -> dict[str, str]:
    """What the file says about where it comes from: the model's fingerprint, and its artifact's id and kind."""
    from karma_electric.core.artifact import MANIFEST, read_manifest

    found = {"model": fingerprint}
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        found |= {manifest.kind: manifest.id}
    return found


def _prompts(name: str) -> list[str]:
    """What both are asked.

    Raises:
        MissingError, DataError: there is no such file, or a line of it is none.
    """
    from karma_electric.core.resources import find
    from karma_electric.steer.contrast import load_prompts

    return [prompt.text for prompt in load_prompts(find("suites", name))[:_N_PROMPTS]]


def _checked(
    model: Path, file: Path, file_type: FileType, texts: list[str], check: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    """Compare, hold against the limits, return the figures for the manifest.

    Raises:
        GateError: the file is not the model. The figures are said; the file is kept for another attempt.
    """
    from karma_electric.export.parity import check_parity, require_parity

    progress.say("  comparing with transformers, in llama.cpp")
    parity = check_parity(model, file, prompts=texts, system=check["system"])
    require_parity(parity, file_type, max_kl=check["max_kl"])
    return {"parity": parity.as_dict()}
