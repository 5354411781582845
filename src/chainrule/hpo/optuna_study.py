"""Optuna underneath: samplers, pruners, and the storage that several workers may share."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from chainrule.core.recipe import Section, unknown_name
from chainrule.core.study import DATABASE
from chainrule.errors import OutputError, Problem, Where
from chainrule.system.extras import require

SAMPLERS = ("tpe", "cmaes", "gp", "nsga2", "random")
PRUNERS = ("median", "hyperband", "none")
NAME = "chainrule"
STARTUP = 4  # trials that nothing is compared with
REDUCTION = 3


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


def open_study(folder: Path, settings: Settings, *, seed: int, most: int, metric: str, helper: int = 0) -> Any:
    """The study of a folder, made where there is none yet.

    Args:
        most: steps of a trial.
        helper: which of several processes on the same study this is; they draw apart.

    Raises:
        OutputError: the storage cannot be reached.
    """
    library = optuna()
    directions = ["maximize", "minimize", "minimize"] if settings.is_multiple else ["maximize"]
    url = settings.storage or f"sqlite:///{(folder / DATABASE).resolve()}"
    name = NAME if settings.storage is None else f"{NAME}-{folder.resolve().name}"
    with quietly():
        try:
            study = library.create_study(
                storage=url,
                pruner=_pruner(library, settings, most),
                study_name=name,
                directions=directions,
                load_if_exists=True,
            )
            made = len(study.get_trials(deepcopy=False))
        except Exception as error:  # each driver has errors of its own
            raise _unreachable(url, error) from error
        worker = 0 if settings.storage is None else zlib.crc32(str(folder.resolve()).encode())
        study.sampler = _sampler(library, settings.sampler, _drawn(seed, made, worker, *([helper] if helper else [])))
        if not made:
            study.set_metric_names([metric, "latency", "size"] if settings.is_multiple else [metric])
    return study


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
    hidden = url.partition("://")[0] + "://…" + url.rpartition("/")[2] if "@" in url else url
    problem = Problem(
        where=Where(field="storage"),
        expected="a database that Optuna can use, such as sqlite:///study.db or postgresql://USER@HOST/NAME",
        got=f"{hidden}: {str(error).partition(chr(10))[0][:200] or type(error).__name__}",
        todo="Check that it runs, its address and its driver; or leave --storage out for a file in the study's folder.",
    )
    return OutputError("The study cannot be kept there.", [problem])
