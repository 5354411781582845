"""How fast two models predict, in turn: the machine is shared, and its speed differs from one second to the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import torch

from chainrule.core.artifact import Artifact, Speed
from chainrule.data.batch import collate
from chainrule.errors import GateError, Problem
from chainrule.evaluation.parity import NOT_KEPT, Rows
from chainrule.inference.generate import Writing, ends_in, generated, held, lengths_of, settings_of
from chainrule.inference.predict import Predictor, load_predictor
from chainrule.inference.runtimes.decoder import Decoder
from chainrule.system.progress import Display

ROUNDS, SINGLE = 5, 8  # turns; rows one at a time in each of them
MOST_ROWS = 512
WRITTEN, TEXTS = 32, 8  # tokens of a text, and texts side by side, where writing is timed
FASTER, SLOWER = 1.1, 0.95  # times; turns differ by some hundredths


def speed_of(before: Artifact, after: Artifact, rows: Rows, display: Display) -> Speed:
    """Both models on the same rows, in the number formats they predict in.

    Of models that write, how fast they read, or, where the graph of one keeps what it has read, how fast they write.

    Args:
        rows: at most MOST_ROWS of them are read.
    """
    models = [load_predictor(artifact, device="cpu") for artifact in (before, after)]
    if any(isinstance(model.forward.model, Decoder) for model in models):
        return _of_writing(models, rows, display)
    count = min(MOST_ROWS, len(rows.encoded))
    if models[0].task.writes:  # what is written is among what they read
        read = [rows.encoded.take(np.arange(count))] * 2
    else:
        read = [model.encode({name: texts[:count] for name, texts in rows.inputs.items()}) for model in models]

    def seconds(place: int, some: np.ndarray) -> float:
        began = time.perf_counter()
        models[place].predict(read[place].take(some))
        return time.perf_counter() - began

    return _in_turn(seconds, count, SINGLE, display)


def _of_writing(models: Sequence[Predictor], rows: Rows, display: Display) -> Speed:
    """How fast both write WRITTEN tokens after the same prompts, whatever these tokens are."""
    count = min(TEXTS, len(rows.encoded))
    few = {name: texts[:count] for name, texts in rows.inputs.items()}
    config = models[0].forward.model.config.get_text_config()
    longest = min(WRITTEN, (getattr(config, "max_position_embeddings", None) or 2 * WRITTEN) // 2)
    how = Writing(max_new_tokens=longest)
    _, room = lengths_of(models[0].forward.model, how)
    prompts = [model.task.encode(model.tokenizer, few, None, room) for model in models]

    def seconds(place: int, some: np.ndarray) -> float:
        forward, tokenizer = models[place].forward, models[place].tokenizer
        model = held(forward)
        settings = settings_of(model, how, longest, ends_in(model, tokenizer), forward.pad_id)
        settings.min_new_tokens = longest
        given = collate(prompts[place], some, pad_id=forward.pad_id, left=True, device=forward.device).inputs
        given = {"attention_mask": torch.ones_like(given["input_ids"]), **given}
        began = time.perf_counter()
        with torch.inference_mode():
            generated(model, given, settings)
        return time.perf_counter() - began

    return _in_turn(seconds, count, 2, display).model_copy(update={"written": longest})


def _in_turn(seconds: Callable[[int, np.ndarray], float], count: int, single: int, display: Display) -> Speed:
    """Both models over `count` rows, all of them and one at a time, in ROUNDS turns.

    Args:
        seconds: what a model, 0 or 1, takes for these rows.
        single: rows one at a time in each turn.
    """
    many: list[list[float]] = [[], []]
    alone: list[list[float]] = [[], []]
    with display.bar("timing both models in turn", ROUNDS + 1) as bar:
        for turn in range(ROUNDS + 1):  # the first one warms up
            for place in range(2):
                whole = seconds(place, np.arange(count))
                each = [seconds(place, np.array([row])) for row in _spread(count, turn, single)]
                if turn:
                    many[place].append(whole)
                    alone[place] += each
            bar.advance(1)
    rates = [count / median(taken) for taken in many]
    waits = [1000 * median(taken) for taken in alone]
    slow = [1000 * float(np.quantile(taken, 0.95)) for taken in alone]
    return Speed(
        rows_per_second=(rates[0], rates[1]),
        milliseconds=(waits[0], waits[1]),
        threads=torch.get_num_threads(),
        p95=(slow[0], slow[1]),
    )


def require_faster(speed: Speed, what: str, outcome: str = NOT_KEPT) -> Speed:
    """Refuse a model that is not faster in one way, or that is slower in the other.

    Raises:
        GateError: it is.
    """
    if max(speed.many, speed.single) < FASTER or min(speed.many, speed.single) < SLOWER:
        wanted = f"{FASTER} times as fast with many rows or with one at a time, and not below {SLOWER} in the other"
        got = f"{speed.many:.2f} times with many rows, {speed.single:.2f} times with one at a time"
        todo = "Keep the model before, or allow it for its size: --allow-slower."
        problem = Problem(wanted, got, todo)
        raise GateError(f"{what} gave no faster model on this machine; {outcome}.", [problem])
    return speed


def _spread(rows: int, turn: int, wanted: int) -> list[int]:
    """Some rows from all over, others in each turn."""
    return [(turn + place * max(1, rows // wanted)) % rows for place in range(min(wanted, rows))]
