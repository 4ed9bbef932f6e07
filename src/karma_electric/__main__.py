"""`python -m karma_electric` is `karma`."""

from karma_electric.cli.main import main

main()
