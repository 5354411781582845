"""Which of several artifacts answers, and which is asked beside it without its answer being given."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chainrule.errors import Problem, RecipeError, Where
from chainrule.serving.served import Served

_PART = re.compile(r"(.+?)=(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Routing:
    """Attributes:
    split: model -> the share of the requests that name no model, adding up to 1; empty for no split.
    shadows: model -> the model that is asked the same, after it has answered.
    """

    split: Mapping[str, float] = field(default_factory=dict)
    shadows: Mapping[str, str] = field(default_factory=dict)

    def model_for(self, request: str) -> str | None:
        """The model for a request by its id: the same one for the same id, whichever process is asked."""
        if not self.split:
            return None
        digest = hashlib.blake2b(request.encode("utf-8", "backslashreplace"), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64
        for name, share in self.split.items():
            place -= share
            if place < 0:
                return name
        return name


def read_routing(split: str | None, shadows: Sequence[str], models: Mapping[str, Served]) -> Routing:
    """What the command line says.

    Args:
        split: NAME=90,NAME=10, in any unit.
        shadows: MODEL=SHADOW each.

    Raises:
        RecipeError: it is something else, names a model that is not there, or joins models that do not answer alike.
    """
    shares: dict[str, float] = {}
    for part in (split or "").split(",") if split is not None else ():
        found = _PART.fullmatch(part.strip())
        if found is None or found[1] in shares:
            raise _refused("split", "NAME=90,NAME=10, each model once", split)
        shares[found[1]] = float(found[2])
    total = sum(shares.values())
    if shares and (len(shares) < 2 or total <= 0):
        raise _refused("split", "at least two models, and a share above 0", split)
    beside: dict[str, str] = {}
    for pair in shadows:
        name, equals, shadow = pair.partition("=")
        if not equals or name in beside or name == shadow:
            raise _refused("shadow", "MODEL=OTHER, each model once", pair)
        beside[name] = shadow
    for field_name, names in (("split", [*shares]), *(("shadow", [*pair]) for pair in beside.items())):
        _check(field_name, names, models)
    return Routing({name: share / total for name, share in shares.items()}, beside)


def _check(field_name: str, names: Sequence[str], models: Mapping[str, Served]) -> None:
    missing = [name for name in names if name not in models]
    if missing:
        raise _refused(field_name, f"models of this server: {', '.join(models)}", missing[0])
    kinds = {(models[name].task, models[name].predictor.artifact.manifest.inputs) for name in names}
    if len(kinds) > 1 or any(models[name].predictor.task.writes for name in names):
        raise _refused(field_name, "models of one task with the same fields that write no texts", ", ".join(names))


def _refused(field_name: str, expected: str, got: object) -> RecipeError:
    problem = Problem(expected, repr(got), f"Correct --{field_name}.", Where(field=field_name))
    return RecipeError("Requests cannot be shared out like that.", [problem])
