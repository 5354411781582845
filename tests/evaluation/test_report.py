from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

from chainrule.errors import OutputError
from chainrule.evaluation.languages import Words, say, texts
from chainrule.evaluation.record import read_record
from chainrule.evaluation.report import render_report, write_report
from chainrule.evaluation.sections import row_list

pytestmark = pytest.mark.unit

MakeRun = Callable[[str], Path]
KINDS = ("three", "chinese", "many", "hostile", "unfinished", "unjudged", "worse", "few", "several", "numbers")
VOID = {"meta", "input", "br", "hr", "img", "link", "base", "source"}
ROOM = Path("src/chainrule/evaluation")


class Page(HTMLParser):
    """Reads a page strictly: every tag that is opened is closed, in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def text_of(self, tag: str) -> str:
        return "".join(text for owner, text in self.texts if owner == tag)

    @property
    def seen(self) -> str:
        return "\n".join(text for owner, text in self.texts if owner not in ("style", "script"))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_run_gives_one_well_formed_page_that_loads_nothing(kind: str, make_run: MakeRun) -> None:
    html = render_report(make_run(kind))
    page = Page(html)
    assert len(html.encode()) < 400_000
    assert not {"img", "iframe", "object", "embed", "link", "base", "form", "a", "image", "use"} & {
        t for t, _ in page.tags
    }
    attributes = {name for _, given in page.tags for name in given}
    assert not {"src", "href", "style", "srcset", "action", "xlink:href"} & attributes
    assert not [name for name in attributes if name.startswith("on")]
    assert [tag for tag, _ in page.tags].count("script") == 1
    for address in ("http://", "https://", "url(", "@import", "//cdn"):
        assert address not in html
    assert "None" not in page.seen
    assert "nan" not in re.findall(r"[a-z]+", page.seen)


@pytest.mark.parametrize("kind", KINDS)
def test_every_chart_has_a_text_alternative_in_both_languages(kind: str, make_run: MakeRun) -> None:
    charts = [given for tag, given in Page(render_report(make_run(kind))).tags if given.get("role") == "img"]
    assert charts
    assert all(chart.get("data-en") and chart.get("data-zh") for chart in charts)
    assert all(chart["aria-label"] == chart["data-en"] != chart["data-zh"] for chart in charts)


def test_what_users_wrote_is_text_and_nothing_else(make_run: MakeRun, hostile_labels: Sequence[str]) -> None:
    html = render_report(make_run("hostile"))
    page = Page(html)
    for label in hostile_labels[:4]:
        assert label in page.seen
        assert "<" not in label or label not in html
    assert "runs/<b>bold</b>" in page.seen
    assert "<script>alert(5)</script>.csv" in page.seen
    assert "/home/somebody" not in html


def test_the_policy_allows_this_style_and_this_script_only(make_run: MakeRun) -> None:
    page = Page(render_report(make_run("three")))
    policy = next(given["content"] for tag, given in page.tags if given.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.text_of(tag).encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_both_languages_say_everything() -> None:
    for key, words in texts().items():
        assert words.en.strip(), key
        assert words.zh.strip(), key
        assert sorted(re.findall(r"{\w+}", words.en)) == sorted(re.findall(r"{\w+}", words.zh)), key


def test_every_sentence_that_is_asked_for_exists_and_every_sentence_is_asked_for() -> None:
    sources = "\n".join(
        path.read_text(encoding="utf-8") for path in (*ROOM.glob("*.py"), *ROOM.glob("templates/*.html"))
    )
    asked = set(re.findall(r"""(?<![.])\bsay\(\s*f?"([^"]+)\"""", sources)) | set(
        re.findall(r'"([\w-]+\.[\w.-]+)" if ', sources)
    )
    asked |= set(re.findall(r' else "([\w-]+\.[\w.-]+)"', sources)) | set(
        re.findall(r'" if [\w.\[\]]+ else "([\w-]+\.[\w.-]+)"', sources)
    )
    patterns = {
        re.compile(re.sub(r"\\{.*?\\}", r"[\\w-]+", re.escape(key)) + "$")
        for key in asked
        if "." in key or key.isalpha()
    }
    groups = set(re.findall(r'named\("([\w-]+)"', sources))
    for pattern in patterns:
        assert any(pattern.match(key) for key in texts()), pattern.pattern
    unused = [
        key
        for key in texts()
        if key.split(".")[0] not in groups and not any(pattern.match(key) for pattern in patterns)
    ]
    assert unused == []


def test_a_sentence_fills_each_language_with_its_own_words() -> None:
    words = say("measured.split", split=Words("test", "测试集"))
    assert words == Words("Measured on the test split", "评估数据：测试集")
    assert '<span class="zh" lang="zh-Hans">' in words.__html__()
    assert Words("<b>", "<b>").__html__() == "&lt;b&gt;"


def test_the_verdict_is_the_headline(make_run: MakeRun) -> None:
    better = Page(render_report(make_run("three"))).seen
    assert re.search(r"Better than TF-IDF by \d\.\d points of accuracy\.", better)
    assert re.search(r"准确率比 TF-IDF 基线高 \d\.\d 个百分点", better)
    assert "Measured on the test split" in better
    assert "1,204 rows" in better
    assert "Worse than TF-IDF" in Page(render_report(make_run("worse"))).seen
    assert "Too few rows for a verdict." in Page(render_report(make_run("few"))).seen
    unsure = Page(render_report(make_run("chinese"))).seen
    assert "Not shown to be better than TF-IDF." in unsure
    assert "The best weights were chosen on this very split" in unsure


def test_an_unfinished_run_says_so_and_shows_what_there_is(make_run: MakeRun) -> None:
    page = Page(render_report(make_run("unfinished"))).seen
    assert "This run has not finished." in page
    assert "The last recorded step is 300 of 453." in page
    assert "Loss" in page
    assert "Using the model" not in page
    assert "Trained, not yet evaluated." in Page(render_report(make_run("unjudged"))).seen


def _each_file(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def test_any_file_may_be_missing(make_run: MakeRun) -> None:
    run = make_run("three")
    for path in list(_each_file(run)):
        content = path.read_bytes()
        path.unlink()
        Page(render_report(run))
        path.write_bytes(content)
    for path in list(_each_file(run)):
        path.unlink()
    assert "This run has not finished." in Page(render_report(run)).seen


def test_any_file_may_be_damaged_and_is_named(make_run: MakeRun) -> None:
    run = make_run("three")
    for path in list(_each_file(run)):
        content = path.read_bytes()
        path.write_bytes(b"\xff{[\n")
        assert path.name in Page(render_report(run)).seen
        path.write_bytes(b'["not", "a", "mapping"]\n')
        Page(render_report(run))
        path.write_bytes(content)


def test_values_of_the_wrong_kind_do_not_stop_the_report(make_run: MakeRun) -> None:
    run = make_run("three")
    path = run / "evaluations" / "test.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    for key in report:
        for wrong in (None, "text", 7, [1], {"a": {"b": None}}, float("nan")):
            path.write_text(json.dumps(report | {key: wrong}), encoding="utf-8")
            Page(render_report(run))


def test_a_recipe_whose_aliases_grow_without_bound_is_not_expanded(make_run: MakeRun) -> None:
    run = make_run("three")
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    (run / "resolved.yaml").write_text(bomb, encoding="utf-8")
    assert "resolved.yaml" in Page(render_report(run)).seen


def test_every_evaluation_of_the_run_is_listed_and_the_test_split_decides(make_run: MakeRun) -> None:
    run = make_run("three")
    report = json.loads((run / "evaluations" / "test.json").read_text(encoding="utf-8"))
    (run / "evaluations" / "validation.json").write_text(json.dumps(report | {"split": "validation", "rows": 601}))
    page = Page(render_report(run)).seen
    assert "Every evaluation kept with this run" in page
    assert "Measured on the test split" in page
    assert "601" in page


def test_many_steps_make_no_large_page(make_run: MakeRun) -> None:
    run = make_run("three")
    steps = [
        {"event": "step", "step": i, "epoch": i / 9_000, "loss": 1 / i, "learning_rate": 1e-5} for i in range(1, 30_001)
    ]
    (run / "events.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps), encoding="utf-8")
    assert len(render_report(run)) < 400_000


def test_the_page_is_written_beside_the_run_and_replaced(make_run: MakeRun) -> None:
    run = make_run("three")
    assert write_report(run) == run / "report.html"
    assert write_report(run).read_text(encoding="utf-8") == render_report(run)
    with pytest.raises(OutputError):
        write_report(run / "nowhere")


def test_a_run_being_written_is_shown_by_its_final_name(make_run: MakeRun, tmp_path: Path) -> None:
    hidden = make_run("unfinished").rename(tmp_path / ".reviews.x1y2z3.partial")
    assert "reviews: report" in render_report(hidden)
    assert "partial" not in Page(render_report(hidden)).seen


def test_row_numbers_are_joined() -> None:
    assert row_list([12, 3, 4, 5, 7, 8, 20, 3]) == "3–5, 7, 8, 12, 20"


def test_what_happened_on_the_way_is_told_and_the_curve_goes_back(make_run: MakeRun) -> None:
    folder = make_run("three")
    events = folder / "events.jsonl"
    first, *rest = events.read_text(encoding="utf-8").splitlines(keepends=True)
    told = [
        {"event": "resumed", "step": 3},
        {"event": "memory", "step": 5, "micro_batch_tokens": 1024},
        {"event": "diverged", "step": 9, "back_to": 0, "rate_factor": 0.5, "reason": "a loss of nan"},
    ]
    before = [{"event": "step", "step": step, "loss": 1e6, "learning_rate": 1.0} for step in range(1, 9)]
    lines = [json.dumps(event) + "\n" for event in (*before, *told)]
    events.write_text("".join([first, *lines, *rest]), encoding="utf-8")
    seen = Page(render_report(folder)).seen
    assert "after step 3" in seen
    assert "after step 5: from there 1,024 tokens at once" in seen
    assert "in step 9: back to step 0, with a lower learning rate" in seen
    assert "第 9 步：退回第 0 步，学习率调低" in seen
    assert read_record(folder).progress.loss.value[0] < 1e3
    assert "e+06" not in seen
