"""`make docs`: gathers docs/, the documents at the top and the generated reference; Sphinx makes a site of them.

    build/docs/source     what Sphinx reads (made anew each time)
    build/docs/html       the site: open index.html; it needs no server and no network

Warnings are errors. Nothing is downloaded.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "build" / "docs" / "source"
SITE = ROOT / "build" / "docs" / "html"
# Documents that lie outside docs/, and where they lie in the site.
OUTSIDE = {
    "README.md": "project/readme.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "corpus/README.md": "data/corpus.md",
    "suites/README.md": "data/suites.md",
    "suites/raters.md": "data/raters.md",
}
FURTHER = "<!-- further pages -->"
HTTP = "<!-- http page -->"


def reference() -> dict[str, str]:
    """Path below reference/ -> Markdown, all of it read off the code."""
    from docsite import api_pages, cli_pages, format_pages, http_page, recipe_page

    source = str(ROOT / "src")
    return {
        **cli_pages.pages(),
        **recipe_page.pages(),
        **api_pages.pages(source),
        **format_pages.pages(api_pages.load(source), ROOT),
        **http_page.pages(),
    }


def stage(source: Path = SOURCE) -> None:
    """Write everything that Sphinx reads."""
    from docsite.links import rewritten

    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    shutil.copyfile(ROOT / "docs" / "conf.py", source / "conf.py")
    for name, text in reference().items():
        _write(source / "reference" / name, text)

    def place(path: Path) -> Path | None:
        """Where a file of the repository lies in the site; what is no page can be downloaded."""
        if path.is_dir():
            return None
        name = path.relative_to(ROOT).as_posix()
        if name in OUTSIDE:
            return source / OUTSIDE[name]
        if name.startswith("docs/"):
            return source / name.removeprefix("docs/")
        there = source / "files" / name
        if not path.is_file():
            raise SystemExit(f"error: a link leads to {name}, which does not exist.")
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, there)
        return there

    pages = {file: source / file.relative_to(ROOT / "docs") for file in sorted((ROOT / "docs").rglob("*.md"))}
    pages |= {ROOT / name: source / there for name, there in OUTSIDE.items()}
    for file, page in pages.items():
        text = re.sub(r"\A---\n.*?\n---\n", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)  # a hub's metadata
        _write(page, rewritten(text, file, page, place))
    for file in (ROOT / "docs").rglob("*"):
        if file.suffix in {".png", ".svg", ".css"}:
            there = source / file.relative_to(ROOT / "docs")
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, there)
    index = source / "index.md"
    text = index.read_text(encoding="utf-8").replace(
        HTTP, "reference/http" if (source / "reference/http.md").exists() else ""
    )
    index.write_text(text.replace(FURTHER, "\n".join(further(source, text))), encoding="utf-8")


def further(source: Path, index: str) -> list[str]:
    """Pages that the index does not name: a new page is in the navigation at once."""
    named = {line.strip() for line in index.splitlines()}
    own = [page.relative_to(source).with_suffix("").as_posix() for page in source.rglob("*.md")]
    return sorted(name for name in own if name not in named and name != "index" and not name.startswith("reference/"))


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def main() -> int:
    """Stage and build."""
    from karma_electric.core.extras import version_of

    if version_of("sphinx") is None:
        raise SystemExit(
            "error: Sphinx is not installed. Run `make docs`, or: pip install -c constraints.txt -e '.[docs]'"
        )
    from sphinx.cmd.build import build_main

    stage()
    shutil.rmtree(SITE, ignore_errors=True)
    cache = ROOT / "build" / "docs" / "cache"
    options = ["-W", "--keep-going", "-q", "-j", "2", "-b", "html", "-d", str(cache)]
    code = build_main([*options, str(SOURCE), str(SITE)])
    if code == 0:
        print(f"{sum(1 for _ in SITE.rglob('*.html'))} pages: {(SITE / 'index.html').relative_to(ROOT)}")
    return code


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    raise SystemExit(main())
