#!/usr/bin/env python3
"""The original's command, from its model card: see `python bodhisattva_inference.py --help`."""

try:
    from karma_electric.cli.original import main
except ModuleNotFoundError as error:
    if error.name is None or not error.name.startswith("karma_electric"):
        raise
    raise SystemExit(
        "error: karma_electric is not installed for this Python. "
        "Run `make setup` and use .venv/bin/python, or: pip install -e '.[all]'"
    ) from None

if __name__ == "__main__":
    main()
