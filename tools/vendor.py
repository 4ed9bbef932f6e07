"""Fetches what the pages use of other projects from npm again, and checks it against what was recorded.

python tools/vendor.py            write the files again from npm (`npm pack`), and fail where their hash is another
python tools/vendor.py --record   the same, and record what came: after changing a version in vendor.json

The record is src/karma_electric/serve/ui/vendor/vendor.json: name, version, licence, where it came from, the archive's
integrity as npm states it, and the SHA-256 of each file. A test holds the files to it without a network.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "src" / "karma_electric" / "serve" / "ui" / "vendor"
RECORD = FOLDER / "vendor.json"


def fetch(name: str, version: str, into: Path) -> Path:
    """The archive of a package, as npm packs it."""
    command = ["npm", "pack", f"{name}@{version}", "--silent", "--ignore-scripts", "--pack-destination", str(into)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: npm pack {name}@{version} failed: {done.stderr.strip()[:300]}. Is npm installed?")
    return into / done.stdout.strip().splitlines()[-1]


def main() -> None:
    """Write every recorded file again."""
    record = "--record" in sys.argv[1:]
    packages = json.loads(RECORD.read_text(encoding="utf-8"))
    for package in packages:
        with tempfile.TemporaryDirectory() as scratch:
            archive = fetch(package["name"], package["version"], Path(scratch))
            digest = hashlib.sha512(archive.read_bytes()).digest()
            integrity = "sha512-" + base64.b64encode(digest).decode()
            check(package, "integrity", integrity, record=record)
            with tarfile.open(archive) as opened:
                for file in package["files"]:
                    member = opened.extractfile(f"package/{file['from']}")
                    assert member is not None, f"{file['from']} is no file"
                    data = member.read()
                    check(file, "sha256", hashlib.sha256(data).hexdigest(), record=record)
                    (FOLDER / file["to"]).write_bytes(data)
                    print(f"{file['to']}: {package['name']} {package['version']}, {len(data)} bytes")
    if record:
        RECORD.write_text(json.dumps(packages, indent=2) + "\n", encoding="utf-8")


def check(entry: dict[str, str], key: str, found: str, *, record: bool) -> None:
    """Hold what came to what was recorded, or record it."""
    if record:
        entry[key] = found
    elif entry.get(key) != found:
        raise SystemExit(f"error: {key} is {found}, recorded is {entry.get(key)}: not what was reviewed.")


if __name__ == "__main__":
    main()
