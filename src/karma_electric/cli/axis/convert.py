"""`karma axis convert`: axes and caps between our folder and the files of other projects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from karma_electric.core.progress import Progress
    from karma_electric.steer.formats.registry import Format
    from karma_electric.steer.formats.steering import Orientation, ReadOptions, Steering


def convert(
    source: Annotated[Path, typer.Argument(help="File or folder of the other tool, or one of our axis folders.")],
    out: Annotated[Path, typer.Argument(help="File to write; a folder with --to karma and --to original.")],
    to: Annotated[
        str,
        typer.Option("--to", help="karma, original, paper-axis, paper-capping, control-vector or acap."),
    ],
    from_: Annotated[
        str | None, typer.Option("--from", help="The same for SOURCE; recognised by content where that is certain.")
    ] = None,
    orientation: Annotated[
        str | None,
        typer.Option("--orientation", help="away-from-persona or toward-persona: where SOURCE does not say it."),
    ] = None,
    thresholds: Annotated[
        Path | None, typer.Option("--thresholds", help="Thresholds beside SOURCE: the original's .pt, or stats .json.")
    ] = None,
    experiment: Annotated[
        str | None, typer.Option("--experiment", help="Which experiment of a capping config; listed when not given.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="Only these blocks, counted from 0, inclusive: 22-28 or 3,5,7.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="The model the axis is for: its fingerprint, template and blocks are noted."),
    ] = None,
    blocks: Annotated[
        int | None, typer.Option("--blocks", min=1, help="How many blocks the model has, instead of --model.")
    ] = None,
    site: Annotated[
        str | None,
        typer.Option("--site", help="block: take these directions although the cap's thresholds are for mlp."),
    ] = None,
    max_mb: Annotated[int, typer.Option("--max-mb", min=1, help="Refuse a larger source.")] = 1024,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Convert an axis or a cap between our folder and the files of the original, the paper, llama.cpp and repeng.

    Every format has one meaning for which way its vectors point, for thresholds and for block numbers; the output
    says what was turned around, and what the target cannot carry. Nothing in SOURCE is ever run.

    Example: karma axis convert bodhisattva_axis.pt axis --from original --thresholds axis_stats.json --to karma
    """
    import json

    from karma_electric.core.extras import require
    from karma_electric.core.progress import Console
    from karma_electric.steer.formats.registry import named
    from karma_electric.steer.formats.steering import ReadOptions

    require("model")
    target = named(to)
    options = ReadOptions(
        thresholds=thresholds,
        experiment=experiment,
        orientation=_orientation(orientation),
        layers=None if layers is None else _layers(layers),
        site=_site(site),
        max_bytes=max_mb * 1_000_000,
    )
    report = run(
        source, out, source_format=from_, target=target, options=options, model=model, blocks=blocks,
        force=force, progress=Console(),
    )  # fmt: skip
    if json_:
        print(json.dumps(report, indent=2, allow_nan=False))
        return
    _print(report)


def run(
    source: Path,
    out: Path,
    *,
    source_format: str | None,
    target: Format,
    options: ReadOptions,
    model: str | None = None,
    blocks: int | None = None,
    force: bool = False,
    progress: Progress,
) -> dict[str, Any]:
    """Read, turn around and write; returns the report that is printed.

    Raises:
        InputError: something needed is not said, or cannot be said in the target format.
        ArtifactError: the source cannot be used, or something else is at `out`.
        MissingError: a file or the model is not there.
    """
    import tempfile
    from dataclasses import replace

    from karma_electric.core.artifact import hash_file
    from karma_electric.steer.formats import registry
    from karma_electric.steer.spec import CAP_FILE

    if source.name == CAP_FILE:
        source = source.parent
    kind, why = (
        registry.detect(source, options.max_bytes)
        if source_format is None
        else (registry.named(source_format), "given with --from")
    )
    if kind.name == target.name == "karma" and options.site is None:
        _require_block_site(source)
    steering = registry.read(kind, source, options)
    if model is not None:
        steering = _for_model(steering, model)
    steering = registry.with_blocks(steering, blocks)
    inputs = {"source": registry.source_hash(source)}
    if options.thresholds is not None:
        inputs["thresholds"] = hash_file(options.thresholds)
    imported = {"from": kind.name, "file": source.name, "sha256": inputs["source"]}
    steering = replace(steering, about=replace(steering.about, imported=imported))
    with tempfile.TemporaryDirectory() as made:
        name = out.resolve().name
        lost = registry.write(target, steering, Path(made) if target.folder else Path(made) / name)
        if target.folder:
            asked = {"to": target.name, **_settings(kind, options, steering)}
            _publish_folder(Path(made), out, target, asked, inputs, force=force, progress=progress)
        else:
            _publish_file(Path(made) / name, out, force=force)
        files = sorted(file.name for file in Path(made).iterdir())
    return _report(source, out, kind, why, target, steering, lost, files)


def _require_block_site(folder: Path) -> None:
    """Refuse to take a cap at the `mlp` site from one of our folders to another: there is nothing to convert.

    Raises:
        InputError: the folder has such a cap.
    """
    from karma_electric.core.errors import InputError
    from karma_electric.steer.formats.steering import SITE
    from karma_electric.steer.spec import CAP_FILE, load_spec

    if not (folder / CAP_FILE).is_file() or (site := load_spec(folder / CAP_FILE).site) == SITE:
        return
    raise InputError(
        f"{folder} is one of our folders already, with a cap for the site {site!r}; a conversion carries the site "
        f"{SITE!r} alone, the only one that other formats have.",
        f"Copy the folder to have the cap as it is (cp -r {folder} OUT), or take its directions alone with "
        f"--site {SITE}.",
    )


def _for_model(steering: Steering, model: str) -> Steering:
    """Note the model a file is for. What the file knows itself is kept, and a difference is said.

    Raises:
        InputError: the model has another number of blocks. ArtifactError: another hidden size.
    """
    from dataclasses import replace

    from karma_electric.core.artifact import read_json
    from karma_electric.core.errors import ArtifactError
    from karma_electric.models.chat_template import template_sha256
    from karma_electric.models.loading import load_tokenizer
    from karma_electric.models.refs import resolve
    from karma_electric.steer.formats.registry import with_blocks
    from karma_electric.steer.formats.steering import UNKNOWN

    ref = resolve(model)
    config = read_json(ref.path / "config.json")
    config = config.get("text_config", config)
    n_layers, hidden = config.get("num_hidden_layers"), config.get("hidden_size")
    if hidden != steering.hidden or not isinstance(n_layers, int):
        raise ArtifactError(
            f"The vectors have {steering.hidden} numbers, {model} has a hidden size of {hidden}.",
            "Name the model that the file was made from (an axis does not transfer).",
        )
    about, notes = steering.about, steering.notes
    if about.model not in (UNKNOWN, ref.fingerprint):
        notes = (*notes, f"the axis was extracted from another model than {model}, and keeps saying so")
    else:
        template = template_sha256(load_tokenizer(ref.path))
        about = replace(about, model=ref.fingerprint, template_sha256=template)
    about = replace(about, model_type=str(config.get("model_type", UNKNOWN)))
    return with_blocks(replace(steering, about=about, notes=notes), n_layers)


def _settings(kind: Format, options: ReadOptions, steering: Steering) -> dict[str, Any]:
    """Everything beside the files that decides what comes out."""
    return {
        "from": kind.name,
        "experiment": options.experiment,
        "orientation": steering.orientation,
        "layers": steering.layers,
        "site": options.site,
        "model": steering.about.model,
        "n_layers": steering.n_layers,
    }


def _publish_folder(
    made: Path,
    out: Path,
    target: Format,
    config: dict[str, Any],
    inputs: dict[str, str],
    *,
    force: bool,
    progress: Progress,
) -> None:
    """Copy what was made into an artifact folder: skipped when it is the same, refused when something else is there."""
    import shutil

    from karma_electric.pipeline import Stage, make_artifacts

    def execute(folder: Path, progress: Progress) -> None:
        shutil.copytree(made, folder, dirs_exist_ok=True)

    place = out.resolve()
    kind = "axis" if target.name == "karma" else f"axis-{target.name}"
    make_artifacts(place.parent, [Stage(place.name, kind, config, inputs, execute)], force=force, progress=progress)


def _publish_file(made: Path, out: Path, *, force: bool) -> None:
    """Put a file in its place: not written when it is the same, refused when another is there.

    Raises:
        ArtifactError: a different file, or a folder, is at `out`. MissingError: its folder does not exist.
    """
    from karma_electric.core.artifact import write_atomic
    from karma_electric.core.errors import ArtifactError, MissingError

    data = made.read_bytes()
    if not out.parent.is_dir():
        raise MissingError(f"The folder {out.parent} does not exist.", "Make it first.")
    if out.is_dir():
        raise ArtifactError(f"{out} is a folder.", "This format is one file: name a file.")
    if out.is_file() and out.read_bytes() == data:
        return
    if out.exists() and not force:
        raise ArtifactError(f"{out} is there already, with something else in it.", "Replace it with --force.")
    write_atomic(out, data)


def _report(
    source: Path,
    out: Path,
    kind: Format,
    why: str,
    target: Format,
    steering: Steering,
    lost: list[str],
    files: list[str],
) -> dict[str, Any]:
    from karma_electric.steer.formats.steering import SITE, bound

    turned = steering.orientation != target.written
    return {
        "source": str(source),
        "from": kind.name,
        "recognised": why,
        "out": str(out),
        "to": target.name,
        "files": files,
        "site": SITE,
        "layers": steering.layers,
        "n_layers": steering.n_layers,
        "hidden": steering.hidden,
        "capped": sorted(steering.thresholds),
        "alpha": steering.alpha,
        "indexing": {"source": kind.indexing, "out": target.indexing},
        "orientation": {"source": steering.orientation, "out": target.written, "negated": turned},
        "thresholds": {
            "source": bound(steering.orientation) if steering.thresholds else None,
            "out": bound(target.written) if steering.thresholds and target.caps else None,
        },
        "model": steering.about.model,
        "notes": list(steering.notes),
        "not_carried": lost,
        "caution": target.caution,
    }


def _print(report: dict[str, Any]) -> None:
    from karma_electric.steer.formats.steering import UNKNOWN, blocks_text

    points, bounds = report["orientation"], report["thresholds"]
    of = f" of {report['n_layers']}" if report["n_layers"] else ""
    if points["negated"]:
        turned = f"{points['source']} in the source, {points['out']} in the output: every vector is negated"
    else:
        turned = f"{points['source']} in both: vectors are as they were"
    if bounds["source"] is None:
        caps = "no thresholds in the source"
    elif bounds["out"] is None:
        caps = f"the source's {bounds['source']}s are not in the output"
    else:
        same = f"{bounds['source']}s in both" if bounds["source"] == bounds["out"] else (
            f"a {bounds['source']} at t along v became a {bounds['out']} at -t along -v"
        )  # fmt: skip
        caps = f"blocks {blocks_text(report['capped'])}, {same}, alpha {report['alpha']:g}"
    lines = [
        ("read", f"{report['source']} as {report['from']} ({report['recognised']})"),
        ("wrote", f"{report['out']} as {report['to']} ({', '.join(report['files'])})"),
        ("vectors", f"blocks {blocks_text(report['layers'])}{of}, counted from 0, of {report['hidden']} numbers"),
        ("site", f"{report['site']}: the residual stream after the block, in both"),
        ("blocks", f"source: {report['indexing']['source']}; output: {report['indexing']['out']}"),
        ("points", turned),
        ("caps", caps),
    ]
    if report["model"] == UNKNOWN and report["to"] == "karma":
        lines.append(("model", "unknown: using the axis will warn that it is for another model; name it with --model"))
    lines += [("note", text) for text in report["notes"]]
    lines += [("lost", text) for text in report["not_carried"]]
    lines += [("beware", report["caution"])] if report["caution"] else []
    for label, text in lines:
        print(f"{label:<8} {text}")


def _orientation(text: str | None) -> Orientation | None:
    from karma_electric.core.errors import InputError
    from karma_electric.steer.formats.steering import ORIENTATIONS

    found = next((o for o in ORIENTATIONS if o == text), None)
    if text is not None and found is None:
        raise InputError(f"--orientation is {text!r}.", f"One of: {', '.join(ORIENTATIONS)}.")
    return found


def _site(text: str | None) -> Any:
    from karma_electric.core.errors import InputError
    from karma_electric.steer.formats.steering import SITE

    if text not in (None, SITE):
        raise InputError(f"--site is {text!r}: a conversion carries the residual stream after the block alone.",
                         f"Give --site {SITE}, or leave it out.")  # fmt: skip
    return text


def _layers(text: str) -> tuple[int, ...]:
    """`22-28` or `3,5,7-9` as blocks.

    Raises:
        InputError: not blocks in order.
    """
    from karma_electric.core.errors import InputError
    from karma_electric.steer.formats.steering import MOST_BLOCKS

    found: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            if max(abs(int(first)), abs(int(last or first))) > MOST_BLOCKS:
                raise ValueError
            found += range(int(first), int(last or first) + 1)
    except ValueError:
        found = []
    if not found or found != sorted(set(found)) or found[0] < 0:
        raise InputError(f"--layers is {text!r}, expected blocks in order.", "Example: --layers 22-28")
    return tuple(found)
