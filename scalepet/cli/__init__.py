"""The command line.

Heavy libraries are imported by the command that needs them, so that help comes at once.
"""

from scalepet.cli.app import main

__all__ = ["main"]
