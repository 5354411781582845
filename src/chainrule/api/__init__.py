"""The verbs: each is one import and one call. Importing this package loads nothing heavy."""

from chainrule.api.checking import check, check_gradients
from chainrule.api.compressing import LOSS, WORST, compress
from chainrule.api.distilling import SHARE_KEPT, distill
from chainrule.api.exporting import PARITY_ROWS, export
from chainrule.api.merging import merge
from chainrule.api.planning import plan
from chainrule.api.searching import resume_search, search
from chainrule.api.serving import serve
from chainrule.api.showing import SHOWN, show
from chainrule.api.submitting import submit
from chainrule.api.targeting import plan_target, reach_target
from chainrule.api.training import find_learning_rate, reproduce, resume, train
from chainrule.api.using import evaluate, predict
from chainrule.api.watching import watch, watch_export, watch_summary

__all__ = [
    "LOSS",
    "PARITY_ROWS",
    "SHARE_KEPT",
    "SHOWN",
    "WORST",
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
    "reproduce",
    "resume",
    "resume_search",
    "search",
    "serve",
    "show",
    "submit",
    "train",
    "watch",
    "watch_export",
    "watch_summary",
]
