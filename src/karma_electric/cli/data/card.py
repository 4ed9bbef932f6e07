"""`karma data card`: renders the dataset card of a corpus from its data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from karma_electric.data.dataset_card import CorpusFacts

TITLE = "Karma Electric corpus"
_TEMPLATE = "dataset_card.md.jinja"


def card(
    folder: Annotated[Path, typer.Argument(help="A corpus folder: one .jsonl file per category.")] = Path("corpus"),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit code 1 if README.md is not this.")
    ] = False,
    title: Annotated[str, typer.Option("--title", help="Name of the data set.")] = TITLE,
    language: Annotated[str, typer.Option("--language", help="ISO 639 code of the texts.")] = "en",
    against: Annotated[
        list[Path] | None,
        typer.Option(
            "--against",
            metavar="PATH",
            help="A file or folder that must stay unseen; the shipped suites else. Repeatable.",
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="Folder of another sentence-transformers model.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the figures as JSON as well.")] = False,
) -> None:
    """Render FOLDER/README.md, the dataset card in Hugging Face form: counts, lengths, variety, contamination, grades.

    Example: karma data card corpus --check
    """
    import json
    from dataclasses import asdict

    from karma_electric.core.artifact import write_atomic
    from karma_electric.core.errors import GateError
    from karma_electric.core.extras import require
    from karma_electric.core.progress import Console
    from karma_electric.core.resources import resource_root
    from karma_electric.data.dataset_card import corpus_facts

    require("data")
    from karma_electric.models.sentences import SentenceModel

    facts = corpus_facts(
        folder,
        references=against or [resource_root("suites")],
        model=SentenceModel.load(model),
        title=title,
        language=language,
        progress=Console(),
    )
    text = render(facts)
    if json_:
        print(json.dumps(asdict(facts), indent=2, ensure_ascii=False))
    path = folder / "README.md"
    if not check:
        write_atomic(path, text)
        if not json_:
            print(f"{path}: {facts.examples} examples")
        return
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        raise GateError(f"{path} is not what the data say.", f"Render it with: karma data card {folder}")


def render(facts: CorpusFacts) -> str:
    """The card, as Markdown with a YAML head for the Hugging Face hub."""
    from karma_electric.data import checks, dataset_card, decontaminate, dedupe, rubric
    from karma_electric.rendering import environment

    return (
        environment(autoescape=False)
        .get_template(_TEMPLATE)
        .render(
            f=facts,
            metadata=metadata(facts),
            twin=dataset_card.TWIN,
            thresholds=dataset_card.THRESHOLDS,
            near=dedupe.NEAR,
            semantic=decontaminate.SEMANTIC,
            fewest_words=decontaminate.FEWEST_WORDS,
            opening_words=checks.OPENING_WORDS,
            short_words=checks.SHORT_WORDS,
            long_words=checks.LONG_WORDS,
            rubric=rubric.RUBRIC,
            kept_from=rubric.KEPT_FROM,
        )
    )


def metadata(facts: CorpusFacts) -> str:
    """The YAML head: what the hub lists a data set under, and which files make which configuration."""
    from huggingface_hub import DatasetCardData

    configs: list[dict[str, Any]] = [{"config_name": "all", "data_files": "*.jsonl", "default": True}]
    configs += [{"config_name": category, "data_files": f"{category}.jsonl"} for category in facts.categories]
    configs += [
        {
            "config_name": name,
            "data_files": [
                {"split": split, "path": f"releases/{name}/{split}.jsonl"} for split in ("train", "validation")
            ],
        }
        for name in facts.releases
    ]
    synthetic = facts.sources.keys() == {"synthetic-language-model"}
    return DatasetCardData(
        pretty_name=facts.title,
        language=[facts.language],
        license=[license_.lower() for license_ in facts.licenses],
        task_categories=["text-generation"],
        size_categories=[facts.size],
        annotations_creators=["machine-generated"] if synthetic else None,
        language_creators=["machine-generated"] if synthetic else None,
        source_datasets=["original"] if synthetic else None,
        tags=["alignment", "ethics", "conversational", *(["synthetic"] if synthetic else [])],
        configs=configs,
    ).to_yaml()
