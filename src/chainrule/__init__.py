"""Chainrule: fine-tune pretrained models on an ordinary computer, and know whether it helped."""

from chainrule.api import (
    check,
    check_gradients,
    compress,
    distill,
    evaluate,
    export,
    find_learning_rate,
    merge,
    plan,
    plan_target,
    predict,
    reach_target,
    reproduce,
    resume,
    resume_search,
    search,
    serve,
    show,
    train,
    watch,
    watch_export,
    watch_summary,
)
from chainrule.core.artifact import Artifact, Run
from chainrule.core.engine import Engine
from chainrule.core.recipe import Recipe, read_recipe
from chainrule.core.study import Study
from chainrule.errors import ChainruleError
from chainrule.version import __version__

__all__ = [
    "Artifact",
    "ChainruleError",
    "Engine",
    "Recipe",
    "Run",
    "Study",
    "__version__",
    "check",
    "check_gradients",
    "compress",
    "distill",
    "evaluate",
    "export",
    "find_learning_rate",
    "merge",
    "plan",
    "plan_target",
    "predict",
    "reach_target",
    "read_recipe",
    "reproduce",
    "resume",
    "resume_search",
    "search",
    "serve",
    "show",
    "train",
    "watch",
    "watch_export",
    "watch_summary",
]
