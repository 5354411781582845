"""The Hugging Face hub: whether it can be reached, and what to say when it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, get_session, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

from chainrule.errors import DataError, ModelError, Problem, Where
from chainrule.system.connections import causes, reason

PROBE_SECONDS = 5.0


def unreachable() -> str | None:
    """Why the hub cannot be reached, or None where it answers (with any status).

    One short request. Ask before loading a hub name: the hub's own client tries each file six times over more than
    20 seconds. Where the hub is unreachable, load with `local_files_only=True`: what was loaded before still works.
    """
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception as error:  # the hub's client has changed its HTTP library before; any failure is an answer here
        return reason(error)
    return None


def fetch(name: str, file: str, *, revision: str | None = None, offline: bool) -> Path | None:
    """A file of a model on the hub, in the hub's cache; None where the model has no such file.

    Args:
        revision: the commit; None for the newest, or offline the one that was fetched last.
        offline: use what is in the cache.

    Raises:
        OSError, ValueError: what the hub's client raises where it gets no answer or a refusal.
    """
    try:
        return Path(hf_hub_download(name, file, revision=revision, local_files_only=offline))
    except EntryNotFoundError:
        return None


def hub_error(name: str, error: BaseException, offline: Sequence[str] = ()) -> ModelError:
    """The error for a model of the hub that cannot be loaded: one line says why, and what works without the hub.

    Args:
        name: what the user asked for.
        error: what the loading code raised.
        offline: names of the catalog, which need no hub; without them the message points to the catalog.
    """
    got, todo = _explain("model", error)
    problem = Problem(
        where=Where(file=name, field="model.name"),
        expected="a model on the Hugging Face hub, in a local folder, or in the catalog",
        got=got,
        todo=todo,
    )
    choices = f"a local model folder, or {_names(offline)}"
    return ModelError(f"Cannot load the model {name!r}: {got}. Without the hub: {choices}.", [problem])


def hub_data_error(name: str, error: BaseException, offline: Sequence[str] = ()) -> DataError:
    """The same for a data set of the hub."""
    got, todo = _explain("data set", error)
    problem = Problem(
        where=Where(file=name, field="data.source"),
        expected="a data set on the Hugging Face hub, a local file or folder, or a name of the catalog",
        got=got,
        todo=todo,
    )
    choices = f"a local file or folder, or {_names(offline)}"
    return DataError(f"Cannot load the data set {name!r}: {got}. Without the hub: {choices}.", [problem])


def _explain(noun: str, error: BaseException) -> tuple[str, str]:
    """What went wrong and what to do about it."""
    chain = list(causes(error))
    if any(isinstance(cause, GatedRepoError) for cause in chain):
        return f"the hub's {noun} is gated", "Accept its terms on the hub and run: hf auth login"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in chain):
        return f"the hub has no such {noun}", "Check the spelling; if it is private, run: hf auth login"
    cut_off = unreachable()
    if cut_off is not None:
        return f"the Hugging Face hub cannot be reached ({cut_off})", "Check the network and HF_ENDPOINT."
    return f"it is on the hub but cannot be loaded ({reason(error)})", "Check which files it has on the hub."


def _names(offline: Sequence[str]) -> str:
    return "one of " + ", ".join(offline) if offline else "a name of `chainrule show catalog`"
