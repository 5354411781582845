"""One file per way to make a fine-tuned model smaller or faster."""

from __future__ import annotations

from collections.abc import Mapping

from chainrule.compressors.int8 import Int8
from chainrule.compressors.int8 import Options as Int8Options
from chainrule.compressors.pruning import Options as PruningOptions
from chainrule.compressors.pruning import Prune
from chainrule.compressors.sparse import Options as SparseOptions
from chainrule.compressors.sparse import Sparse
from chainrule.compressors.vocabulary import Options as VocabularyOptions
from chainrule.compressors.vocabulary import Vocabulary
from chainrule.compressors.weight_only import Int4
from chainrule.compressors.weight_only import Options as Int4Options
from chainrule.core.shelf import Entry

COMPRESSORS: Mapping[str, Entry] = {
    "int8": Entry(
        Int8Options,
        Int8,
        "weights and activations of matrix products in eight bits, of models that write weights alone; run by OpenVINO",
    ),
    "int4": Entry(Int4Options, Int4, "weights of a model that writes in four bits, run by OpenVINO"),
    "vocabulary": Entry(VocabularyOptions, Vocabulary, "only the tokens that the data needs; the same answers on them"),
    "prune": Entry(
        PruningOptions, Prune, "fewer layers, neurons and, where the result loads, heads; then a short training"
    ),
    "sparse": Entry(SparseOptions, Sparse, "small weights set to zero; neither faster nor smaller here"),
}
