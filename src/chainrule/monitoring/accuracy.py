"""How often a model is right: counted from feedback, and estimated from its confidence where there is none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest, norm

from chainrule.errors import Problem, UserError, Where
from chainrule.monitoring.reference import Reference
from chainrule.monitoring.store import Store

LEVEL = 0.95


class UnknownIdError(UserError):
    """Feedback on a prediction that is not there."""


@dataclass(frozen=True)
class Share:
    """A share with its 95 % interval (Wilson's, of counts)."""

    value: float
    low: float
    high: float
    rows: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def take_feedback(
    store: Store, labels: Mapping[str, Sequence[str]], name: str, given: Sequence[str], now: float
) -> dict[str, Any]:
    """Keep what a prediction should have been; a second word on the same prediction replaces the first.

    Args:
        labels: of each model.
        name: the `id` of the prediction.
        given: the true labels.

    Returns:
        What the model had said, and whether that was right.

    Raises:
        UnknownIdError: no such prediction is kept.
        UserError: the model has no such label, or none at all.
    """
    found = store.one("SELECT model, labels, score FROM predictions WHERE id = ?", (name[:500],))
    if found is None:
        todo = "Send the `id` that stands beside a prediction; the oldest ones are given up (--monitor-rows)."
        problem = Problem("the id of a prediction that is kept", repr(name[:80]), todo, Where(field="id"))
        raise UnknownIdError("There is no such prediction.", [problem])
    model, predicted, score = found
    known = labels.get(model, ())
    wrong = [label for label in given if label not in known]
    if wrong or not known:
        expected = f"one of {', '.join(known[:50])}" if known else "feedback on a model that predicts labels"
        got = repr(wrong[0][:80]) if known else f"{model}, which has none"
        problem = Problem(expected, got, "Correct the label." if known else "Leave it out.", Where(field="label"))
        raise UserError(
            f"The model {model} has no such label." if known else "There is no label to correct.", [problem]
        )
    said = json.loads(predicted)
    with store.writing():
        replaced = store.run("DELETE FROM feedback WHERE id = ?", (name,))
        store.run(
            "INSERT INTO feedback (id, time, model, labels, predicted, score) VALUES (?, ?, ?, ?, ?, ?)",
            (name, now, model, json.dumps(sorted(set(given)), ensure_ascii=False), predicted, score),
        )
    right = sorted(set(said)) == sorted(set(given))
    return {"id": name, "model": model, "predicted": said, "correct": right, "replaced": bool(replaced)}


def accuracy_of(store: Store, model: str) -> dict[str, Any]:
    """The accuracy that feedback shows: in all, and of the rows for which each label was predicted."""
    whole: list[bool] = []
    by_label: dict[str, list[bool]] = {}
    for given, predicted in store.all("SELECT labels, predicted FROM feedback WHERE model = ?", (model,)):
        said = json.loads(predicted)
        right = sorted(set(said)) == sorted(set(json.loads(given)))
        whole.append(right)
        for label in said:
            by_label.setdefault(label, []).append(right)
    return {
        "rows": len(whole),
        "accuracy": share_of(whole).as_dict() if whole else None,
        "by_predicted_label": {label: share_of(found).as_dict() for label, found in sorted(by_label.items())},
    }


def share_of(right: Sequence[bool]) -> Share:
    """A share of rows with Wilson's interval."""
    found = binomtest(sum(right), len(right)).proportion_ci(LEVEL, method="wilson")
    return Share(sum(right) / len(right), float(found.low), float(found.high), len(right))


def estimated(reference: Reference, counts: Sequence[float]) -> Share | None:
    """The accuracy that confidences promise: the mean of the accuracy that rows as confident had on validation.

    Sound only while a confidence means what it meant on validation (Guillory et al., 2021, compare such estimates;
    they break when the relation of texts and labels changes). The interval holds the chance of both samples, not that.

    Args:
        counts: rows in each bin of the reference's scores.
    """
    accuracies, now = reference.accuracies(), np.asarray(counts, float)
    rows = now.sum()
    if accuracies is None or reference.scores is None or not rows:
        return None
    shares, before = now / rows, np.asarray(reference.scores.counts, float)
    value = float(shares @ accuracies)
    spread = float((shares**2) @ (accuracies * (1 - accuracies) / (before + 1)))
    spread += float((shares @ (accuracies - value) ** 2) / rows)
    reach = float(norm.isf((1 - LEVEL) / 2)) * spread**0.5
    return Share(value, max(0.0, value - reach), min(1.0, value + reach), round(rows))


def thresholded(reference: Reference, above: float, rows: float) -> float | None:
    """The accuracy by "average thresholded confidence" (Garg et al., ICLR 2022): the share of confident rows."""
    return None if reference.threshold is None or rows <= 0 else above / rows


def estimate(store: Store, model: str, number: int, reference: Reference) -> None:
    """Write the estimates of a window beside its counts."""
    found = store.all(
        "SELECT kind, name, value FROM counts WHERE model = ? AND number = ? AND kind IN ('score', 'above', 'rows')",
        (model, number),
    )
    values = {(kind, name): value for kind, name, value in found}
    if reference.scores is None or not values.get(("rows", "")):
        return
    bins = [values.get(("score", str(place)), 0.0) for place in range(len(reference.scores.counts))]
    share = estimated(reference, bins)
    told = {"confidence": None if share is None else share.value}
    told["threshold"] = thresholded(reference, values.get(("above", ""), 0.0), sum(bins))
    store.run_many(
        "INSERT OR REPLACE INTO counts VALUES (?, ?, 'estimate', ?, ?)",
        [(model, number, name, value) for name, value in told.items() if value is not None],
    )
