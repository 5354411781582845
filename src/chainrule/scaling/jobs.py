"""A command that is given outside a Ray cluster: submitted as a job, its words handed on, its exit code taken."""

from __future__ import annotations

import shlex
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from chainrule.core.engine import ADDRESS
from chainrule.errors import ChainruleError, LostError, Problem, UserError, Where
from chainrule.scaling.cluster import ANSWER_SECONDS
from chainrule.system.extras import require

PAUSE = 1.0
PATIENCE = 60.0  # seconds without an answer from a cluster that has taken the job
PORTS = {"http": 80, "https": 443}


def submit_command(words: Sequence[str], address: str, tell: Callable[[str], None]) -> int:
    """Have a cluster carry out `chainrule` with these words, in this folder, and wait for its end.

    Args:
        address: of the cluster's dashboard, http:// or https://.
        tell: takes what the command says, as it comes, stdout and stderr together.

    Returns:
        The command's exit code.

    Raises:
        MissingExtraError: Ray is not installed.
        UserError: the cluster cannot be reached, or takes no jobs.
        LostError: it no longer answers, or has lost the job.
    """
    client = _client(address)
    try:
        job = client.submit_job(entrypoint=entry_of(words, Path.cwd()))
    except Exception as error:  # Ray raises plain ones
        raise _unreachable(address, error) from error
    try:
        told = _follow(client, job, address, tell)
    except ChainruleError:
        raise
    except BaseException:  # Ctrl-C, SIGTERM: whoever waits no longer wants it
        with suppress(Exception):
            client.stop_job(job)
        raise
    if told.driver_exit_code is None:
        got = " ".join((told.message or str(told.status)).split())[:300]
        problem = Problem("a job that ends by itself", got, f"See: ray job logs --address {address} {job}")
        raise LostError(f"The job {job} is lost.", [problem])
    return int(told.driver_exit_code)


def entry_of(words: Sequence[str], folder: Path) -> str:
    """What the cluster's shell runs: the command in the folder where it was given, whose paths must mean the same."""
    unseen = (
        f"Error: The cluster does not see the folder of the command.\n  - {folder}: expected the folder where the "
        "command was given, under the same path on the machines of the cluster, got no such folder. Work in a folder "
        "that they share."
    )
    refuse = f"{{ echo {shlex.quote(unseen)} >&2; exit 2; }}"
    return f"cd {shlex.quote(str(folder))} 2>/dev/null || {refuse}; exec python -m chainrule {shlex.join(words)}"


def _client(address: str) -> Any:
    jobs = require("ray.job_submission", extra="ray", purpose="--engine ray")
    try:
        there = urlsplit(address)
        port = there.port or PORTS[there.scheme]
        socket.create_connection((there.hostname or "", port), timeout=ANSWER_SECONDS).close()
        return jobs.JobSubmissionClient(address)
    except Exception as error:  # Ray raises plain ones
        raise _unreachable(address, error) from error


def _follow(client: Any, job: str, address: str, tell: Callable[[str], None]) -> Any:
    """Hand on what the job says until it has ended; what Ray knows of it then.

    Raises:
        LostError: the cluster no longer answers.
    """
    seen, last = 0, time.monotonic()
    while True:
        try:
            told = client.get_job_info(job)  # before its log, so that the log of a job that has ended is whole
            log: str = client.get_job_logs(job)
        except Exception as error:
            if time.monotonic() - last > PATIENCE:
                todo = f"See whether it goes on: ray job status --address {address} {job}"
                problem = Problem("a cluster that answers", _line(error), todo, Where(field=ADDRESS))
                raise LostError("The Ray cluster no longer answers.", [problem]) from error
        else:
            last = time.monotonic()
            if len(log) > seen:
                tell(log[seen:])
                seen = len(log)
            if told.status.is_terminal():
                return told
        time.sleep(PAUSE)


def _unreachable(address: str, error: Exception) -> UserError:
    problem = Problem(
        where=Where(field=ADDRESS),
        expected="the address of a Ray cluster's dashboard, such as http://HEAD:8265",
        got=f"{address}: {_line(error)}",
        todo=f"Check `ray job list --address {address}`; the head must be started with ray[default]. Or unset "
        f"{ADDRESS} for workers on this machine.",
    )
    return UserError("The job cannot be submitted.", [problem])


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
