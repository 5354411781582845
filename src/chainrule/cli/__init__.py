"""The command line: one thin file per verb over `chainrule.api`; loads nothing heavy before a verb runs."""

from chainrule.cli.main import main

__all__ = ["main"]
