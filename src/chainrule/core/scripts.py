"""Scripts that are written without spaces between words: Thai, Lao, Burmese, Khmer, Japanese and Chinese."""

from __future__ import annotations

UNSPACED = (  # what stands between the brackets of a regular expression
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
