"""Optuna underneath: samplers, pruners, and the storage that several workers may share."""

from __future__ import annotations

import math
import re
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from chainrule.core.recipe import Section, unknown_name
from chainrule.core.study import DATABASE
from chainrule.errors import LostError, MissingExtraError, OutputError, Problem, Where
from chainrule.system.extras import require

SAMPLERS = ("tpe", "cmaes", "gp", "nsga2", "random")
PRUNERS = ("median", "hyperband", "none")
NAME = "chainrule"
STARTUP = 4  # trials that nothing is compared with
REDUCTION = 3
CONNECT_SECONDS = 10
TRIES = 5  # of making the tables, which several workers may begin at once


class Settings(Section):
    """How a search goes.

    Attributes:
        seconds: the budget of all of it.
        trials: at most; None for as many as there is time for.
        storage: an Optuna RDB URL; None for a file in the study's folder.
    """

    seconds: float
    trials: int | None = None
    sampler: str = "tpe"
    pruner: str = "median"
    storage: str | None = None

    @property
    def is_multiple(self) -> bool:
        """Whether quality, latency and size are weighed against each other."""
        return self.sampler == "nsga2"

    @property
    def shown_storage(self) -> str | None:
        """The storage as it may be read by anybody: without a password."""
        return None if self.storage is None else without_password(self.storage)


def optuna() -> Any:
    """The library.

    Raises:
        MissingExtraError: it is not installed.
    """
    library = require("optuna", extra="search", purpose="search")
    library.logging.set_verbosity(library.logging.WARNING)
    return library


def refuse_names(settings: Settings) -> None:
    """Make sure that there are such a sampler and such a pruner.

    Raises:
        RecipeError: there are not.
        MissingExtraError: the sampler's library is not installed.
    """
    if settings.sampler not in SAMPLERS:
        raise unknown_name("sampler", settings.sampler, SAMPLERS, "sampler")
    if settings.pruner not in PRUNERS:
        raise unknown_name("pruner", settings.pruner, PRUNERS, "pruner")
    if settings.sampler == "cmaes":
        require("cmaes", extra="search", purpose="The sampler 'cmaes'")


def open_study(
    folder: Path, settings: Settings, *, seed: int, most: int, metric: str, who: str, helper: int = 0
) -> Any:
    """The study of a folder, made where there is none yet.

    Args:
        most: steps of a trial.
        who: what tells this search from others on the same storage; they draw apart.
        helper: which of several processes of this search this is; they draw apart, too.

    Raises:
        OutputError: the storage cannot be reached.
        MissingExtraError: the driver of PostgreSQL is not installed.
    """
    library = optuna()
    directions = ["maximize", "minimize", "minimize"] if settings.is_multiple else ["maximize"]
    url = settings.storage or f"sqlite:///{(folder / DATABASE).resolve()}"
    name = NAME if settings.storage is None else f"{NAME}-{folder.resolve().name}"
    with quietly():
        try:
            study = library.create_study(
                storage=_storage(library, url),
                pruner=_pruner(library, settings, most),
                study_name=name,
                directions=directions,
                load_if_exists=True,
            )
            made = len(study.get_trials(deepcopy=False))
        except MissingExtraError:
            raise
        except Exception as error:  # each driver has errors of its own
            raise _unreachable(url, error) from error
        worker = 0 if settings.storage is None else zlib.crc32(who.encode())
        study.sampler = _sampler(library, settings.sampler, _drawn(seed, made, worker, *([helper] if helper else [])))
        if not made:
            study.set_metric_names([metric, "latency", "size"] if settings.is_multiple else [metric])
    return study


def _storage(library: Any, url: str) -> Any:
    """Where the trials are kept.

    Raises:
        MissingExtraError: the driver of PostgreSQL is not installed.
    """
    how: dict[str, Any] = {}
    if url.startswith(("postgresql://", "postgresql+psycopg://")):
        require("psycopg", extra="postgresql", purpose="A study in PostgreSQL")
        how = {"pool_pre_ping": True, "connect_args": {"connect_timeout": CONNECT_SECONDS}}
    for left in reversed(range(TRIES)):
        try:
            return library.storages.RDBStorage(url, engine_kwargs=how)
        except Exception as error:
            raced = type(error).__name__ in ("IntegrityError", "ProgrammingError", "OperationalError")
            if not left or not raced or "already exists" not in str(error):  # made by another worker meanwhile
                raise
            time.sleep(0.2)
    raise AssertionError("the last try returns or raises")


@contextmanager
def reachable(settings: Settings, folder: Path) -> Iterator[None]:
    """Inside, a database that no longer answers becomes an error of ours.

    Raises:
        LostError: it does not.
    """
    library = optuna()
    drivers = require("sqlalchemy.exc", extra="search", purpose="search")
    try:
        yield
    except (library.exceptions.StorageInternalError, drivers.DBAPIError) as error:
        url = settings.storage or f"sqlite:///{(folder / DATABASE).resolve()}"
        problem = Problem(
            where=Where(field="storage"),
            expected="a database that answers until the end",
            got=f"{without_password(url)}: {_line(url, error.__cause__ or error)}",
            todo=f"See that it runs; trials that had ended are kept. Go on with: chainrule search --resume {folder}",
        )
        raise LostError("The database of the study no longer answers.", [problem]) from error


@contextmanager
def quietly() -> Iterator[None]:
    """Without Optuna's warnings about what is experimental, and about samplers that leave choices to another."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def rungs(most: int, pruner: str) -> list[int]:
    """The steps after which a trial is scored: short first, each time three times as long."""
    if pruner == "none":
        return [most]
    found = {math.ceil(most / REDUCTION**power) for power in range(3)}
    return sorted(found)


def _drawn(*known: int) -> int:
    """A seed that is another one after each interruption and for each worker, so that none proposes what was tried."""
    return int(np.random.SeedSequence(known).generate_state(1)[0])


def _sampler(library: Any, name: str, seed: int) -> Any:
    made = library.samplers
    with quietly():
        if name == "cmaes":
            return made.CmaEsSampler(seed=seed, n_startup_trials=STARTUP, warn_independent_sampling=False)
        if name == "gp":
            return made.GPSampler(seed=seed, n_startup_trials=STARTUP, warn_independent_sampling=False)
        if name == "nsga2":
            return made.NSGAIISampler(seed=seed, population_size=8)
        return (
            made.RandomSampler(seed=seed) if name == "random" else made.TPESampler(seed=seed, n_startup_trials=STARTUP)
        )


def _pruner(library: Any, settings: Settings, most: int) -> Any:
    made = library.pruners
    if settings.is_multiple or settings.pruner == "none":
        return made.NopPruner()
    if settings.pruner == "hyperband":
        return made.HyperbandPruner(
            min_resource=rungs(most, "hyperband")[0], max_resource=most, reduction_factor=REDUCTION
        )
    return made.MedianPruner(n_startup_trials=STARTUP)


def _unreachable(url: str, error: Exception) -> OutputError:
    problem = Problem(
        where=Where(field="storage"),
        expected="a database that Optuna can use, such as sqlite:///study.db or postgresql://USER@HOST/NAME",
        got=f"{without_password(url)}: {_line(url, error)}",
        todo="Check that it runs, its address and its driver; or leave --storage out for a file in the study's folder.",
    )
    return OutputError("The study cannot be kept there.", [problem])


def without_password(url: str) -> str:
    """A database's URL as it may be shown: its scheme, user, host and name."""
    engine = require("sqlalchemy.engine", extra="search", purpose="search")
    try:
        known = engine.make_url(url)
    except Exception:  # what cannot be read may hold a password anywhere
        return f"{url.partition(':')[0]}://…"
    if known.host is not None and "@" in known.host + (known.database or ""):  # of a password that was not quoted
        return f"{known.drivername}://…"
    return str(known.set(query={}).render_as_string(hide_password=True))


def has_password(url: str | None) -> bool:
    """Whether a database's URL may hold a password."""
    return url is not None and without_password(url) != url


def _line(url: str, error: BaseException) -> str:
    """What a driver says, in a line that does not repeat a password."""
    words = str(error).partition("\n")[0]
    if words == "" or _secret_in(url, words):
        return type(error).__name__
    return words[:200]


def _secret_in(url: str, words: str) -> bool:
    """Whether a text repeats a password."""
    shown = without_password(url)
    if shown.endswith("://…"):  # it may be anywhere in there
        hidden = [part for part in re.split(r"[:/@?&=]+", url) if len(part) > 2]
    else:
        hidden = re.findall(r"(?<=//)[^/]*?:(.*)@", url) + re.findall(r"pass\w*=([^&]+)", url)
    return any(part in words or unquote(part) in words for part in hidden)
