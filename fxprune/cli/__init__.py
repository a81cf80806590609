"""The command line: `fxprune compile | tune | report | bench | masks`."""

from fxprune.cli.commands import main

__all__ = ["main"]
