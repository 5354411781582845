"""Files that are not what they should be: good ones, changed at random, and what becomes of those who read them.

A reader may end in success or in a ChainruleError that says where; anything else is a crash.
"""

from __future__ import annotations

import json
import random
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from chainrule.errors import ChainruleError

MOST = 60_000  # bytes of a changed file
PIECES = (
    *(
        b"",
        b'"',
        b"'",
        b"\0",
        b"\r",
        b"\n",
        b"\t",
        b",",
        b": ",
        b"- ",
        b"[",
        b"]",
        b"{",
        b"}",
        b"|",
        b"\\",
        b"%",
        b"&a ",
    ),
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", "文本".encode("gbk"), "你\u2028\x1b[31m".encode(), b"\\ud800"),
    *(
        b"null",
        b"true",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"-1",
        b"0",
        b"1.5",
        b"9" * 40,
        b"9" * 5_000,
        b"0x" + b"f" * 99,
    ),
    *(b"[" * 300, b'{"a":' * 300, b"]" * 300, b"[[]]", b'{"a": {}}', b'["a", null, 3]', b'"\\ud800"', b"*a", b"<<: *a"),
    *(b"../../x", b"/etc/hostname", b"C:\\x", b"<script>alert(1)</script>", b"\n---\n", b"{{ 7 * 7 }}", b"%s%n"),
    *(b"!!python/object/apply:os.abort []", b"!!binary x", b"!!timestamp x", b"2001-99-99", b"1:99:99", b"~", b"? "),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 64, 10**6, 10**9, 2**31, 2**63, 10**30, 0.5, -1.5, 1e308, 1e-300),
    *(
        float("nan"),
        float("inf"),
        "",
        "x",
        "float16",
        "../x",
        "/etc/hostname",
        "\ud800",
        "\0",
        "<b>",
        "a/b",
        "os.system",
    ),
    *([], {}, [1], ["a"], [[]], {"a": 1}, {"0": "a", "1": "a"}, [None] * 9, "9" * 5_000, "a" * 20_000),
)


@dataclass(frozen=True)
class Target:
    """A reader and what it reads.

    Attributes:
        seeds: good files.
        read: takes a file's bytes, and a generator for all that can be chosen beside them.
        cost: how many times longer it takes than a short one; it gets so many times fewer inputs.
    """

    name: str
    seeds: tuple[bytes, ...]
    read: Callable[[bytes, random.Random], None]
    cost: int = 1

    def input(self, seed: str) -> tuple[bytes, random.Random]:
        """The changed file of a seed, and the generator for the rest of the choices."""
        choose = random.Random(f"{self.name}/{seed}")
        return changed(self.seeds, choose), choose

    def outcome(self, data: bytes, choose: random.Random) -> str:
        """Read it: "success", or the name of the ChainruleError.

        Raises:
            Exception: any other, which is a crash; AssertionError for an error that does not say where.
        """
        try:
            self.read(data, choose)
        except ChainruleError as error:
            name, told = type(error).__name__, error
        else:
            return "success"
        assert any(str(problem.where) for problem in told.problems), f"no place: {told}"
        assert json.dumps(told.as_dict())
        return name


def changed(seeds: Sequence[bytes], choose: random.Random) -> bytes:
    """One of the seeds with a few changes: bits, bytes, spans cut, repeated, exchanged, or replaced by PIECES.

    Of a JSON document every third one stays one: some of its values are others then.
    """
    data = bytearray(choose.choice(seeds))
    if data.startswith((b"{", b"[")) and choose.random() < 0.33:
        with suppress(ValueError):  # lines of JSON
            document = json.loads(data)
            for _ in range(choose.choice((1, 1, 2, 4))):
                document = _other(document, choose)
            return json.dumps(document).encode()
    for _ in range(choose.choice((1, 1, 2, 3, 5, 9))):
        kind, start = choose.randrange(10), choose.randrange(len(data) + 1)
        end = min(len(data), start + choose.choice((0, 1, 2, 4, 16, 64, len(data))))
        if kind == 0 and data:
            data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
        elif kind == 1:
            data[start:end] = choose.randbytes(choose.choice((1, 2, 8)))
        elif kind == 2:
            del data[start:end]
        elif kind == 3:
            data[start:start] = data[start:end] * choose.choice((1, 2, 7))
        elif kind == 4:
            other = choose.choice(seeds)
            place = choose.randrange(len(other) + 1)
            data[start:end] = other[place : place + choose.choice((4, 32, len(other)))]
        elif kind == 5:
            del data[start:]
        elif kind == 6 and b'"' in data[start:]:  # a whole quoted text, or a number, stays one value in JSON
            first = data.index(b'"', start)
            last = data.find(b'"', first + 1)
            data[first : last + 1] = choose.choice(PIECES)
        else:
            data[start : end if kind == 7 else start] = choose.choice(PIECES)
        del data[MOST:]
    return bytes(data)


def _other(value: Any, choose: random.Random) -> Any:
    """A JSON value with one value somewhere inside it replaced, left out, or put elsewhere."""
    if not isinstance(value, dict | list) or not value or choose.random() < 0.1:
        return choose.choice(VALUES)
    if isinstance(value, list):
        place = choose.randrange(len(value))
        return [*value[:place], _other(value[place], choose), *value[place + choose.choice((0, 1, 1, 1)) :]]
    key = choose.choice(list(value))
    action = choose.randrange(8)
    if action == 0:
        return {name: inner for name, inner in value.items() if name != key}
    if action == 1:
        return value | {choose.choice(list(value)): value[key]}
    if action == 2:
        return value | {choose.choice(("", "x", "auto_map", "../x", "\ud800")): choose.choice(VALUES)}
    return value | {key: _other(value[key], choose)}


@dataclass
class Tally:
    """How often a target ended in what, and every crash with its place in the code, once."""

    outcomes: Counter[str] = field(default_factory=Counter)
    crashes: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return ", ".join(f"{name} {count:,}" for name, count in sorted(self.outcomes.items()))


def attack(target: Target, inputs: int, seed: int) -> Tally:
    """Read `inputs` changed files; the same seed gives the same files."""
    tally = Tally()
    for number in range(inputs):
        data, choose = target.input(f"{seed}/{number}")
        try:
            tally.outcomes[target.outcome(data, choose)] += 1
        except BaseException as error:  # Rust panics are no Exceptions
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            tally.outcomes["crash"] += 1
            place = traceback.extract_tb(error.__traceback__)[-1]
            key = f"{type(error).__name__} at {place.filename}:{place.lineno}"
            tally.crashes.setdefault(key, f"{target.name} {seed}/{number}: {error!r:.300} for {data!r:.300}")
    return tally


def shares(targets: Sequence[Target], inputs: int) -> Iterator[tuple[Target, int]]:
    """Each target with its share of the inputs, by its cost, at least one."""
    whole = sum(1 / target.cost for target in targets)
    for target in targets:
        yield target, max(1, round(inputs / target.cost / whole))
