"""The reference is read off the code: what is in the code is in it. The site is built in `make test-slow`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, Field

from docsite import api_pages, build, cli_pages, format_pages, http_page, recipe_page
from docsite.markdown import code, prose, table
from karma_electric.core.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent


def test_every_verb_and_option_is_in_the_reference() -> None:
    made = cli_pages.pages()
    for words, context in cli_pages.contexts(cli_pages.root()):
        if words == "karma":
            continue
        page = made[f"cli/{words.split()[1]}.md"]
        assert re.search(rf"^#+ {words}$", page, re.MULTILINE)
        for parameter in context.command.get_params(context):
            assert not parameter.opts[0].startswith("-") or parameter.opts[0] in page
    assert "(bake.md)" in made["cli/index.md"]
    assert "Example:\n\n```console\nkarma bake" in made["cli/bake.md"]


def test_every_recipe_key_is_in_the_reference() -> None:
    (page,) = recipe_page.pages().values()

    def keys(model: type[BaseModel], path: str = "") -> list[tuple[str, str]]:
        found = []
        for name, field in model.model_fields.items():
            inner = recipe_page._model_of(field.annotation)
            found += keys(inner, f"{path}{name}.") if inner else [(path.rstrip("."), name)]
        return found

    sections = dict(re.findall(r"^## \[([\w.]+)\]\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    for section, key in keys(Recipe):
        assert f"| `{key}` |" in (sections[section] if section else page)
    assert "| `alpha` | number, above 0.0, at most 1.0 | `0.5` |" in sections["axis"]


def test_a_key_says_its_type_limits_and_default() -> None:
    class Section(BaseModel):
        """One."""

        share: float | None = Field(None, gt=0.0, lt=1.0, description="a share | of all")
        names: list[str] = Field(min_length=1, description="names")

    page = recipe_page.section(Section, ("one",))
    assert "| `share` | number, above 0.0, below 1.0 | none | a share \\\\| of all |" in page
    assert "| `names` | list of text, not empty | required | names |" in page


def test_modules_files_and_their_fields_are_in_the_reference() -> None:
    package = api_pages.load(str(ROOT / "src"))
    made = api_pages.pages(str(ROOT / "src"))
    assert "{py:function} load_recipe(path: str | Path" in made["api/core.md"]
    assert "{py:class} CapSpec" in made["api/steer.md"]
    assert "cli.md" not in " ".join(made), "verbs have a reference of their own"
    (files,) = format_pages.pages(package, ROOT).values()
    assert "| `thresholds` | `dict[int, float]` | block -\\> t, the ceiling" in files.replace("->", "-\\>")
    assert "`losses.train`" not in files
    assert files.count("\n### ") == sum(map(len, format_pages.FILES.values()))


def test_a_class_that_has_moved_is_found_and_one_that_has_gone_is_named() -> None:
    package = api_pages.load(str(ROOT / "src"))
    assert format_pages.find_class(package, "core.elsewhere.CapSpec").path == "karma_electric.steer.spec.CapSpec"
    with pytest.raises(SystemExit, match=r"core\.artifact\.Gone is no class"):
        format_pages.find_class(package, "core.artifact.Gone")


def test_an_http_api_is_described_from_what_the_application_says() -> None:
    body = {"type": "object", "required": ["model"], "properties": {"model": {"type": "string"}, "n": {"default": 1}}}
    said = {
        "paths": {
            "/v1/x": {
                "post": {
                    "summary": "Ask",
                    "parameters": [{"name": "q", "in": "query", "schema": {"type": "integer", "minimum": 0}}],
                    "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Body"}}}},
                    "responses": {"200": {"description": "An answer"}},
                }
            }
        },
        "components": {"schemas": {"Body": body}},
    }
    page = http_page.render(said)
    assert "## POST /v1/x\n\nAsk" in page
    assert "| `q` | query | integer, at least 0 |" in page
    assert "Takes Body (application/json)." in page
    assert "| `model` | string | required |" in page
    assert "| `n` | anything | `1` |" in page


def test_errors_that_all_endpoints_have_are_said_once() -> None:
    busy, gone = {"description": "Busy"}, {"description": "Gone"}
    operations = [{"responses": {"200": {"description": "ok"}, "429": busy}}, {"responses": {"404": gone, "429": busy}}]
    page = http_page.render({"paths": {"/a": {"get": operations[0]}, "/b": {"get": operations[1]}}})
    assert page.count("| Busy |") == page.count("| Gone |") == 1
    assert page.index("Busy") < page.index("## GET /a") < page.index("Gone")


def test_the_http_page_is_there_if_the_server_is() -> None:
    has_server = (ROOT / "src/karma_electric/serve/app.py").exists()
    assert bool(http_page.pages()) == has_server


def test_a_page_that_the_index_does_not_name_is_in_the_navigation(tmp_path: Path) -> None:
    for name in ("index", "named", "new/page", "reference/cli/index"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.md").write_text("")
    assert build.further(tmp_path, "```{toctree}\nnamed\n```") == ["new/page"]


def test_text_is_escaped_where_markdown_would_read_it_otherwise() -> None:
    assert table(["a"], [["x | y\nz"]]) == "| a |\n|---|\n| x \\| y z |\n"
    assert code("a`b") == "``a`b``"
    assert prose("x <b> [y](z) `<c>`") == "x \\<b> \\[y\\](z) `<c>`\n"
    assert prose("A\n  B   c\n\n- one\n  more") == "```text\nA\n  B   c\n```\n\n- one\n  more\n"


@pytest.mark.slow
def test_the_site_builds_strictly_and_asks_nobody() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools/docsite/build.py"], check=False, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(build.SITE.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"([^\"]+)\"", text)
        loaded += re.findall(r"<link[^>]*\srel=\"(?:stylesheet|preload|icon)\"[^>]*\shref=\"([^\"]+)\"", text)
        assert [link for link in loaded if re.match(r"(https?:)?//", link)] == [], page
    for sheet in build.SITE.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet
    bake = (build.SITE / "reference/cli/bake.html").read_text(encoding="utf-8")
    assert "A ratio above --max-kl-ratio is refused" in bake, "an option in a sentence stays one"
    assert "searchtools" in (build.SITE / "search.html").read_text(encoding="utf-8")
    assert "load_recip" in (build.SITE / "searchindex.js").read_text(encoding="utf-8")
