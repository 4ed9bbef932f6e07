"""`karma modelfile`: what Ollama needs beside a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from karma_electric.core.recipe import Recipe
_CONTEXT, _TEMPERATURE = 4096, 0.7


def modelfile(
    gguf: Annotated[Path, typer.Argument(help="A GGUF file, or a folder with the plain model and capped variants.")],
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="Take persona, temperature, context and licence from a recipe (demo.toml)."),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="System prompt of the persona, as text.")] = None,
    template: Annotated[
        Path | None,
        typer.Option("--template", help="File with an Ollama template (Go), for a chat template karma does not know."),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", metavar="TEXT", help="Text that ends an answer; repeatable; instead of the format's."),
    ] = None,
    license_: Annotated[
        str | None, typer.Option("--license", help="Licence of the weights: a text, or a file with it.")
    ] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0.0, help="0.7 when not given.")] = None,
    num_ctx: Annotated[int | None, typer.Option("--num-ctx", min=1, help="Tokens of context; 4096.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace Modelfiles that say something else.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the files that were written, as JSON.")] = False,
) -> None:
    """Write a Modelfile beside each GGUF file: FROM, TEMPLATE, SYSTEM, parameters, stops, LICENSE.

    The template is the Go equivalent of the chat template in the file: ChatML (SmolLM2, Qwen), Llama 3 and 3.1,
    Mistral. A persona is required: from --system or --recipe, or from the recipe.toml of the run the files are in. Of a
    folder, the plain model gets Modelfile and a variant x-capped-q8_0.gguf gets Modelfile.capped.

    Example: karma modelfile capped-gguf --recipe demo.toml
    """
    import json

    written = write(
        gguf,
        recipe=recipe,
        system=system,
        template=template,
        stops=stop,
        license_text=license_,
        temperature=temperature,
        num_ctx=num_ctx,
        force=force,
    )
    if json_:
        print(json.dumps({str(path): str(file) for path, file in written.items()}, indent=2))
        return
    for path, file in written.items():
        print(f"{path}: for {file.name}")


def write(
    gguf: Path,
    *,
    recipe: str | None,
    system: str | None,
    template: Path | None,
    stops: list[str] | None,
    license_text: str | None,
    temperature: float | None,
    num_ctx: int | None,
    force: bool,
) -> dict[Path, Path]:
    """Write the Modelfiles, and note them in the folder's manifest if it has one. Returns Modelfile -> GGUF file.

    Raises:
        MissingError: no GGUF file there.
        InputError: no persona, a chat template that is not known, or another Modelfile in the way.
    """
    from karma_electric.core.artifact import MANIFEST, amend, write_atomic
    from karma_electric.core.errors import ArtifactError
    from karma_electric.export.modelfile import modelfile_names, render_modelfile

    files = _files(gguf)
    found = _recipe(recipe, files[0])
    persona = system if system is not None else _persona(found)
    if (
        license_text is not None
        and "\n" not in license_text
        and len(license_text) < 255
        and Path(license_text).is_file()
    ):
        license_text = _text(Path(license_text), "--license")
    if temperature is None:
        temperature = found.gguf.temperature if found else _TEMPERATURE
    texts: dict[Path, str] = {}
    folder = files[0].parent
    beside = sorted(file.name for file in folder.glob("*.gguf"))
    names = modelfile_names(beside)
    for file in files:
        go, ends, prompt, licence = _format(file, template, stops, persona)
        texts[folder / names[file.name]] = render_modelfile(
            file.name,
            template=go,
            stops=ends,
            system=prompt,
            temperature=temperature,
            context=num_ctx or (found.gguf.context if found else _CONTEXT),
            license_text=license_text or _licence(found, licence),
        )
    for path, text in texts.items():
        if path.is_file() and not force and _text(path, "Modelfile") != text:
            raise ArtifactError(f"{path} is there and says something else.", "Replace it with --force.")
    changed = [path for path, text in texts.items() if not path.is_file() or _text(path, "Modelfile") != text]
    for path in changed:
        write_atomic(path, texts[path])
    if changed and (folder / MANIFEST).is_file():
        amend(folder, names=[path.name for path in changed])
    return dict(zip(texts, files, strict=True))


def _files(gguf: Path) -> list[Path]:
    from karma_electric.core.errors import MissingError

    if gguf.is_file():
        return [gguf]
    files = sorted(gguf.glob("*.gguf")) or sorted((gguf / "gguf").glob("*.gguf"))
    if not files:
        raise MissingError(f"{gguf} has no GGUF file.", "Make one with: karma gguf MODEL OUT")
    return files


def _recipe(name: str | None, file: Path) -> Recipe | None:
    """The recipe that was given, or that of the run the file lies in (runs/demo/gguf/x.gguf)."""
    from karma_electric.core.recipe import load_recipe

    beside = file.resolve().parent.parent / "recipe.toml"
    if name is None and not beside.is_file():
        return None
    return load_recipe(name or beside)


def _persona(recipe: Recipe | None) -> str:
    from karma_electric.core.errors import InputError

    if recipe is None:
        raise InputError("There is no persona.", 'Give --recipe RECIPE (demo.toml), or --system "You are ...".')
    return recipe.persona.system_prompt


def _format(
    file: Path, template: Path | None, stops: list[str] | None, persona: str
) -> tuple[str, list[str], str, str | None]:
    """Go template, stop strings, the persona as the format writes it, and the licence the file names."""
    from karma_electric.core.errors import InputError
    from karma_electric.export.chat_format import detect_format
    from karma_electric.export.gguf_header import read_values

    tokens, eos = "tokenizer.ggml.tokens", "tokenizer.ggml.eos_token_id"
    values = read_values(file, ["tokenizer.chat_template", "general.license", tokens, eos])
    end = values[tokens][values[eos]] if tokens in values and values.get(eos, -1) in range(len(values[tokens])) else ""
    licence = values.get("general.license")
    if template is not None:
        ends = stops or ([end] if end else [])
        if not ends:
            raise InputError(f"{file} names no token that ends a text.", "Give --stop, with --template.")
        return _text(template, "--template"), ends, persona, licence
    if "tokenizer.chat_template" not in values:
        raise InputError(f"{file} has no chat template.", "Give --template FILE, an Ollama template, and --stop.")
    found = detect_format(values["tokenizer.chat_template"], eos_token=end)
    return found.go_template(), list(stops or found.stops), found.as_said(persona), licence


def _licence(recipe: Recipe | None, named: str | None) -> str | None:
    if recipe is not None:
        from karma_electric.stages import licence_text

        return licence_text(recipe)
    return f"Licence of the weights: {named}." if named else None


def _text(path: Path, what: str) -> str:
    from karma_electric.core.errors import InputError, MissingError

    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingError(f"{path} does not exist.", f"Give an existing file for {what}.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text.", f"Give a text file for {what}.") from None
