"""What a recipe may say of the texts that a model writes when it is judged."""

from __future__ import annotations

from pydantic import Field

from chainrule.core.recipe import Section


class Generated(Section):
    """How much is written when the model is judged, and how.

    Attributes:
        generated: rows that are written for; 0 for none.
        beams: of the search for what is written; 1 takes the most likely token each time.
        max_new_tokens: a text is cut there; null for as many as `predict` has.
    """

    generated: int = Field(default=64, ge=0)
    beams: int = Field(default=1, ge=1, le=64)
    max_new_tokens: int | None = Field(default=None, ge=1)
