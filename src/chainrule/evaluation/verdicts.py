"""The verdict in words, in English and Chinese."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from chainrule.evaluation.quantities import in_points

Language = Literal["en", "zh"]

_NAMES: dict[str, dict[Language, str]] = {
    "majority": {"en": "the majority class", "zh": "多数类基线"},
    "mean": {"en": "the mean", "zh": "均值基线"},
    "tfidf": {"en": "TF-IDF", "zh": "TF-IDF 基线"},
    "pixels": {"en": "logistic regression on pixels", "zh": "像素逻辑回归基线"},
    "word-tags": {"en": "the most frequent tag of each word", "zh": "逐词最常见标签基线"},
    "longer": {"en": "the longer reply", "zh": "“选更长的回复”基线"},
    "sentence-overlap": {"en": "the sentence most like the question", "zh": "最像问题的句子基线"},
    "tfidf-cosine": {"en": "the TF-IDF cosine", "zh": "TF-IDF 余弦基线"},
    "popularity": {"en": "popularity", "zh": "流行度基线"},
    "matrix-factorisation": {"en": "matrix factorisation", "zh": "矩阵分解基线"},
    "no-answer": {"en": "always saying that there is no answer", "zh": "一律回答“无答案”基线"},
    "lead-1": {"en": "the first sentence of the source", "zh": "“照抄首句”基线"},
    "copy": {"en": "the source itself", "zh": "“照抄原文”基线"},
    "untuned": {"en": "the untuned model", "zh": "未微调的模型"},
}


def baseline_name(baseline: str, language: Language) -> str:
    """A baseline's name as a reader knows it; an unknown one is returned as it is."""
    return _NAMES.get(baseline, {}).get(language, baseline)


def verdict_text(numbers: Mapping[str, Any], language: Language) -> str:
    """The verdict in plain words.

    Args:
        numbers: what `judge` puts into the detail under "verdict": metric, rows, baseline, better, worse, difference,
            low, high, p_value, rows_to_settle; and "folds", their number, where models of several folds were judged.
        language: "en" or "zh".
    """
    return _english(numbers) if language == "en" else _chinese(numbers)


def _english(numbers: Mapping[str, Any]) -> str:
    rows, metric = numbers["rows"], numbers["metric"]
    if numbers["baseline"] is None:
        return "No verdict: there is no baseline to compare with."
    name = baseline_name(numbers["baseline"], "en")
    if numbers["low"] is None:
        gap = _amount(numbers["difference"], metric, signed=True)
        return (
            f"No verdict: {rows} rows are too few to compare with {name} (difference {gap}{_unit(metric, 'en')} "
            f"of {metric}); at least 30 are needed, some hundreds are better."
        )
    models = f"{numbers['folds']} models of this recipe" if numbers.get("folds") else "this trained model"
    scope = f" This is about {models} on these {rows:,} rows ({metric}), not about other seeds."
    if numbers["better"] or numbers["worse"]:
        sign = 1.0 if numbers["better"] else -1.0
        low, high = sorted((sign * numbers["low"], sign * numbers["high"]))
        gap = f"{_amount(sign * numbers['difference'], metric)}{_unit(metric, 'en')}"
        span = f"95 % {_amount(low, metric)} to {_amount(high, metric)}"
        return f"{'Better' if numbers['better'] else 'Worse'} than {name} by {gap} ({span}).{scope}"
    gap = f"{_amount(numbers['difference'], metric, signed=True)}{_unit(metric, 'en')}"
    span = f"95 % {_amount(numbers['low'], metric)} to {_amount(numbers['high'], metric)}"
    more = numbers["rows_to_settle"]
    settle = f" If the difference is real, about {more:,} more test rows would likely show it." if more else ""
    return f"Not shown to be better than {name} (difference {gap}, {span}).{settle}{scope}"


def _chinese(numbers: Mapping[str, Any]) -> str:
    rows, metric = numbers["rows"], numbers["metric"]
    if numbers["baseline"] is None:
        return "没有结论：没有可比较的基线。"
    name = baseline_name(numbers["baseline"], "zh")
    name = f" {name}" if name[0].isascii() else name
    if numbers["low"] is None:
        gap = _amount(numbers["difference"], metric, signed=True)
        return (
            f"没有结论：只有 {rows} 行，太少，无法与{name}比较（{metric} 相差 {gap}{_unit(metric, 'zh')}）；"
            f"至少需要 30 行，几百行更好。"
        )
    models = f"同一配方的 {numbers['folds']} 个模型" if numbers.get("folds") else "这一个训练好的模型"
    scope = f"此结论只针对{models}和这 {rows:,} 行数据（{metric}），不涉及其他随机种子。"
    if numbers["better"] or numbers["worse"]:
        sign = 1.0 if numbers["better"] else -1.0
        low, high = sorted((sign * numbers["low"], sign * numbers["high"]))
        gap = f"{_amount(sign * numbers['difference'], metric)}{_unit(metric, 'zh')}"
        span = f"95 % 区间 {_amount(low, metric)} 至 {_amount(high, metric)}"
        return f"{'优于' if numbers['better'] else '劣于'}{name}，相差 {gap}（{span}）。{scope}"
    gap = f"{_amount(numbers['difference'], metric, signed=True)}{_unit(metric, 'zh')}"
    span = f"95 % 区间 {_amount(numbers['low'], metric)} 至 {_amount(numbers['high'], metric)}"
    more = numbers["rows_to_settle"]
    settle = f"如果差异真实存在，大约再加 {more:,} 行测试数据就很可能显示出来。" if more else ""
    return f"未能证明优于{name}（差异 {gap}，{span}）。{settle}{scope}"


def _amount(value: float, metric: str, *, signed: bool = False) -> str:
    text = f"{100 * value:+.1f}" if in_points(metric) else f"{value:+.3g}"
    text = text if signed else text.removeprefix("+")
    return text.replace("-", "−")


def _unit(metric: str, language: Language) -> str:
    if not in_points(metric):
        return ""
    return " points" if language == "en" else " 个百分点"
