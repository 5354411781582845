"""The search for a target: prune, or teach a student, then a smaller vocabulary, then integers of eight bits.

Each candidate is an ordinary artifact with its lineage. What goes on is decided on validation rows; the test rows are
asked once, of the candidate that is chosen. Of shares to prune, and of sizes of students, those are tried in turn that
ask for more while the score holds, and for less where the first does not hold.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chainrule.compressors.base import Compressor, Given
from chainrule.compressors.int8 import Int8
from chainrule.compressors.int8 import Options as Int8Options
from chainrule.compressors.pruning import Options as PruningOptions
from chainrule.compressors.pruning import Prune
from chainrule.compressors.students import TRIAL_STEPS, train_student, with_step
from chainrule.compressors.vocabulary import Options as VocabularyOptions
from chainrule.compressors.vocabulary import Vocabulary
from chainrule.core.artifact import MANIFEST, Artifact, Manifest, Parity, Speed, Step
from chainrule.core.target import Candidate, Expected, Target, TargetReport, frontier_of
from chainrule.errors import GateError, UserError
from chainrule.evaluation.card import model_card
from chainrule.evaluation.footprint import footprint_of
from chainrule.evaluation.handover import Written, hand_over
from chainrule.evaluation.parity import EXACT, Bound, Rows, compare, require
from chainrule.evaluation.speed import speed_of
from chainrule.inference.predict import Predictor, load_predictor
from chainrule.models.adapters import plain_model
from chainrule.models.inspect import layer_stack
from chainrule.models.narrowing import anchors_of
from chainrule.system.files import read_json, write_json, write_text
from chainrule.system.progress import Display
from chainrule.training.distillation import KINDS
from chainrule.training.run import resume_run

ITSELF = "as it is"
SHARES = (0.3, 0.5, 0.6, 0.7, 0.8)
CHOICES = 3.0  # of what stays, that are tried for a short time
LONGER = 2.0  # times the epochs, of a student
CANDIDATES = "candidates"
TRAINED = ("prune", "student")  # how the names of steps begin that take a training
Make = Callable[[Artifact, Path], Artifact]


@dataclass(frozen=True)
class Material:
    """What a search is given.

    Attributes:
        parent: the model itself, in float32.
        source: where the rows are, or an object that holds them.
        seen, judged: validation rows, and test rows.
        given: what compressors may look at.
        options: of pruning, beside its share; `epochs` counts for students, too.
    """

    parent: Predictor
    source: Any
    seen: Rows
    judged: Rows
    given: Given
    options: Mapping[str, Any]

    @property
    def artifact(self) -> Artifact:
        """The model itself."""
        return self.parent.artifact


def expected(material: Material, target: Target, spent: Mapping[str, Any]) -> list[Expected]:
    """The steps that may be taken, and about how long each will take.

    Args:
        spent: the summary of the model's own run; empty where it does not lie in one.
    """
    steps, seconds = int(spent.get("steps") or 0), float(spent.get("seconds") or 0.0)
    known = steps > 0 and seconds > 0
    each = seconds / max(1, steps)
    made = []
    shares, students = _rungs(material, target)
    for share in shares:
        trained = steps * (1 - 0.8 * share) + CHOICES * TRIAL_STEPS
        made.append(Expected(name=f"prune {share:.0%}", seconds=each * trained if known else None))
    for layers, of in students:
        trained = (steps * LONGER + (CHOICES + 1) * TRIAL_STEPS) * layers / of + steps / 3
        made.append(Expected(name=f"student of {layers} layers", seconds=each * trained if known else None))
    for name, _ in _finishing(material, target):
        made.append(Expected(name=name, note="seconds, on top of the best of these"))
    return made


def _rungs(material: Material, target: Target) -> tuple[list[float], list[tuple[int, int]]]:
    """Shares to prune, the first to try first, and layers of students with how many there are."""
    model = plain_model(material.parent.forward.model)
    if material.artifact.manifest.runtime != "torch":
        return [], []
    wanted = 1 - 1 / math.sqrt(target.times)  # what comes after them may do the rest
    first = next((place for place, share in enumerate(SHARES) if share >= wanted - 1e-9), len(SHARES) - 1)
    shares = [] if anchors_of(model) is None else [*SHARES[first:], *reversed(SHARES[:first])]
    students: list[tuple[int, int]] = []
    named = isinstance(material.source, str | Path)
    if anchors_of(model) is not None and material.parent.task.target.kind in KINDS and named:
        there = len(layer_stack(model))
        students = [(layers, there) for layers in dict.fromkeys((there // 2, there // 3)) if 1 <= layers < there]
    return shares, students


def _finishing(material: Material, target: Target) -> list[tuple[str, Compressor]]:
    vocabulary: list[tuple[str, Compressor]] = [("vocabulary", Vocabulary(VocabularyOptions()))]
    eight = Int8(Int8Options(epochs=0))  # no more trainings than were told
    return [*(vocabulary if target.is_of_size else []), ("int8", eight)]


class Ladder:
    """A search in a folder of its own; where the same was begun there, it goes on."""

    def __init__(self, material: Material, target: Target, folder: Path, display: Display) -> None:
        self.material, self.target, self.folder, self.display = material, target, folder, display
        self.found: list[Candidate] = []

    def go(self) -> TargetReport:
        """Make candidates until one reaches the target, or there is nothing left to try."""
        began = time.perf_counter()
        self.found = [self._itself()]
        self._climb()
        chosen = self._reaching()
        best = max(chosen, key=lambda found: (found.quality, found.single)) if chosen else None
        return self._told(best, time.perf_counter() - began)

    def _climb(self) -> None:
        shares, students = _rungs(self.material, self.target)
        if self._finish(self.found[0]):
            return
        first = next((place for place in range(1, len(shares)) if shares[place] < shares[place - 1]), len(shares))
        up, down = shares[:first], shares[first:]
        holds = False
        for share in up:
            found = self._try(f"prune {share:.0%}", self.found[0], self._pruned(share))
            if self._reaching():
                return
            if not found.holds:
                break
            holds = True
        for share in () if holds else down:
            if self._try(f"prune {share:.0%}", self.found[0], self._pruned(share)).holds:
                break
        for layers, _ in students:
            found = self._try(f"student of {layers} layers", self.found[0], self._student(layers))
            if self._reaching() or not found.holds:
                break
        if self._reaching():
            return
        good = [found for found in self.found if found.holds and found.name.startswith(TRAINED)]
        for found in sorted(good, key=self.target.missing)[:2]:
            if self._finish(found):
                return

    def _finish(self, start: Candidate) -> bool:
        """What needs no training, one on top of the other where each holds; whether the target is reached."""
        if self._reaching():
            return True
        for name, compressor in _finishing(self.material, self.target):
            called = name if start.name == ITSELF else f"{start.name} + {name}"
            found = self._try(called, start, self._compressed(name, compressor))
            if self._reaching():
                return True
            if found.holds and self.target.missing(found) < self.target.missing(start):
                start = found
        return False

    def _reaching(self) -> list[Candidate]:
        return [found for found in self.found if found.holds and self.target.missing(found) <= 1]

    def _itself(self) -> Candidate:
        return self._known(ITSELF) or self._measured(ITSELF, None, self.material.artifact, 0.0)

    def _try(self, name: str, parent: Candidate, make: Make) -> Candidate:
        """Make a candidate and measure it; what cannot be made is told with its reason."""
        found = self._known(name)
        if found is None:
            self.display.say(f"— {name} —")
            began, place = time.perf_counter(), self.folder / CANDIDATES / _slug(name)
            try:
                made = make(self._artifact(parent), place)
            except (UserError, GateError) as error:
                reason = error.problems[0].got if error.problems else str(error)
                found = Candidate(name=name, parent=parent.name, note=reason)
                self._keep(found)
            else:
                found = self._measured(name, parent.name, made, time.perf_counter() - began)
        self.found.append(found)
        self.display.say(told_of(found, self.target))
        return found

    def _measured(self, name: str, parent: str | None, made: Artifact, seconds: float) -> Candidate:
        """Beside the model itself, in turn with it."""
        material = self.material
        original = material.parent
        child = original if parent is None else load_predictor(made, device="cpu", precision="float32")
        parity = compare(original, child, material.seen)
        speed = speed_of(material.artifact, made, material.seen, self.display)
        sizes = [_megabytes(artifact.path) for artifact in (material.artifact, made)]
        limit = self.target
        holds = (parity.difference or 0.0) >= -limit.loss and (parity.low is None or parity.low >= -limit.worst)
        found = Candidate(
            name=name,
            parent=parent,
            folder=None if parent is None else str(made.path.relative_to(self.folder)),
            score=parity.after or 0.0,
            difference=parity.difference,
            low=parity.low,
            high=parity.high,
            milliseconds=speed.milliseconds[1],
            p95=speed.p95[1] if speed.p95 else 0.0,
            rows_per_second=speed.rows_per_second[1],
            single=1.0 if parent is None else speed.single,
            many=1.0 if parent is None else speed.many,
            smaller=sizes[0] / sizes[1],
            megabytes=sizes[1],
            memory_mb=footprint_of(made, material.seen.inputs),
            seconds=seconds,
            holds=parent is None or holds,
        )
        self._keep(found)
        return found

    def _pruned(self, share: float) -> Make:
        return self._compressed(f"prune {share:.0%}", Prune(PruningOptions(share=share, **self.material.options)))

    def _compressed(self, step: str, compressor: Compressor) -> Make:
        def make(parent: Artifact, place: Path) -> Artifact:
            if (place / MANIFEST).is_file():
                return Artifact.read(place)
            predictor = load_predictor(parent, device="cpu", precision="float32")
            compressor.refuse(predictor)
            place_of_training = place.with_name(f".{place.name}.training")
            given = replace(self.material.given, place=place_of_training, loss=self.target.loss)
            bound = Bound(distance=EXACT) if compressor.exact else Bound()

            def write(folder: Path) -> Written:
                return compressor.write(predictor, folder, given, bound)

            manifest, _ = hand_over(predictor, place, f"compress --to {step}", write, self.material.seen)
            shutil.rmtree(place_of_training, ignore_errors=True)
            return Artifact(place, manifest)

        return make

    def _student(self, layers: int) -> Make:
        def make(parent: Artifact, place: Path) -> Artifact:
            teacher, epochs = load_predictor(parent), self.material.options.get("epochs")
            settings = {} if epochs is None else {"training.epochs": LONGER * epochs}
            if (place / "resolved.yaml").is_file():
                run = resume_run(place, None, self.display, time.perf_counter())
            else:
                run = train_student(teacher, f"self:{layers}", str(self.material.source), place, settings, self.display)
            learner = load_predictor(run.artifact, device="cpu", precision="float32")
            parity = compare(self.material.parent, learner, self.material.seen)
            step = f"compress --distill self:{layers}"
            with_step(run, parent, Step(step=step, parent_sha256=parent.manifest.weights_sha256, parity=parity))
            return run.artifact

        return make

    def _told(self, best: Candidate | None, seconds: float) -> TargetReport:
        good = [found for found in self.found if found.folder is not None]
        holding = [found for found in self.found if found.holds]
        enough = [found for found in good if self.target.missing(found) <= 1]
        report = TargetReport(
            target=self.target,
            metric=self.material.parent.task.primary_metric,
            rows=len(self.material.seen.encoded),
            candidates=tuple(self.found),
            frontier=frontier_of(self.found),
            chosen=None if best is None else best.name,
            nearest=min(holding, key=self.target.missing).name,
            cheapest=max(enough, key=lambda found: found.quality).name if enough and best is None else None,
            test=None,
            speed=None,
            reached=False,
            artifact=None,
            seconds=seconds,
        )
        return report if best is None else self._judged(report, best)

    def _judged(self, report: TargetReport, best: Candidate) -> TargetReport:
        """The chosen one on the test rows, for the first time; put in place where it holds there, too."""
        made, judged = self._artifact(best), self.material.judged
        child = load_predictor(made, device="cpu", precision="float32")
        test = compare(self.material.parent, child, judged)
        speed = speed_of(self.material.artifact, made, judged, self.display)
        found = report.model_copy(update={"test": test, "speed": speed})
        step = f'compress --target "{self.target.text}"'
        try:
            require(test, Bound(loss=(self.target.loss, self.target.worst)), step)
        except GateError as error:
            self.display.say(str(error))
            return found
        place = self.folder / "artifact"
        _put(made, place, step, self.material.artifact.manifest, test, speed)
        return found.model_copy(update={"reached": True, "artifact": str(place)})

    def _artifact(self, found: Candidate) -> Artifact:
        return self.material.artifact if found.folder is None else Artifact.read(self.folder / found.folder)

    def _known(self, name: str) -> Candidate | None:
        file = self.folder / CANDIDATES / f"{_slug(name)}.json"
        return Candidate.model_validate(read_json(file)) if file.is_file() else None

    def _keep(self, found: Candidate) -> None:
        file = self.folder / CANDIDATES / f"{_slug(found.name)}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, found.model_dump(mode="json"))


def told_of(found: Candidate, target: Target) -> str:
    """A candidate in one line."""
    if found.note:
        return f"{found.name}: not made, {found.note}."
    missing = target.missing(found)
    state = "within" if found.holds else "beyond"
    far = "as fast and as small as asked" if missing <= 1 else f"to be {missing:.2f} times better yet"
    return (
        f"{found.name}: {found.score:.4f} ({found.quality:+.4f}, {state} what it may lose); one row {found.single:.2f} "
        f"times as fast, many {found.many:.2f} times; {found.megabytes:.1f} MB; {far}."
    )


def _put(made: Artifact, place: Path, step: str, first: Manifest, test: Parity, speed: Speed) -> None:
    """A copy of the chosen artifact in its place, with what was measured on the test rows."""
    if place.exists():
        shutil.rmtree(place)
    shutil.copytree(made.path, place)
    done = Step(step=step, parent_sha256=first.weights_sha256, parity=test, speed=speed)
    manifest = made.manifest.model_copy(update={"lineage": (*made.manifest.lineage, done)})
    write_text(place / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    write_text(place / "README.md", model_card(manifest, None))


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def _slug(name: str) -> str:
    return name.replace(" + ", "+").replace(" ", "-").replace("%", "")
