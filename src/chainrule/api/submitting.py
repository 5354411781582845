"""Give a command to a cluster from outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chainrule.api.entry import set_environment


def submit(words: Sequence[str], address: str, tell: Callable[[str], None]) -> int:
    """Have the Ray cluster at `address` carry out a command of `chainrule`, and wait for its end.

    Args:
        words: of the command, after `chainrule`.
        tell: takes what it says, as it comes.

    Returns:
        Its exit code.

    Raises:
        UserError: the cluster cannot be reached, or takes no jobs.
        LostError: it no longer answers.
    """
    set_environment()
    from chainrule.scaling.jobs import submit_command

    return submit_command(words, address, tell)
