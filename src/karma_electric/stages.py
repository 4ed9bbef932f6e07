"""The stages of a run: what each is made from, and the few lines that connect the modules that make it.

release -> adapter -> merged -> axis -> capped -> gguf -> redteam/ARM -> report -> card
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.arm_stages import plan_arms
from karma_electric.asked import suites_of
from karma_electric.card import llama_terms, render_card
from karma_electric.core.artifact import (
    canonical_json,
    hash_file,
    hash_text,
    read_json,
    write_atomic,
    write_json,
)
from karma_electric.core.errors import InputError
from karma_electric.core.extras import require
from karma_electric.core.progress import Progress
from karma_electric.core.recipe import Recipe
from karma_electric.core.resources import find
from karma_electric.models.refs import ModelRef, resolve
from karma_electric.pipeline import Stage, read_id
from karma_electric.space import Space, shapes_of, space_of

if TYPE_CHECKING:
    from karma_electric.train.distributed import Team

_MERGE_CONVERSATIONS = 4
_FIDELITY_CONVERSATIONS = 24
_PARITY_PROMPTS = 8


def configs_of(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What of a recipe decides each stage, by its name, but for the arms: see `asked_config`. Reads no file."""
    persona = recipe.persona.system_prompt
    arithmetic = {"dtype": recipe.model.dtype}
    published = {**_config(recipe.card), "persona": recipe.persona.name, "base": recipe.model.base}
    return {
        "release": {**_config(recipe.release, without=("corpus",)), "system_prompt": persona},
        "adapter": {**_config(recipe.train), **arithmetic},
        "merged": _config(recipe.merge),
        "axis": {
            **_config(recipe.axis, without=("contrast", "calibration", "heldout")),
            "toward": persona,
            "away": recipe.persona.away,
            **arithmetic,
        },
        "capped": {**_config(recipe.bake), **arithmetic},
        "gguf": {
            **_config(recipe.gguf),
            "name": recipe.card.model_name,
            "system_prompt": persona,
            "license": recipe.card.license,
            "license_text": licence_text(recipe),
        },
        "report": published,
        "card": published,
    }


def plan_release(recipe: Recipe, *, force: bool = False) -> Stage:
    """The release stage alone: it needs the data and the persona, but no model.

    Args:
        recipe: the whole recipe.
        force: use grades of a workbench judge that has not passed its check.

    Raises:
        MissingError: the corpus does not exist.
        DataError: a line of it that cannot be used.
    """
    source = find("corpus", recipe.release.corpus, key="release.corpus")
    return Stage(
        "release",
        "release",
        configs_of(recipe)["release"],
        {"corpus": _hash_source(source, graded=recipe.release.minimum_grade is not None, force=force)},
        partial(_release, recipe, source, force),
        require=partial(_require_examples, source),
    )


def plan_run(recipe: Recipe, run: Path, *, team: Team | None = None, report_to: Sequence[str] = ()) -> list[Stage]:
    """All stages of a recipe, with the ids they will have. Nothing is executed.

    Args:
        recipe: the whole recipe.
        run: the run's folder.
        team: the processes that train together.
        report_to: trackers that are told about the training.

    Raises:
        MissingError: the base model, the corpus or a suite does not exist.
    """
    from karma_electric.steer.contrast import load_prompts

    llama_terms(recipe, {})  # what may not be published is refused before anything is fetched or trained
    base = resolve(recipe.model.base, recipe.model.revision)
    config = read_json(base.path / "config.json")
    llama_terms(recipe, config)  # of a local folder, where it says what it came from
    files = {
        "contrast": find("suites", recipe.axis.contrast, key="axis.contrast"),
        "calibration": find("suites", recipe.axis.calibration, key="axis.calibration"),
        "heldout": find("suites", recipe.axis.heldout, key="axis.heldout"),
    }
    _check_data(recipe, base, files)
    hashes = {role: _hash_data(path) for role, path in files.items()}
    space = space_of(
        recipe,
        shapes_of(base.path),
        config,
        prompts=len(load_prompts(files["contrast"])),
    )
    configs = configs_of(recipe)
    stages: list[Stage] = []

    def add(
        name: str,
        inputs: Mapping[str, str],
        execute: Callable[[Path, Progress], Mapping[str, Any] | None],
        *,
        resumable: bool = False,
        require: Callable[[], None] | None = None,
    ) -> str:
        need = space.get(name, Space(10_000_000))
        stages.append(
            Stage(
                name,
                name,
                configs[name],
                inputs,
                execute,
                resumable=resumable,
                space_bytes=need.stays,
                scratch_bytes=need.scratch,
                require=require,
            )
        )
        return stages[-1].id

    stages.append(plan_release(recipe))
    release = stages[-1].id
    adapter = add(
        "adapter",
        {"base": base.fingerprint, "release": release},
        partial(_adapter, recipe, base, run, team, report_to),
        resumable=True,
    )
    merged = add(
        "merged",
        {"base": base.fingerprint, "adapter": adapter},
        partial(_merged, recipe, base, run),
        resumable=True,
    )
    axis = add(
        "axis",
        {"merged": merged, **{role: hashes[role] for role in ("contrast", "calibration", "heldout")}},
        partial(_axis, recipe, files, run),
        resumable=True,
    )
    capped = add(
        "capped",
        {"merged": merged, "axis": axis, "heldout": hashes["heldout"]},
        partial(_capped, recipe, files, run),
        resumable=True,
        require=partial(_require_bakeable_base, base),
    )
    gguf = add(
        "gguf",
        {"merged": merged, "capped": capped},
        partial(_gguf, recipe, run),
        resumable=True,
    )
    models = {
        "base": (base.path, {"base": base.fingerprint}),
        "tuned": (run / "merged", {"merged": merged}),
        "capped": (run / "capped", {"capped": capped}),
    }
    arms = plan_arms(recipe, run, models, axis)
    stages += arms
    made = {
        "release": release,
        "adapter": adapter,
        "merged": merged,
        "axis": axis,
        "capped": capped,
        "gguf": gguf,
        **{stage.name: stage.id for stage in arms},
    }
    add("report", made, partial(_report, recipe, run))
    add("card", made, partial(_card, recipe, run))
    return stages


def _check_data(recipe: Recipe, base: ModelRef, files: Mapping[str, Path]) -> None:
    """Read what the later stages will read, so that a mistake there does not cost a training run first."""
    from karma_electric.models.blocks import layer_range
    from karma_electric.redteam.kinds import read_asked
    from karma_electric.steer.contrast import load_prompts, require_disjoint
    from karma_electric.steer.responses import SPLITS, plan_responses

    for suite in suites_of(recipe).values():
        read_asked(suite)
    prompts = {role: load_prompts(files[role]) for role in ("contrast", *SPLITS)}
    require_disjoint(**prompts)
    plan_responses(
        {split: prompts[split] for split in SPLITS},
        toward=recipe.persona.system_prompt,
        away=recipe.persona.away,
        shares=recipe.axis.mixture.shares,
    )
    blocks = read_json(base.path / "config.json").get("num_hidden_layers")
    if isinstance(blocks, int):
        layer_range(blocks, layers=recipe.axis.layers, depth=recipe.axis.depth)


def _require_examples(source: Path) -> None:
    """Refuse a corpus folder with a line that is no example: an artifact made from it before need not be replaced."""
    from karma_electric.data.corpus import read_corpus

    if source.is_dir():
        read_corpus(source)


def _require_bakeable_base(base: ModelRef) -> None:
    """Refuse a base whose tuned model could hold no cap: both have the same architecture.

    Raises:
        InputError: says why, and how to stop before the cap is baked.
    """
    from karma_electric.steer.neuron import require_bakeable

    config = read_json(base.path / "config.json")
    if not config.get("architectures"):  # known once it is loaded
        return
    try:
        require_bakeable(config, ())
    except InputError as error:
        raise InputError(
            f"model.base {base.name!r} cannot go on to the stage capped. {error.message}",
            f"Stop before it: add --to axis. {error.hint}",
        ) from None


def _config(section: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The keys of a section that decide the result; paths are left out, since contents are hashed as inputs."""
    values: dict[str, Any] = section.model_dump(mode="json")
    return {key: value for key, value in values.items() if key not in without}


def _hash_data(path: Path) -> str:
    """Hash of a data file, or of the JSONL files of a folder (its README and licence change nothing)."""
    if path.is_file():
        return hash_file(path)
    return hash_text(canonical_json({f.name: hash_file(f) for f in sorted(path.glob("*.jsonl"))}))


def _hash_source(source: Path, *, graded: bool, force: bool) -> str:
    """Hash of what a release may draw from: a corpus folder (with its grades where they decide), or a workbench."""
    if source.is_dir():
        grades = source / "grades"
        corpus = _hash_data(source)
        return hash_text(corpus + _hash_data(grades)) if graded and grades.is_dir() else corpus
    if source.suffix == ".jsonl":
        raise InputError(f"release.corpus {source} is a file, expected a folder.", "One JSONL per category.")
    from karma_electric.data.release import read_source

    items, totals = read_source(source, graded=graded, force=force)
    accepted = {
        item.id: [item.content_sha256, item.category, item.added_in, item.source, item.license]
        for item in items
        if item.status == "accepted"
    }
    others = Counter(item.status for item in items if item.status != "accepted")  # the summary counts them
    given = {id_: totals.get(id_) for id_ in accepted} if graded else {}
    return hash_text(canonical_json({"items": accepted, "others": others, "grades": given}))


def _release(recipe: Recipe, source: Path, force: bool, out: Path, progress: Progress) -> None:
    from karma_electric.data.release import write_release

    summary = write_release(recipe.release, source, recipe.persona.system_prompt, out, force=force)
    progress.say(f"  {summary['train']} examples to train on, {summary['validation']} held out")


def _adapter(
    recipe: Recipe,
    base: ModelRef,
    run: Path,
    team: Team | None,
    report_to: Sequence[str],
    out: Path,
    progress: Progress,
) -> None:
    from karma_electric.train.last_good import FOLDER
    from karma_electric.train.qlora import train_adapter
    from karma_electric.train.tracking import place

    place(report_to, run)
    summary = train_adapter(
        base.path,
        run / "release",
        recipe.train,
        out,
        dtype=recipe.model.dtype,
        report_to=report_to,
        name=recipe.name,
        team=team,
        progress=progress,
        diverged=run / FOLDER,
    )
    for verb in ("cut", "dropped"):
        if summary[verb]:
            progress.say(f"  longer than {recipe.train.max_length} tokens, {verb}: {', '.join(summary[verb])}")
    progress.say(
        f"  loss {summary['loss_last_tenth']:.3f} (mean of the last tenth of {summary['steps']} steps), "
        f"validation {summary['validation_loss_before']:.3f} -> {summary['validation_loss']:.3f}"
    )


def _merged(recipe: Recipe, base: ModelRef, run: Path, out: Path, progress: Progress) -> None:
    from karma_electric.train.merge import merge_adapter
    from karma_electric.train.tokenize import read_split

    heldout = [conversation for _, conversation in read_split(run / "release" / "validation.jsonl")]
    summary = merge_adapter(
        base.path,
        run / "adapter",
        recipe.merge,
        out,
        conversations=heldout[:_MERGE_CONVERSATIONS],
        base_names=(base.name,),
        progress=progress,
    )
    progress.say(f"  merged weights differ from adapter on base by {summary['mean_kl_nats']:.2g} nats per token (KL)")


def _axis(recipe: Recipe, files: Mapping[str, Path], run: Path, out: Path, progress: Progress) -> None:
    from karma_electric.models.blocks import layer_range
    from karma_electric.models.engines.protocol import Sampling
    from karma_electric.models.loading import load_model, load_tokenizer
    from karma_electric.steer.axis import save_axis
    from karma_electric.steer.calibrate import calibrate_into
    from karma_electric.steer.contrast import ContrastSet, load_prompts, require_disjoint
    from karma_electric.steer.diagnose import diagnose
    from karma_electric.steer.diagnostics import DIAGNOSTICS_FILE, write_diagnostics
    from karma_electric.steer.extract import extract, forget_chunks, iter_chunks
    from karma_electric.steer.figures import plot_norms
    from karma_electric.steer.responses import SPLITS, plan_responses
    from karma_electric.steer.spec import AXIS_FILE, describe
    from karma_electric.steer.verdict import judge

    require("model")
    section = recipe.axis
    prompts = {role: load_prompts(files[role]) for role in ("contrast", "calibration", "heldout")}
    require_disjoint(**prompts)
    model, tokenizer = load_model(run / "merged", dtype=recipe.model.dtype), load_tokenizer(run / "merged")
    contrast = ContrastSet(prompts["contrast"], recipe.persona.system_prompt, tuple(recipe.persona.away))
    fingerprint = resolve(str(run / "merged")).fingerprint
    axis = extract(
        model,
        tokenizer,
        contrast,
        out,
        fingerprint=fingerprint,
        position=section.position,
        sampling=Sampling(temperature=0.7, max_new_tokens=section.response_tokens, seed=section.seed),
        batch_tokens=section.batch_tokens,
        progress=progress,
    )
    layers = layer_range(axis.n_layers, layers=section.layers, depth=section.depth)
    diagnostics = diagnose(lambda: iter_chunks(out), seed=section.seed, progress=progress)
    for finding in judge(diagnostics, section.site, layers, what="capped blocks"):
        if finding.level != "ok":
            progress.say(f"  axis: {finding.level}: {finding.text}")
    spec = calibrate_into(
        out,
        model,
        tokenizer,
        axis,
        plan_responses(
            {split: prompts[split] for split in SPLITS},
            toward=contrast.toward,
            away=contrast.away,
            shares=section.mixture.shares,
        ),
        section,
        layers,
        fingerprint=fingerprint,
        progress=progress,
    )
    save_axis(axis, out / AXIS_FILE)
    write_diagnostics(diagnostics, out / DIAGNOSTICS_FILE)
    plot_norms(axis, layers, out / "norms.png", diagnostics)
    forget_chunks(out)
    progress.say(f"  {describe(spec)}")


def _capped(recipe: Recipe, files: Mapping[str, Path], run: Path, out: Path, progress: Progress) -> None:
    from karma_electric.steer.bake import bake, require_faithful
    from karma_electric.steer.contrast import load_prompts
    from karma_electric.steer.responses import FILE, by_split
    from karma_electric.steer.spec import load_cap

    cap, _ = load_cap(run / "axis")
    splits = by_split(run / "axis" / FILE)
    report = bake(
        run / "merged",
        [cap],
        calibration=splits["calibration"],
        heldout=splits["heldout"][:_FIDELITY_CONVERSATIONS],
        texts=[prompt.text for prompt in load_prompts(files["heldout"])],
        out=out,
        section=recipe.bake,
        dtype=recipe.model.dtype,
        batch_tokens=recipe.axis.batch_tokens,
        progress=progress,
    )
    progress.say(f"  KL(hooked||baked) / KL(hooked||uncapped) = {report['all']['kl_ratio']:.4f} on held-out text")
    require_faithful(report, recipe.bake)


def _gguf(recipe: Recipe, run: Path, out: Path, progress: Progress) -> dict[str, Any]:
    from karma_electric.export.chat_format import detect_format
    from karma_electric.export.gguf import export_gguf
    from karma_electric.export.modelfile import render_modelfile
    from karma_electric.export.parity import check_parity, require_parity
    from karma_electric.models.loading import load_tokenizer
    from karma_electric.steer.contrast import load_prompts

    require("gguf")
    section, name = recipe.gguf, recipe.card.model_name
    tokenizer = load_tokenizer(run / "merged")
    chat_format = detect_format(str(tokenizer.chat_template), eos_token=str(tokenizer.eos_token or ""))
    prompts = [prompt.text for prompt in load_prompts(find("suites", recipe.axis.heldout))[:_PARITY_PROMPTS]]
    parity: dict[str, Any] = {}
    for variant, suffix in (("merged", ""), ("capped", "-capped")):
        file = out / f"{name}{suffix}-{section.type}.gguf"
        if not file.exists():
            export_gguf(
                run / variant,
                file,
                file_type=section.type,
                name=f"{name}{suffix}",
                lineage={"run": recipe.name, variant: read_id(run / variant), "axis": read_id(run / "axis")},
                license_id=recipe.card.license,
                progress=progress,
            )
        modelfile = render_modelfile(
            file.name,
            template=chat_format.go_template(),
            stops=chat_format.stops,
            system=chat_format.as_said(recipe.persona.system_prompt),
            temperature=section.temperature,
            context=section.context,
            license_text=licence_text(recipe),
        )
        write_atomic(out / f"Modelfile{suffix.replace('-', '.')}", modelfile)
        checked = check_parity(run / variant, file, prompts=prompts, system=recipe.persona.system_prompt)
        require_parity(checked, section.type)
        parity[variant] = checked.as_dict()
        progress.say(f"  {file.name}: {checked.greedy_agreement:.0%} of greedy tokens as in transformers")
    write_json(out / "parity.json", parity)
    return {"parity": parity}


def _report(recipe: Recipe, run: Path, out: Path, progress: Progress) -> None:
    from karma_electric.report import write_report

    require("evidence")
    write_report(run, recipe, out)


def _card(recipe: Recipe, run: Path, out: Path, progress: Progress) -> None:
    require("evidence")
    write_atomic(out / "README.md", render_card(run, recipe))


def licence_text(recipe: Recipe) -> str:
    """What the Modelfile says about the licence of the weights."""
    if recipe.card.license.startswith("llama"):
        return "Built with Llama. Weights under the Meta Llama Community License; see the base model."
    return f"Weights derived from {recipe.card.base_model or recipe.model.base}, licence {recipe.card.license}."
