"""API keys: known by their hashes alone, and compared in the same time whatever is sent."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from dataclasses import dataclass
from pathlib import Path

from chainrule.errors import Problem, UserError, Where

VARIABLE = "CHAINRULE_API_KEYS"
SHORTEST = 16
_HASH = re.compile("sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Keys:
    """Who may ask.

    Attributes:
        digests: SHA-256 of each key. A key is drawn by chance and long, so no slow hash is needed.
    """

    digests: tuple[bytes, ...]

    def __bool__(self) -> bool:
        return bool(self.digests)

    def has(self, key: bytes) -> bool:
        """Whether this is one of them. Every key is compared, each in constant time."""
        given = hashlib.sha256(key).digest()
        return sum(hmac.compare_digest(given, known) for known in self.digests) > 0


def read_keys(file: Path | None) -> Keys:
    """The keys of a file, a line each, else those of the variable CHAINRULE_API_KEYS, separated by commas.

    A line is a key, or `sha256:` and the hash of one in hexadecimal; lines that begin with # are left out.

    Raises:
        UserError: the file cannot be read, has no key, or a key is short.
    """
    if file is None:
        lines, place = re.split(r"[\n,]", os.environ.get(VARIABLE, "")), VARIABLE
    else:
        try:
            lines, place = file.read_text(encoding="utf-8").splitlines(), str(file)
        except (OSError, UnicodeDecodeError) as error:
            problem = Problem("a text file with a key a line", str(error), "Correct the path.", Where(file=str(file)))
            raise UserError("The API keys cannot be read.", [problem]) from None
    found = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
    found = [(number, line) for number, line in found if line and not line.startswith("#")]
    short = [number for number, line in found if len(line) < SHORTEST]
    problems = [
        Problem(
            f"a key of at least {SHORTEST} characters",
            "a shorter one",
            'Draw one: python -c "import secrets; print(secrets.token_urlsafe(32))"',
            Where(file=place, line=number),
        )
        for number in short
    ]
    if file is not None and not found:
        problems = [Problem("a key a line", "none", "Write one into it.", Where(file=place))]
    if problems:
        raise UserError("The API keys cannot be used.", problems)
    return Keys(tuple(_digest(line) for _, line in found))


def _digest(line: str) -> bytes:
    known = _HASH.fullmatch(line)
    return bytes.fromhex(known[1]) if known else hashlib.sha256(line.encode()).digest()
