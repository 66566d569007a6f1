"""`python -m registry.cli` is `command-registry`."""

from registry.cli import main

main()
