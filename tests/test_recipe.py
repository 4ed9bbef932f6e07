"""Recipes: the shipped ones load, and every mistake in one is named with its key and its fix."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from karma_electric.core.errors import MissingError, RecipeError
from karma_electric.core.recipe import Recipe, load_recipe, recipe_path
from karma_electric.core.resources import resource_root

SHIPPED = sorted(resource_root("recipes").glob("*.toml"))
VALID = """\
name = "trial"

[model]
base = "somewhere"

[persona]
system_prompt = "Be kind."
away = ["", "You are a helpful assistant."]

[train]
epochs = 2.0

[axis]
depth = [0.5, 0.8]

[redteam]
arms = ["base", "tuned"]

[card]
model_name = "trial"
license = "mit"
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A small valid recipe, to be spoiled."""
    file = tmp_path / "trial.toml"
    file.write_text(VALID, encoding="utf-8")
    return file


def spoil(file: Path, old: str, new: str) -> Path:
    """Replace a line of the valid recipe."""
    assert VALID.count(old) == 1
    file.write_text(VALID.replace(old, new), encoding="utf-8")
    return file


def refused(file: Path, *overrides: str) -> RecipeError:
    """The error a recipe ends in."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, overrides)
    return caught.value


def sections() -> list[tuple[str, type[BaseModel]]]:
    """Name and model of every section of a recipe."""
    kinds = ((name, field.annotation) for name, field in Recipe.model_fields.items())
    return [(name, kind) for name, kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_a_shipped_recipe_loads_under_its_own_name(file: Path) -> None:
    assert load_recipe(file).name == file.stem


def test_a_shipped_recipe_is_found_by_its_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipe_path("demo.toml") == recipe_path("recipes/demo.toml") == resource_root("recipes") / "demo.toml"


def test_the_demo_caps_the_blocks_the_design_names() -> None:
    demo = load_recipe("demo.toml")
    assert demo.model.base == "builtin:smollm2-135m"
    assert (demo.axis.depth, demo.axis.threshold) == ((0.70, 0.88), "runtime-q")


def test_what_a_file_leaves_out_has_its_default(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert recipe.train.epochs == 2.0
    assert (recipe.train.rank, recipe.train.alpha) == (64, 128)
    assert recipe.redteam.arms == ["base", "tuned"]


# --- mistakes


@pytest.mark.parametrize(
    ("old", "new", "key", "close"),
    [
        ("epochs = 2.0", "epoch = 2.0", "train.epoch", "epochs"),
        ("[redteam]", "[redtem]", "redtem", "redteam"),
        ("depth =", "dept =", "axis.dept", "depth"),
        ("system_prompt =", "system_promt =", "persona.system_promt", "system_prompt"),  # its right key is required
    ],
)
def test_a_typo_is_named_with_the_closest_key(recipe_file: Path, old: str, new: str, key: str, close: str) -> None:
    error = refused(spoil(recipe_file, old, new))
    assert f"trial.toml: unknown key {key!r}" in error.message
    assert error.hint == f"Did you mean {close!r}?"


def test_an_unknown_key_that_resembles_none_lists_the_known_ones(recipe_file: Path) -> None:
    error = refused(spoil(recipe_file, "base =", "zzz = 1\nbase = "))
    assert "'model.zzz'" in error.message
    assert error.hint == "Known keys here: base, revision, dtype."


def test_a_wrong_type_says_what_was_found_and_what_the_key_is(recipe_file: Path) -> None:
    error = refused(spoil(recipe_file, "epochs = 2.0", 'epochs = "many"'))
    assert "train.epochs" in error.message
    assert "found 'many'" in error.message
    assert error.hint == "epochs: passes over the training split."


def test_a_missing_key_says_what_to_add(recipe_file: Path) -> None:
    error = refused(spoil(recipe_file, 'license = "mit"\n', ""))
    assert "'card.license' is missing" in error.message
    assert error.hint.startswith("Add it: license: licence identifier")


def test_a_missing_section_says_what_to_add(recipe_file: Path) -> None:
    error = refused(spoil(recipe_file, '[model]\nbase = "somewhere"\n', ""))
    assert "'model' is missing" in error.message
    assert error.hint == "Add it: [model]: The model to start from."


def test_of_an_empty_recipe_all_that_is_missing_is_named_and_where_to_copy_one(recipe_file: Path) -> None:
    recipe_file.write_text("")
    error = refused(recipe_file)
    assert error.message == "trial.toml: 'name', 'model', 'persona' and 'card' are missing."
    assert error.hint.startswith("Copy a shipped recipe and change it: cp ")
    assert error.hint.endswith(f"demo.toml {recipe_file}")


def test_several_mistakes_are_counted(recipe_file: Path) -> None:
    error = refused(spoil(recipe_file, "epochs = 2.0", "epoch = 2.0\nranks = 4"))
    assert "(1 more after this one)" in error.message


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("axis.layers=[1, 2]", "layers and depth are both given: keep one"),
        ("axis.depth=[0.8, 0.5]", "0 <= first <= last <= 1"),
        ("axis.site=block", 'set axis.site = "mlp"'),
        ("axis.alpha=0", "axis.alpha"),
        ("axis.alpha=1.5", "axis.alpha"),
        ("axis.quantile=1.0", "axis.quantile"),
        ('persona.away=["You are a helpful assistant."]', 'one of the away prompts must be empty: add ""'),
        ("persona.away=[]", "persona.away"),
        ('redteam.arms=["base", "base"]', "an arm is named twice"),
        ('redteam.arms=["base", "caped"]', "redteam.arms.1"),
        ("release.validation_fraction=0.5", "release.validation_fraction"),
        ("train.batch_size=0", "train.batch_size"),
        ("train.dropout=1.0", "train.dropout"),
        ("bake.placement=sideways", "bake.placement"),
        ("gguf.type=q4_0", "gguf.type"),
        ("name=No Spaces", "name"),
    ],
)
def test_what_cannot_be_is_refused(recipe_file: Path, override: str, named: str) -> None:
    assert named in refused(recipe_file, override).message


def test_layers_that_run_backwards_are_refused(recipe_file: Path) -> None:
    error = refused(spoil(recipe_file, "depth = [0.5, 0.8]", "layers = [5, 3]"))
    assert "[5, 3] must be [first, last]" in error.message


def test_an_axis_section_needs_a_layer_range(recipe_file: Path) -> None:
    assert "set axis.layers" in refused(spoil(recipe_file, "depth = [0.5, 0.8]", "alpha = 0.5")).message


def test_a_file_that_is_not_toml_says_where(recipe_file: Path) -> None:
    error = refused(spoil(recipe_file, "[model]", "[model"))
    assert "trial.toml is not TOML" in error.message
    assert "line 3" in error.message


def test_a_file_that_is_not_text_is_refused(recipe_file: Path) -> None:
    recipe_file.write_bytes(b'name = "\xff"')
    error = refused(recipe_file)
    assert "is not UTF-8 (byte 0xff at 8)" in error.message
    assert error.hint == "Save as UTF-8."


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    assert "is a folder" in refused(tmp_path).message


def test_a_missing_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(MissingError) as caught:
        load_recipe("dmeo.toml")
    assert "'dmeo.toml' does not exist" in caught.value.message
    assert "demo.toml" in caught.value.hint


# --- overrides


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.epochs=1", "train.epochs", 1.0),
        ("train.learning_rate=1e-3", "train.learning_rate", 1e-3),
        ("train.gradient_checkpointing=true", "train.gradient_checkpointing", True),
        ("model.base=./some folder", "model.base", "./some folder"),  # bare words are strings
        ('model.base="quoted"', "model.base", "quoted"),
        ("persona.name=a=b", "persona.name", "a=b"),  # only the first = divides
        ('release.versions=["v1", "v2"]', "release.versions", ["v1", "v2"]),
        (" train.rank = 8", "train.rank", 8),
        ("merge.dtype=float32", "merge.dtype", "float32"),  # a section the file does not have
    ],
)
def test_an_override_sets_one_key(recipe_file: Path, override: str, key: str, value: object) -> None:
    plain, changed = load_recipe(recipe_file).model_dump(), load_recipe(recipe_file, [override]).model_dump()
    section, _, name = key.partition(".")
    assert changed[section][name] == value
    plain[section][name] = value
    assert changed == plain


def test_the_last_override_of_a_key_counts(recipe_file: Path) -> None:
    assert load_recipe(recipe_file, ["train.epochs=1", "train.epochs=4"]).train.epochs == 4.0


@pytest.mark.parametrize("override", ["train.epochs", "=1", "train..epochs=1", "train.ep ochs=1", ""])
def test_an_override_that_is_not_key_and_value_is_refused(recipe_file: Path, override: str) -> None:
    error = refused(recipe_file, override)
    assert f"--set {override!r} is not KEY=VALUE" in error.message
    assert "--set train.epochs=1" in error.hint


def test_an_override_below_a_value_is_refused(recipe_file: Path) -> None:
    assert "'epochs' is a value, not a section" in refused(recipe_file, "train.epochs.more=1").message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epoch=1", "--set train.epoch: unknown key. Did you mean train.epochs?"),
        ("trian.epochs=1", "--set trian.epochs: unknown key. Did you mean train.epochs?"),
        ("train.zzz=1", "--set train.zzz: unknown key. Known keys here: quantisation, rank"),
        ("train.epochs=many", "--set train.epochs: "),
    ],
)
def test_a_mistake_in_an_override_is_the_overrides_and_not_the_files(
    recipe_file: Path, override: str, said: str
) -> None:
    error = refused(recipe_file, "train.rank=8", override)
    assert str(error).startswith(said)
    assert recipe_file.name not in str(error)


def test_beside_an_override_a_mistake_in_the_file_is_the_files(recipe_file: Path) -> None:
    error = refused(spoil(recipe_file, "epochs = 2.0", "epoch = 2.0"), "train.rank=8")
    assert str(error) == "trial.toml: unknown key 'train.epoch'. Did you mean 'epochs'?"


# --- every key is explained


@pytest.mark.parametrize(("name", "section"), sections(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_key_and_section_is_explained(name: str, section: type[BaseModel]) -> None:
    assert section.__doc__, name
    assert [key for key, field in section.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("name", [name for name, _ in sections()])
def test_every_section_refuses_unknown_keys(recipe_file: Path, name: str) -> None:
    assert f"--set {name}.zzz: unknown key" in refused(recipe_file, f"{name}.zzz=1").message


@pytest.mark.parametrize("file", [f for f in SHIPPED if f.stem != "demo"], ids=lambda file: file.stem)
def test_every_choice_about_training_says_what_it_is_for(file: Path) -> None:
    section = file.read_text(encoding="utf-8").split("\n[train]\n")[1].split("\n[")[0]
    lines = [line for line in section.splitlines() if " = " in line]
    assert lines
    assert [line for line in lines if "#" not in line] == []
