"""The verbs: each is one import and one call. Importing this package loads nothing heavy."""

from chainrule.api.checking import check, check_gradients
from chainrule.api.exporting import PARITY_ROWS, export
from chainrule.api.serving import serve
from chainrule.api.showing import SHOWN, show
from chainrule.api.training import find_learning_rate, reproduce, resume, train
from chainrule.api.using import evaluate, predict

__all__ = [
    "PARITY_ROWS",
    "SHOWN",
    "check",
    "check_gradients",
    "evaluate",
    "export",
    "find_learning_rate",
    "predict",
    "reproduce",
    "resume",
    "serve",
    "show",
    "train",
]
