"""The Report: what `check` and `evaluate` found, as frozen data that turns into JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from chainrule.errors import Problem


class Report(BaseModel):
    """Base of all reports."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    def as_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)


class Finding(Report):
    """One kind of thing that was noticed in the data, with the rows it concerns.

    Attributes:
        kind: a stable short name ("empty-text", "duplicate-input", …).
        severity: "error" stops, "warning" does not, "info" is for the record.
        rows: up to 50 data row numbers (1-based); `count` is the true number.
    """

    kind: str
    severity: str
    message: str
    todo: str = ""
    split: str | None = None
    file: str | None = None
    count: int = 0
    rows: tuple[int, ...] = ()


class SplitSummary(Report):
    """Size and make-up of one split."""

    rows: int
    file: str | None
    labels: dict[str, int] = Field(default_factory=dict)
    lengths: dict[str, float] = Field(default_factory=dict)


class Rendering(Report):
    """One row as the model reads it; what is learned of it stands between ⟦ and ⟧."""

    split: str
    row: int
    text: str


class CheckReport(Report):
    """What `check` found. `problems` are the errors, row by row; `findings` the summary by kind."""

    task: str
    source: str
    fields: dict[str, str]
    splits: dict[str, SplitSummary]
    labels: tuple[str, ...]
    findings: tuple[Finding, ...]
    problems: tuple[Problem, ...] = Field(default=(), exclude=True)
    cut: dict[str, Any] | None = None
    max_length: int | None = None
    examples: tuple[Rendering, ...] = ()

    @property
    def ok(self) -> bool:
        return not any(finding.severity == "error" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        return super().as_dict() | {"ok": self.ok, "problems": [problem.as_dict() for problem in self.problems]}


class Estimate(Report):
    """A value with its 95 % interval (bootstrap over rows)."""

    value: float
    low: float
    high: float


class Verdict(Report):
    """Whether the model is better than the best cheap baseline, on the primary metric, over the same rows.

    `difference`, `low` and `high` are model minus baseline in the metric's own unit (rmse: baseline minus model,
    so that positive always means better). The statement is about this trained model, not about other seeds.
    """

    text: str
    baseline: str | None = None
    better: bool = False
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None


class EvaluationReport(Report):
    """What `evaluate` found."""

    artifact: str
    task: str
    data: str
    split: str | None
    metrics: dict[str, Estimate]
    primary_metric: str
    baselines: dict[str, dict[str, Estimate]] = Field(default_factory=dict)
    verdict: Verdict
    rows: int
    limit: int | None = None
    detail: dict[str, Any] = Field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


class RateReport(Report):
    """What `find-lr` saw: the loss at learning rates that grow from step to step.

    Attributes:
        learning_rates: of each step that was made.
        losses: of those steps.
        smoothed: the losses, each the mean of those around it.
        steepest: the learning rate at which the smoothed loss fell the fastest; null where it never fell.
        lowest: the learning rate at which it was lowest.
        suggestion: a tenth of that.
        stopped: why no higher ones were tried.
    """

    task: str
    model: str
    strategy: str
    data: str
    learning_rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    steepest: float | None
    lowest: float | None
    suggestion: float | None
    stopped: str


class Reproduction(Report):
    """What came of making a run again.

    Attributes:
        run: the folder of the first.
        again: the folder of the second.
        same: weights and events are the same to the last bit.
        same_weights: of the artifacts, by their SHA-256.
        events: how many the first has, those of one process alone aside.
        difference: the first event that differs: {"step", "event", "key", "first", "second"}; None where none does.
        metrics: name -> {"first", "second"}, on validation.
        changed: what is not as it was when the first run began, of its environment.json.
    """

    run: str
    again: str
    same: bool
    same_weights: bool
    events: int
    difference: dict[str, Any] | None
    metrics: dict[str, dict[str, float]]
    changed: tuple[str, ...]


class Derivative(Report):
    """The derivative of one call of a module with respect to one thing, by autograd and by differences.

    Attributes:
        place: of the call among all calls of the model, and of the last call inside it.
        module: its name in the model, "" for the model itself; `kind` is its class.
        call: which call of this module, from 1 on.
        format: the number format in which autograd worked.
        wrt: an argument or a parameter by name, or all parameters of the modules inside; "" for all of it.
        error: the greatest in any direction, in units of the derivative; None where there is none to tell.
        outcome: "undecided" where the outputs are not smooth, or the call cannot be made again as it was.
        reason: what is wrong or undecided, in words; "" where it is right.
    """

    place: tuple[int, int] = Field(exclude=True)
    module: str
    kind: str
    call: int
    format: str
    wrt: str
    error: float | None
    outcome: Literal["right", "wrong", "undecided"]
    reason: str = ""

    @property
    def text(self) -> str:
        """All of it on one line."""
        again = f", call {self.call}" if self.call > 1 else ""
        thing = f", with respect to {self.wrt}" if self.wrt else ""
        error = f", error {self.error:.2g}" if self.error is not None else ""
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.module or 'the model itself'} ({self.kind}){again}{thing}{reason} ({self.format}{error})"


class KindErrors(Report):
    """The derivatives of all modules of one class: their number, and the greatest error in each number format."""

    kind: str
    modules: int
    derivatives: int
    errors: dict[str, float | None]


class GradientReport(Report):
    """What `check_gradients` found. It is all right where nothing is wrong and something could be judged.

    Attributes:
        tolerances: the error that is allowed, for each number format that was looked at.
        wrong: of modules in which no smaller part is wrong, in the order of the forward.
        around: the modules that are wrong, and have a wrong one inside.
        undecided: could not be judged.
        worst: the greatest errors of those that are right, a few for each format.
    """

    model: str
    text: str
    modules: int
    derivatives: int
    tolerances: dict[str, float]
    wrong: tuple[Derivative, ...]
    around: tuple[str, ...]
    undecided: tuple[Derivative, ...]
    kinds: tuple[KindErrors, ...]
    worst: tuple[Derivative, ...]

    @property
    def ok(self) -> bool:
        return not self.wrong and len(self.undecided) < self.derivatives

    def as_dict(self) -> dict[str, Any]:
        return super().as_dict() | {"ok": self.ok}
