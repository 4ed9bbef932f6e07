"""The files of the pages: whole, self-contained, and nothing in them that a model's text could get into."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

import karma_electric

UI = Path(karma_electric.__file__).parent / "serve" / "ui"
VENDOR = UI / "vendor"
OURS = sorted(path for path in UI.rglob("*") if path.suffix in (".html", ".js", ".css") and VENDOR not in path.parents)


def test_vendored_files_are_those_that_were_recorded() -> None:
    recorded = json.loads((VENDOR / "vendor.json").read_text())
    files = {file["to"]: file["sha256"] for package in recorded for file in package["files"]}
    assert {path.name for path in VENDOR.iterdir()} == {*files, "vendor.json"}
    for name, sha256 in files.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == sha256
    for package in recorded:
        assert package["version"]
        assert package["licence"]
        assert package["integrity"].startswith("sha512-")
        assert any("LICENSE" in file["to"] for file in package["files"])


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_nothing_comes_from_elsewhere_and_nothing_is_parsed_as_markup(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"https?://|//cdn", text)
    if path.suffix == ".js":
        forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc"
        assert not re.search(forbidden, text)
    if path.suffix == ".html":
        assert "script-src 'self'; style-src 'self'" in text
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=", text)


@pytest.mark.parametrize("page", ["index.html", "runs.html"])
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    text = (UI / page).read_text()
    named = re.findall(r'(?:src|href)="([^"#]+)"', text)
    for name in named:
        assert (UI / name).exists(), name
    for module in UI.glob("js/*.js"):
        for imported in re.findall(r'from "(\./[^"]+|\.\./[^"]+)"', module.read_text()):
            assert (module.parent / imported).is_file(), f"{module.name}: {imported}"


@pytest.mark.parametrize("page", ["index.html", "runs.html"])
def test_every_field_has_a_label(page: str) -> None:
    text = (UI / page).read_text()
    labelled = set(re.findall(r'<label[^>]*\bfor="([^"]+)"', text))
    wrapped = "".join(re.findall(r"<label[^>]*>.*?</label>", text, re.DOTALL))
    for tag in re.findall(r"<(?:input|select|textarea)\b[^>]*>", text):
        identity = re.search(r'\bid="([^"]+)"', tag)
        assert tag in wrapped or (identity and identity.group(1) in labelled), tag


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.1)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read_on_every_ground(scheme: int) -> None:
    roots = re.findall(r":root \{(.*?)\}", (UI / "style.css").read_text(), re.DOTALL)
    colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", roots[scheme]))
    grounds = ["back", "panel", "raised"]
    pairs = [(text, ground) for text in ("text", "quiet", "link", "bad", "first", "second") for ground in grounds]
    pairs += [("text", ground) for ground in ("d0", "d1", "d2", "d3", "d4", "mark")]
    pairs += [(name, f"{name}-back") for name in ("pass", "partial", "fail", "unscored")]
    pairs += [("on-accent", "accent")]
    bad = {pair: round(contrast(*(colours[name] for name in pair)), 2) for pair in pairs}
    assert {pair: ratio for pair, ratio in bad.items() if ratio < 4.5} == {}
    edges = {ground: contrast(colours["edge"], colours[ground]) for ground in grounds}
    assert min(edges.values()) >= 3  # edges of fields
