"""`make check-package`: builds the sdist and the wheel, installs the wheel where nothing else of ours is, and tries it.

Nothing is downloaded: the new environment sees the libraries of this one by a path file, but not the editable install,
and pip installs the wheel alone. What is checked:

- a wheel from the sdist has the same files as one from the checkout
- corpus, suites, recipes, templates and static files are in it, byte for byte
- `karma` works from an empty folder, finds them, and tells the commit, also where there is no git
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = ("corpus", "suites", "recipes")  # beside src/ in the checkout, below karma_electric/resources in the wheel


def run(words: Sequence[str | Path], cwd: Path, **environment: str) -> str:
    """Output of a command; ends the check with what it said where it failed."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        [*map(str, words)],
        check=False,
        cwd=cwd,
        env=kept | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    if done.returncode:
        raise SystemExit(f"error: {' '.join(map(str, words))} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def build(source: Path, out: Path, *targets: str) -> None:
    """Build with the backend itself: no isolated environment, so nothing is fetched."""
    words = [word for target in targets for word in ("-t", target)]
    run([sys.executable, "-m", "hatchling", "build", "-d", out, *words], source)


def hashes(wheel: Path) -> dict[str, str]:
    """Path in a wheel -> SHA-256, the record of the same left out."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/RECORD")]
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in names}


def expected() -> dict[str, Path]:
    """Path in the wheel -> file of the checkout, for everything that is committed and belongs to the package."""
    tracked = run(["git", "ls-files", "src/karma_electric", *OUTSIDE], ROOT).splitlines()
    return {
        (name.removeprefix("src/") if name.startswith("src/") else f"karma_electric/resources/{name}"): ROOT / name
        for name in tracked
    }


def check_contents(wheel: Path) -> int:
    """Everything is in the wheel, byte for byte, and nothing else."""
    found, wanted = hashes(wheel), expected()
    own = {name for name in found if not name.partition("/")[0].endswith(".dist-info")}
    missing = sorted(wanted.keys() - own)
    foreign = sorted(own - wanted.keys() - {"karma_electric/_commit.json"})
    changed = [n for n, f in wanted.items() if n in own and hashlib.sha256(f.read_bytes()).hexdigest() != found[n]]
    for what, names in (("missing", missing), ("foreign", foreign), ("changed", changed)):
        if names:
            raise SystemExit(f"error: {what} in the wheel: {', '.join(names[:8])}")
    licences = [name for name in found if "/licenses/" in name]
    if len(licences) != 3:
        raise SystemExit(f"error: the wheel has the licence files {licences}, expected three.")
    return len(own)


def environment(folder: Path, wheel: Path) -> Path:
    """A new environment with the wheel; gives its folder of commands."""
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder.parent)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    site = Path(
        run([scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip()
    )
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "libraries.pth").write_text("\n".join(sorted(libraries)) + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", scripts / "python"]
    # the libraries' folder lies on the path there, with our own editable install in it: installed beside, not instead
    run([*pip, "install", "-q", "--no-deps", "--no-index", "--ignore-installed", wheel], folder)
    return scripts


def main() -> None:
    """Build, install, try."""
    with tempfile.TemporaryDirectory(prefix="karma-package-") as name:
        work = Path(name)
        build(ROOT, work / "dist", "sdist", "wheel")
        (wheel,) = (work / "dist").glob("*.whl")
        (sdist,) = (work / "dist").glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            archive.extractall(work / "unpacked", filter="data")
        (unpacked,) = (work / "unpacked").iterdir()
        build(unpacked, work / "again", "wheel")
        (again,) = (work / "again").glob("*.whl")
        first, second = hashes(wheel), hashes(again)
        differing = sorted(n for n in first.keys() | second.keys() if first.get(n) != second.get(n))
        if differing:
            raise SystemExit(f"error: the wheel from the sdist differs: {', '.join(differing[:8])}")
        print(f"{wheel.name}: {check_contents(wheel)} files, the same from {sdist.name}")

        scripts = environment(work / "environment", wheel)
        empty = work / "empty"
        empty.mkdir()
        where = run([scripts / "python", "-c", "import karma_electric; print(karma_electric.__file__)"], empty)
        if str(work) not in where:
            raise SystemExit(f"error: {where.strip()} was imported, expected the installed wheel.")
        commit = run(["git", "rev-parse", "HEAD"], ROOT).strip()[:12]
        for path in (os.environ["PATH"], str(empty)):  # the second has no git
            version = run([scripts / "karma", "--version"], empty, PATH=path)
            if commit not in version:
                raise SystemExit(f"error: karma --version says {version!r}, expected the commit {commit}.")
        print(version.strip())
        for words in (
            ["show", "demo.toml"],
            ["redteam", "suites"],
            ["data", "release", "demo.toml"],
            ["axis", "extract", "--help"],
        ):
            run([scripts / "karma", *words], empty, HF_HUB_OFFLINE="1")
            print(f"karma {' '.join(words)}: ok")

        shutil.rmtree(work / "unpacked")
        with tarfile.open(sdist) as archive:
            archive.extractall(work / "unpacked", filter="data")
        (unpacked / "src" / "karma_electric" / "_commit.json").unlink()
        bare = run(
            [sys.executable, "-m", "karma_electric", "--version"], empty, PYTHONPATH=str(unpacked / "src")
        ).strip()
        if "(" in bare:
            raise SystemExit(f"error: without git and note karma --version says {bare!r}, expected the version alone.")
        print(f"without a note: {bare}")


if __name__ == "__main__":
    main()
