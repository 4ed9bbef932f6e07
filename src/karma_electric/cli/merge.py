"""`karma merge`: an adapter folded into the weights of its base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from karma_electric.core.messages import Conversation
    from karma_electric.core.progress import Progress
    from karma_electric.core.recipe import MergeSection


def merge(
    base: Annotated[
        str, typer.Argument(help="The model the adapter was trained on: a folder, a hub id, or builtin:smollm2-135m.")
    ],
    adapter: Annotated[
        Path, typer.Argument(help="Folder with adapter_config.json and adapter_model.safetensors (runs/demo/adapter).")
    ],
    out: Annotated[Path, typer.Argument(help="New folder for the merged model.")],
    dtype: Annotated[
        str, typer.Option("--dtype", help="Type of the merged weights: bfloat16 or float32.")
    ] = "bfloat16",
    weights: Annotated[
        str,
        typer.Option(
            "--base-weights",
            metavar="WEIGHTS",
            help="Weights the adapter is added to: bf16 (the original ones) or dequantised-nf4 (those, rounded to 4 "
            "bits and back, as 4-bit training saw them).",
        ),
    ] = "bf16",
    base_weights_before: Annotated[
        str | None, typer.Option("--base", hidden=True, help="The former name of --base-weights.")
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option("--max-shard-size", help="Largest file, e.g. 500MB or 2GB; above it an index and shards.")
    ] = "2GB",
    check: Annotated[
        str | None,
        typer.Option(
            "--check",
            help="Held-out text to compare the merged model with adapter on base on: a JSONL file of conversations "
            "or prompts (suites/heldout-48.jsonl).",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print merge.json.")] = False,
) -> None:
    """Fold a LoRA adapter, trained here or elsewhere with peft, into the weights of its base.

    Tensor by tensor, W + (alpha / r) B A in float32, rounded to --dtype at the end. A few rows are in memory at a time,
    and the same command continues a merge that was killed. Rank-stabilised LoRA, DoRA, modules_to_save, trained tokens
    and tied embeddings are merged; kinds that cannot be part of the weights are refused by name.

    --base-weights bf16 keeps all 16 bits of the base, and is a little off what the adapter was trained on when that was
    4-bit. --base-weights dequantised-nf4 is the model that was trained, with the errors of 4 bits in it. --check tells
    how far the merged model is from adapter on the chosen base.

    Example: karma merge builtin:smollm2-135m runs/demo/adapter merged --check suites/heldout-48.jsonl
    """
    import json

    from karma_electric.core.artifact import read_json
    from karma_electric.core.extras import require
    from karma_electric.core.progress import Console

    require("train")
    section = _section(dtype=dtype, base=base_weights_before or weights, max_shard_size=max_shard_size)
    _make(base, adapter, out, section, check=check, force=force, progress=Console())
    summary = read_json(out / "merge.json")
    if json_:
        print(json.dumps(summary, indent=2))
        return
    _print(summary, out)


def _section(**settings: str) -> MergeSection:
    """The options as a recipe's [merge].

    Raises:
        InputError: an option that cannot be.
    """
    from pydantic import ValidationError

    from karma_electric.core.errors import InputError
    from karma_electric.core.recipe import MergeSection

    try:
        return MergeSection.model_validate(settings)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = str(problem["loc"][0])
        option = "--base-weights" if key == "base" else f"--{key.replace('_', '-')}"
        reason = str(problem["msg"]).removeprefix("Value error, ")
        raise InputError(f"{option} is {problem['input']!r}: {reason}.", "See karma merge --help.") from None


def _make(
    base: str, adapter: Path, out: Path, section: MergeSection, *, check: str | None, force: bool, progress: Progress
) -> None:
    """Merge as a stage of its own: skipped when it is there, continued after a kill, refused over something else."""
    from karma_electric.core.artifact import hash_file
    from karma_electric.core.errors import InputError
    from karma_electric.core.resources import find
    from karma_electric.models.refs import resolve
    from karma_electric.pipeline import Stage, make_artifacts
    from karma_electric.train.adapter_file import adapter_fingerprint

    ref = resolve(base)
    if out.resolve() in (ref.path.resolve(), adapter.resolve()):
        raise InputError(f"{out} is what is merged.", "Give a new folder for OUT.")
    # not "adapter": in a run's artifacts that is the id of the run's own
    inputs = {"base": ref.fingerprint, "adapter_folder": adapter_fingerprint(adapter)}
    conversations: list[Conversation] = []
    if check is not None:
        texts = find("suites", check)
        conversations = _conversations(texts)
        inputs["check"] = hash_file(texts)

    def execute(folder: Path, progress: Progress) -> None:
        from karma_electric.train.merge import merge_adapter

        merge_adapter(
            ref.path,
            adapter,
            section,
            folder,
            conversations=conversations,
            base_names=(ref.name,),
            progress=progress,
        )

    config = section.model_dump(mode="json")
    weights = sum(file.stat().st_size for file in ref.path.glob("*.safetensors"))
    widest = 2 if section.dtype == "float32" else 1  # against 16-bit files; what is really needed is checked again
    stage = Stage(out.name, "merged", config, inputs, execute, resumable=True, space_bytes=widest * weights)
    make_artifacts(out.resolve().parent, [stage], force=force, progress=progress)


def _conversations(path: Path) -> list[Conversation]:
    """Held-out text: a release's lines (`messages`) or a suite's (`prompt`).

    Raises:
        DataError: naming file and line.
    """
    from karma_electric.core.errors import DataError
    from karma_electric.core.jsonl import read_jsonl
    from karma_electric.core.messages import parse_conversation, user

    found: list[Conversation] = []
    for number, item in read_jsonl(path):
        where = f"{path.name} line {number}"
        if isinstance(item, dict) and "messages" in item:
            found.append(parse_conversation(item["messages"], where))
        elif isinstance(item, dict) and isinstance(item.get("prompt"), str) and item["prompt"].strip():
            found.append([user(item["prompt"])])
        else:
            raise DataError(
                f"{where}: expected an object with the key messages or prompt.", "See suites/heldout-48.jsonl."
            )
    if not found:
        raise DataError(f"{path.name} is empty.", "Give held-out text, such as suites/heldout-48.jsonl.")
    return found


def _print(summary: dict[str, Any], out: Path) -> None:
    ranks = ", ".join(map(str, summary["ranks"])) or "none"
    scales = ", ".join(f"{scale:g}" for scale in summary["scales"]) or "none"
    parts = [f"{summary['merged_modules']} low-rank changes (rank {ranks}, scale {scales})"]
    parts += [f"{summary['replaced_tensors']} tensors replaced"] if summary["replaced_tensors"] else []
    parts += [f"{summary['dequantised_tensors']} tensors rounded to NF4"] if summary["dequantised_tensors"] else []
    print(f"{out}: {', '.join(parts)}")
    files = f"{summary['files']} file{'s' if summary['files'] > 1 else ''}"
    print(f"{summary['bytes'] / 1e9:.2f} GB in {files}, {summary['dtype']}, base {summary['base_weights']}")
    if summary["untied"]:
        print("The embeddings are no longer tied: the adapter changed only one end, or both differently.")
    if "mean_kl_nats" in summary:
        print(
            f"Against adapter on base, over {summary['tokens']} tokens: KL {summary['mean_kl_nats']:.2g} nats per "
            f"token, same top token {summary['same_top_token']:.1%}"
        )
