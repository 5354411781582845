"""Is what was made of a model still the same model? Outputs, answers and scores of both on the same rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from chainrule.core.artifact import Parity
from chainrule.core.task import LOWER_IS_BETTER, Predictions, Task
from chainrule.data.batch import by_length, collate
from chainrule.data.encode import Encoded
from chainrule.errors import GateError, Problem, RecipeError
from chainrule.evaluation.compare import judge
from chainrule.inference.predict import BATCH_TOKENS, Predictor, evaluating

PARENT = "before"
EXACT = 1e-3  # of the largest output; float32 in another order of sums leaves about 1e-6 of it
MADE_UP, LONGEST = 16, 48
Pairs = Iterable[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]
_NAMES = ("logits", "start_logits", "end_logits", "vectors")


@dataclass(frozen=True)
class Bound:
    """What a hand-over may cost.

    Attributes:
        distance: of outputs, as a share of the largest; None for any.
        agreement: the least share of rows of which both say the same; None for any.
        loss: the most that the score may fall, and the most that it may have fallen at the lower end of the 95 %
            interval of the difference; None for any.
        kept: the least share of the score before; None for any.
    """

    distance: float | None = None
    agreement: float | None = None
    loss: tuple[float, float] | None = None
    kept: float | None = None


SAME = Bound(distance=EXACT)
ROUNDED = Bound(distance=0.05)  # weights of eight or sixteen bits


@dataclass(frozen=True)
class Rows:
    """Real rows to compare on.

    Attributes:
        data: what they are of.
        inputs: field -> texts.
        encoded: the same as the model before reads them, with targets.
    """

    data: str
    inputs: Mapping[str, Sequence[str]]
    encoded: Encoded


def compare(before: Predictor, after: Predictor, rows: Rows) -> Parity:
    """Both models on the same rows.

    Of models that write, what differs is the loss of each row: logits are too many. Where the model after has another
    vocabulary, outputs are compared on the rows that both read as the same tokens.
    """
    task, targets, encoded, covered = before.task, rows.encoded.targets, rows.encoded, None
    other = encoded
    if not task.sees and _reading(before) != _reading(after):
        other = after.encode(rows.inputs, targets)
        covered = _read_alike(before, after, encoded, other)
    first, second = before.predict(encoded), after.predict(other)
    if task.writes:
        distance, largest = _farthest(first.losses, second.losses)
    else:
        alike = np.arange(len(encoded)) if covered is None else np.flatnonzero(covered)
        distance, largest = _distance(before, after, _batches(before, after, (encoded, other), alike))
    found = Parity(
        rows=len(first),
        data=rows.data,
        distance=distance,
        largest=largest,
        agreement=_agreement(task, first, second),
        covered=None if covered is None else float(covered.mean()),
    )
    scored = {} if targets is None else score_both(task, targets, first, second, before.artifact.manifest.labels)
    return found.model_copy(update=scored)


def _reading(predictor: Predictor) -> tuple[dict[str, int], list[str]]:
    """The vocabulary, and what a model is given of each token."""
    return predictor.tokenizer.get_vocab(), sorted(predictor.tokenizer.model_input_names)


def _read_alike(before: Predictor, after: Predictor, first: Encoded, second: Encoded) -> np.ndarray:
    """(n,) bool: of which rows both tokenizers make the same tokens."""
    alike = np.zeros(len(first), bool)
    for row in range(len(first)):
        place = np.array([row])
        told = (
            predictor.tokenizer.convert_ids_to_tokens(encoded.take(place).ids.tolist())
            for predictor, encoded in ((before, first), (after, second))
        )
        alike[row] = next(told) == next(told)
    return alike


def _farthest(first: np.ndarray | None, second: np.ndarray | None) -> tuple[float, float]:
    if first is None or second is None:
        raise ValueError("rows of models that write have targets")
    return float(np.abs(second - first).max()), float(np.abs(first).max())


def score_both(
    task: Task, targets: Any, first: Predictions, second: Predictions, labels: Sequence[str]
) -> dict[str, Any]:
    """The scores of predictions before and after, and their paired difference, as `Parity` has them."""
    metric = task.primary_metric
    scores, others, verdict, _ = judge(task, targets, second, {PARENT: first}, chosen=PARENT, labels=labels)
    return {
        "metric": metric,
        "before": others[PARENT][metric].value,
        "after": scores[metric].value,
        "difference": verdict.difference,
        "low": verdict.low,
        "high": verdict.high,
    }


def compare_made_up(before: Predictor, after: Predictor) -> Parity:
    """Both models on rows of tokens, or of pixels, that were drawn by chance: where no real ones are at hand.

    Raises:
        RecipeError: it reads one text and writes another, of which no such rows are made.
    """
    if before.task.head == "encoder-decoder":
        problem = Problem("rows to compare the two models on", "none", "Name them: --data DATA")
        raise RecipeError("This model cannot be compared with the one it was made from.", [problem])
    batches = list(_drawn(before))
    distance, largest = _distance(before, after, ((inputs, inputs) for inputs in batches))
    return Parity(rows=sum(len(next(iter(batch.values()))) for batch in batches), distance=distance, largest=largest)


NOT_KEPT = "it was not put in place"


def require(parity: Parity, bound: Bound, what: str, outcome: str = NOT_KEPT) -> None:
    """Refuse a model that is farther from the one before than it may be.

    Args:
        what: how the step is called in the message.
        outcome: what has become of the model.

    Raises:
        GateError: it is; the message has all that was measured.
    """
    problems = []
    if bound.distance is not None and not parity.distance <= bound.distance * max(parity.largest, bound.distance):
        wanted = f"outputs within {bound.distance:g} of the largest ({parity.largest:.4g})"
        problems.append(Problem(wanted, f"differences of up to {parity.distance:.4g}", "Report this."))
    if bound.agreement is not None and parity.agreement is not None and parity.agreement < bound.agreement:
        wanted = f"the same answer for at least {100 * bound.agreement:g} % of the rows"
        problems.append(Problem(wanted, f"{100 * parity.agreement:.2f} % of {parity.rows:,}", "Keep the model before."))
    if bound.kept is not None and parity.before is not None and parity.after is not None:
        least = bound.kept * parity.before
        if parity.after < least and parity.metric not in LOWER_IS_BETTER:
            wanted = f"{parity.metric} of at least {least:.4f}, {100 * bound.kept:g} % of {parity.before:.4f}"
            problems.append(Problem(wanted, f"{parity.after:.4f}", "Take a larger student, or train it for longer."))
        most = parity.before / bound.kept
        if parity.after > most and parity.metric in LOWER_IS_BETTER:
            wanted = f"{parity.metric} of at most {most:.4f}, {parity.before:.4f} divided by {bound.kept:g}"
            todo = "Take a larger student, train it for longer, or allow more: --kept."
            problems.append(Problem(wanted, f"{parity.after:.4f}", todo))
    if bound.loss is not None and parity.difference is not None:
        most, worst = bound.loss
        side = "higher" if parity.metric in LOWER_IS_BETTER else "lower"
        if parity.difference < -most:
            wanted = f"{parity.metric} at most {most:g} {side} than {parity.before:.4f}"
            problems.append(Problem(wanted, f"{parity.after:.4f}", "Allow more: --loss, or keep the model before."))
        if parity.low is not None and parity.low < -worst:
            wanted = f"{parity.metric} surely at most {worst:g} {side} (95 % interval of the difference)"
            got = f"{parity.low:+.4f} to {parity.high:+.4f} on {parity.rows:,} rows"
            problems.append(Problem(wanted, got, "Give more rows, or allow more: --loss."))
    if problems:
        raise GateError(f"{what} gave another model; {outcome}.", problems)


def _batches(before: Predictor, after: Predictor, encoded: tuple[Encoded, Encoded], alike: np.ndarray) -> Pairs:
    """What each model is given for these rows, batch by batch."""
    device = torch.device("cpu")
    for places in by_length(encoded[0].lengths[alike], BATCH_TOKENS):
        rows = alike[places]
        first, second = (
            collate(read, rows, pad_id=model.forward.pad_id, left=model.forward.pad_left, device=device).inputs
            for model, read in zip((before, after), encoded, strict=True)
        )
        yield first, second


def _distance(before: Predictor, after: Predictor, batches: Pairs) -> tuple[float, float]:
    """The largest difference between two outputs of the same name, where both read a token, and the largest output."""
    distance = largest = 0.0
    with torch.inference_mode(), evaluating(before.forward.model), evaluating(after.forward.model):
        for inputs, others in batches:
            first, second = _outputs(before, inputs), _outputs(after, others)
            mask = inputs.get("attention_mask")
            for name, output in first.items():
                read: Any = ...
                if mask is not None and name != "vectors" and output.shape[:2] == mask.shape:
                    read = mask.bool()  # what stands on padding is read by nobody
                wanted, got = output[read], second[name][read]
                finite = wanted.abs() < torch.finfo(torch.float32).max / 2  # some models mark what is no answer
                distance = max(distance, float((got - wanted).abs()[finite].max()))
                largest = max(largest, float(wanted[finite].abs().max()))
    return distance, largest


def _outputs(predictor: Predictor, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    device = predictor.forward.device
    with predictor.forward.autocast():
        output = predictor.forward.model(**{name: tensor.to(device) for name, tensor in inputs.items()})
    return {name: output[name].float().cpu() for name in _NAMES if output.get(name) is not None}


def _agreement(task: Task, first: Predictions, second: Predictions) -> float | None:
    """The share of rows of which both say the same; numbers and vectors are never quite the same."""
    if task.target.kind not in ("class", "classes"):
        return None
    same = np.asarray(first.values) == np.asarray(second.values)
    return float(same.reshape(len(same), -1).all(axis=1).mean())


def _drawn(predictor: Predictor) -> Iterator[dict[str, torch.Tensor]]:
    """Rows of chance as a model is given them: of several lengths, one batch padded."""
    generator = torch.Generator().manual_seed(0)
    tokenizer = predictor.tokenizer
    if predictor.task.sees:
        blank = np.zeros((8, 8, 3), np.uint8)
        shape = tokenizer(images=[blank], return_tensors="np")["pixel_values"].shape[1:]
        yield {"pixel_values": torch.randn(MADE_UP, *shape, generator=generator)}
        return
    longest = min(predictor.artifact.manifest.max_length, LONGEST)
    known = torch.tensor(sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)))
    for lengths in (torch.full((1,), longest), torch.randint(2, longest + 1, (MADE_UP - 1,), generator=generator)):
        width = int(lengths.max())
        ids = known[torch.randint(len(known), (len(lengths), width), generator=generator)]
        mask = (torch.arange(width) < lengths[:, None]).long()
        mask = mask.flip(1) if predictor.forward.pad_left else mask
        inputs = {"input_ids": torch.where(mask.bool(), ids, predictor.forward.pad_id), "attention_mask": mask}
        if "token_type_ids" in tokenizer.model_input_names:
            inputs["token_type_ids"] = torch.zeros_like(ids)
        yield inputs
