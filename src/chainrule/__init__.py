"""Chainrule: fine-tune pretrained models on an ordinary computer, and know whether it helped."""

from chainrule.api import (
    check,
    check_gradients,
    evaluate,
    export,
    find_learning_rate,
    predict,
    reproduce,
    resume,
    serve,
    show,
    train,
)
from chainrule.core.artifact import Artifact, Run
from chainrule.core.recipe import Recipe, read_recipe
from chainrule.errors import ChainruleError
from chainrule.version import __version__

__all__ = [
    "Artifact",
    "ChainruleError",
    "Recipe",
    "Run",
    "__version__",
    "check",
    "check_gradients",
    "evaluate",
    "export",
    "find_learning_rate",
    "predict",
    "read_recipe",
    "reproduce",
    "resume",
    "serve",
    "show",
    "train",
]
