"""The readers under atheris: `python tests/faults/coverage_guided.py GROUP FOLDER INPUTS SEED`.

Each reader of the group is a process of its own, since libFuzzer ends the one it runs in. Inputs that reach new code
are kept and changed further. A crash ends it, with the input in FOLDER.
"""

from __future__ import annotations

import os
import random
import sys
import warnings
from collections import Counter
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["chainrule"], enable_loader_override=False):
    from chainrule.testing.hostile import PIECES, shares
    from chainrule.testing.readers import GROUPS

MOST_BYTES, MOST_SECONDS = 8_192, 60


def main(group: str, folder: Path, inputs: int, seed: int) -> int:
    """Attack every reader of a group; how many crashed."""
    failed = 0
    for target, share in shares(GROUPS[group](folder), inputs):
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            _attack(group, target.name, folder / f"{target.name}-guided", share, seed)
        failed += os.waitpid(child, 0)[1] != 0
    return failed


def _attack(group: str, name: str, home: Path, inputs: int, seed: int) -> None:
    """Never returns."""
    work, corpus = home / "work", home / "corpus"
    for path in (work, corpus):
        path.mkdir(parents=True)
    target = next(target for target in GROUPS[group](work) if target.name == name)
    for number, data in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(data[:MOST_BYTES])
    words = [piece for piece in PIECES if 0 < len(piece) <= 64]
    lines = ["".join(f"\\x{byte:02x}" for byte in piece) for piece in words]
    (home / "words").write_text("".join(f'"{line}"\n' for line in lines), encoding="ascii")
    outcomes: Counter[str] = Counter()

    def one(data: bytes) -> None:
        outcomes[target.outcome(data, random.Random(data))] += 1
        if sum(outcomes.values()) == inputs:
            told = ", ".join(f"{outcome} {count:,}" for outcome, count in sorted(outcomes.items()))
            print(f"seed {seed}, {inputs:,} guided inputs for {name}: {told}", flush=True)

    options = [
        f"-runs={inputs}",
        f"-seed={seed}",
        f"-max_len={MOST_BYTES}",
        f"-timeout={MOST_SECONDS}",
        "-rss_limit_mb=4096",
    ]
    options += [f"-dict={home / 'words'}", f"-artifact_prefix={home}/", "-verbosity=0", "-print_final_stats=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    warnings.simplefilter("error")
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
