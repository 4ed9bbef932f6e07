"""`karma axis show`: what an axis was made from, whether it is real, and what its cap was measured to do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from karma_electric.models.blocks import Site
    from karma_electric.steer.axis import Axis
    from karma_electric.steer.diagnostics import Diagnostics
    from karma_electric.steer.spec import CapSpec
    from karma_electric.steer.verdict import Finding

_ORIGINAL_DEPTH = (0.70, 0.88)  # blocks 22-28 of 32, which the original caps
_PRIME = "d'"
_OTHER_ROWS = 8  # blocks that are shown beside the capped ones
_SHORT = 76  # characters of a system prompt


def show(
    path: Annotated[Path, typer.Argument(metavar="AXIS", help="An axis.safetensors, its folder, or a run's folder.")],
    site: Annotated[
        str | None, typer.Option("--site", help="Only this site: mlp or block. Both when not given.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="A row for every block, not only for some.")] = False,
    plots: Annotated[
        Path | None, typer.Option("--plots", metavar="DIR", help="Write the plots to this folder as PNG.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 where the verdict is unstable.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show an axis: what it was made from, whether it is real, and what the cap beside it does.

    Real means: other prompts would give the same direction, it separates prompts it was not made from, and neither
    random directions nor shuffled labels do as well. Every figure is explained in docs/axis-diagnostics.md.

    Example: karma axis show runs/demo
    """
    from karma_electric.core.errors import GateError, MissingError
    from karma_electric.core.extras import require
    from karma_electric.steer.diagnostics import COMMAND

    require("model")
    shown = _load(path, site)
    if plots is not None:
        require("evidence")
        written = _plot(shown, plots)
    if json_:
        print(json.dumps(_as_json(shown), indent=2, allow_nan=False))
    else:
        _print(shown, every=all_)
        if plots is not None:
            print(f"\nplots: {', '.join(str(file) for file in written)}")
    if not check:
        return
    if shown.diagnostics is None:
        raise MissingError(f"{shown.file.parent} has no diagnostics to check.", f"Extract the axis again: {COMMAND}")
    if shown.level == "unstable":
        worst = next(finding.text for finding in shown.findings if finding.level == "unstable")
        raise GateError(f"The axis {shown.file} is unstable: {worst}.", "See docs/axis-diagnostics.md.")


@dataclass(frozen=True)
class _Shown:
    """All that was read, and the verdict."""

    file: Path
    axis: Axis
    sites: tuple[Site, ...]
    cap: CapSpec | None
    diagnostics: Diagnostics | None
    judged: Site
    layers: list[int]
    what: str
    findings: list[Finding]

    @property
    def level(self) -> str | None:
        from karma_electric.steer.verdict import overall

        return overall(self.findings) if self.diagnostics is not None else None


def _load(path: Path, site: str | None) -> _Shown:
    """Read the axis, and what lies beside it.

    Raises:
        MissingError: no axis there. ArtifactError: damaged files, or files that do not belong together.
        InputError: a site that is not there.
    """
    from karma_electric.core.errors import ArtifactError, InputError
    from karma_electric.models.blocks import SITES, layer_range
    from karma_electric.steer.axis import load_axis
    from karma_electric.steer.diagnostics import DIAGNOSTICS_FILE, read_diagnostics
    from karma_electric.steer.spec import CAP_FILE, load_spec
    from karma_electric.steer.verdict import judge

    file = _find(path)
    axis = load_axis(file)
    sites = tuple(s for s in SITES if s in axis.directions and site in (None, s))
    if not sites:
        raise InputError(f"--site is {site!r}, the axis has: {', '.join(axis.directions)}.", "Choose one of these.")
    cap_file, diagnostics_file = file.parent / CAP_FILE, file.parent / DIAGNOSTICS_FILE
    cap = load_spec(cap_file) if cap_file.is_file() else None
    if cap is not None and cap.axis != file.name:
        cap = None  # it belongs to another axis in this folder
    if cap is not None and not all(0 <= layer < axis.n_layers for layer in cap.layers):
        raise ArtifactError(
            f"{cap_file} caps blocks {list(cap.layers)}, the axis has 0-{axis.n_layers - 1}.", "Calibrate again."
        )
    diagnostics = read_diagnostics(diagnostics_file) if diagnostics_file.is_file() else None
    if diagnostics is not None:
        _require_same(axis, diagnostics, diagnostics_file)
    judged: Site = cap.site if cap is not None and cap.site in sites else sites[0]
    if cap is not None:
        layers, what = list(cap.layers), "capped blocks" if cap.site == judged else "blocks"
    else:
        layers, what = layer_range(axis.n_layers, layers=None, depth=_ORIGINAL_DEPTH), "blocks that would be capped"
    findings = judge(diagnostics, judged, layers, what=what) if diagnostics is not None else []
    return _Shown(file, axis, sites, cap, diagnostics, judged, layers, what, findings)


def _find(path: Path) -> Path:
    from karma_electric.core.errors import MissingError
    from karma_electric.core.lineage import missing_run_hint
    from karma_electric.kept import require_weights
    from karma_electric.steer.spec import AXIS_FILE

    if path.is_file():
        return path
    for file in (path / AXIS_FILE, path / "axis" / AXIS_FILE):
        if file.is_file():
            return file
    require_weights(path)
    found = f"{path} holds no {AXIS_FILE}" if path.is_dir() else f"{path} does not exist"
    raise MissingError(
        f"{found}; expected an axis, its folder or a run's folder.",
        missing_run_hint(path) or "Make one first: karma run RECIPE --to axis",
    )


def _require_same(axis: Axis, diagnostics: Diagnostics, file: Path) -> None:
    """Refuse diagnostics of another axis: the lengths of the directions must be the same."""
    import torch

    from karma_electric.core.errors import ArtifactError
    from karma_electric.steer.diagnostics import AGAIN

    for site, norms in axis.norms.items():
        figures = diagnostics.sites.get(site)
        if (
            figures is None
            or figures.n_layers != axis.n_layers
            or not torch.allclose(norms, torch.tensor(figures.norm), rtol=1e-3, atol=1e-6)
        ):
            raise ArtifactError(f"{file} was measured on another axis than the one beside it.", AGAIN)


def _as_json(shown: _Shown) -> dict[str, Any]:
    from dataclasses import asdict

    from karma_electric.steer.diagnostics import as_json

    axis = shown.axis
    return {
        "axis": {
            "file": str(shown.file),
            "model": axis.model,
            "template_sha256": axis.template_sha256,
            "position": axis.position,
            "toward": axis.toward,
            "away": list(axis.away),
            "n": axis.n,
            "n_layers": axis.n_layers,
            "hidden": axis.hidden,
            "norms": {site: axis.norms[site].tolist() for site in shown.sites},
        },
        "cap": asdict(shown.cap) if shown.cap is not None else None,
        "diagnostics": as_json(shown.diagnostics) if shown.diagnostics is not None else None,
        "verdict": {
            "level": shown.level,
            "site": shown.judged,
            "layers": shown.layers,
            "findings": [asdict(finding) for finding in shown.findings],
        },
    }


def _print(shown: _Shown, *, every: bool) -> None:
    from karma_electric.core.printable import printable
    from karma_electric.steer.diagnostics import COMMAND
    from karma_electric.steer.spec import describe
    from karma_electric.steer.verdict import span

    axis = shown.axis
    print(f"axis      {shown.file}")
    print(f"model     {printable(axis.model)}, {axis.n_layers} blocks of hidden size {axis.hidden}")
    print(f"template  {printable(axis.template_sha256[:16])}")
    print(f"made from {axis.n} prompts, read at {printable(axis.position)}")
    print(f"toward    {_short(axis.toward)}")
    for number, text in enumerate(axis.away):
        print(f"{'away' if number == 0 else '':<9} {_short(text)}")
    if shown.cap is not None:
        print(f"cap       {printable(describe(shown.cap))}")
        if shown.cap.dose:
            print(f"dose      {shown.cap.dose['mean']:.2%} of the length of the residual stream, on average per token")
    else:
        print(f"cap       none beside it; shown for blocks {span(shown.layers)}, where the original's would be")
    rows = list(range(axis.n_layers)) if every else _rows(axis.n_layers, shown.layers)
    for site in shown.sites:
        if shown.diagnostics is not None:
            _print_diagnostics(shown, site, rows)
        else:
            _print_without(shown, site, rows)
    if len(rows) < axis.n_layers:
        print(f"\n{len(rows)} of {axis.n_layers} blocks are shown; --all shows every one.")
    if shown.diagnostics is None:
        print(f"\nverdict: none, nothing was measured on unseen prompts. Extract the axis again for that: {COMMAND}")
        return
    print(f"\nverdict for site {shown.judged}: {shown.level}")
    for finding in shown.findings:
        print(_wrapped(finding.level, finding.text))


def _print_diagnostics(shown: _Shown, site: Site, rows: Sequence[int]) -> None:
    assert shown.diagnostics is not None
    figures = shown.diagnostics.sites[site]
    print(f"\n{_heading(shown, site)}")
    print(
        f"{'':7}{'':>8} {'|d| over':>8}  {'cosine of':<20} {'unseen prompts:':<25}  {'random, 95%':>11}  "
        f"{'shuffled, 95%':>13}  {'cosine':>6}"
    )
    print(
        f"{'block':>7}{'|d|':>8} {'noise':>8}  {'two resamples, 95%':<20} {'AUC, 95%':<20}{_PRIME:>5}  {'AUC <':>5} "
        f"{_PRIME + ' <':>5}  {'AUC <':>7} {_PRIME + ' <':>5}  {'next':>6}"
    )
    for row in rows:
        noise = figures.noise[row]
        ratio = f"{figures.norm[row] / noise:.1f}" if noise > 0 else "-"
        cosine = (figures.resample_cosine, figures.resample_cosine_low, figures.resample_cosine_high)
        area = (figures.auc, figures.auc_low, figures.auc_high)
        following = f"{figures.cosine(row, row + 1):.2f}" if row + 1 < figures.n_layers else "-"
        print(
            f"{_mark(shown, site, row)}{row:>5}{figures.norm[row]:>8.3g} {ratio:>8}  {_interval(cosine, row):<20} "
            f"{_interval(area, row):<20}{figures.d_prime[row]:>5.2f}  {figures.random_auc_high[row]:>5.2f} "
            f"{figures.random_d_prime_high[row]:>5.2f}  {figures.shuffled_auc_high[row]:>7.2f} "
            f"{figures.shuffled_d_prime_high[row]:>5.2f}  {following:>6}"
        )


def _print_without(shown: _Shown, site: Site, rows: Sequence[int]) -> None:
    from karma_electric.steer.separation import auc, d_prime

    axis = shown.axis
    vectors = axis.directions[site]
    cosines = (vectors[:-1] * vectors[1:]).sum(-1).tolist()
    both = axis.projections.get(site)
    known = both is not None and both.shape[1] > 1
    print(f"\n{_heading(shown, site)}")
    print(f"{'block':>7}{'|d|':>8}  {'cosine next':>11}" + (f" {'AUC':>7} {_PRIME:>6}" if known else ""))
    areas = distances = None
    if both is not None and known:
        areas, distances = (score(both[0].T, both[1].T).tolist() for score in (auc, d_prime))
    for row in rows:
        following = f"{cosines[row]:.2f}" if row < len(cosines) else "-"
        scores = f" {areas[row]:>7.3f} {distances[row]:>6.2f}" if areas and distances else ""
        print(f"{_mark(shown, site, row)}{row:>5}{float(axis.norms[site][row]):>8.3g}  {following:>11}{scores}")
    if known:
        print(f"AUC and {_PRIME} are of the prompts the direction was made from: too good, and no evidence.")


def _heading(shown: _Shown, site: Site) -> str:
    starred = shown.cap is None or site == shown.cap.site
    return f"site {site}" + (f" (* {'capped blocks' if shown.cap else shown.what})" if starred else "")


def _mark(shown: _Shown, site: Site, row: int) -> str:
    """A star at the blocks of the cap, or of the verdict where there is no cap."""
    capped = row in shown.layers and (shown.cap is None or site == shown.cap.site)
    return " *" if capped else "  "


def _rows(n_layers: int, layers: Sequence[int]) -> list[int]:
    """The capped blocks, and some others evenly over the depth."""
    step = max(1, -(-n_layers // _OTHER_ROWS))
    return sorted({*layers, *range(0, n_layers, step), n_layers - 1})


def _interval(columns: tuple[Sequence[float], ...], row: int) -> str:
    value, low, high = (column[row] for column in columns)
    return f"{value:.3f} ({low:.3f}-{high:.3f})"


def _short(text: str) -> str:
    from karma_electric.core.printable import printable

    if not text:
        return "(empty)"
    line = " ".join(printable(text).split())
    return line if len(line) <= _SHORT else f"{line[: _SHORT - 3]}..."


def _wrapped(level: str, text: str) -> str:
    import textwrap

    return textwrap.fill(f"{level}: {text}", width=100, initial_indent="  ", subsequent_indent="    ")


def _plot(shown: _Shown, folder: Path) -> list[Path]:
    """Write all plots that can be drawn, and return them.

    Raises:
        InputError: the folder is sealed by a manifest, and would no longer match it.
    """
    from karma_electric.core.artifact import sealed_around
    from karma_electric.core.errors import InputError
    from karma_electric.steer import figures

    sealed = sealed_around(folder)
    if sealed is not None:
        raise InputError(
            f"{sealed} is a finished artifact, plots in it would not match its manifest.", "Choose another --plots."
        )
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, expected a folder.", "Choose another --plots.")
    folder.mkdir(parents=True, exist_ok=True)
    marked = shown.layers if shown.cap is not None else []
    written = [folder / "norms.png"]
    figures.plot_norms(shown.axis, marked, written[0], shown.diagnostics)
    if shown.diagnostics is not None:
        for name in ("separation", "stability", "similarity"):
            written.append(folder / f"{name}.png")
            getattr(figures, f"plot_{name}")(shown.diagnostics, marked, written[-1])
    if shown.judged in shown.axis.projections:
        written.append(folder / "contrast.png")
        figures.plot_contrast(shown.axis, shown.judged, shown.layers, written[-1])
    return written
