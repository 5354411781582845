"""The table and the plot of docs/speed.md from the newest turns in benchmarks/results/*.json; the table of searches.

python benchmarks/tables.py              # prints the table
python benchmarks/tables.py --plot docs/images/speed.svg
python benchmarks/tables.py --search     # benchmarks/results/search.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from search_beside_hf import RESULTS, table
from turns import DEFAULTS, OURS, STEPS, ratios
from workloads import CHATS, PREDICTED, WORKLOADS

TITLES = {
    "banking77": "full fine-tuning, short texts (banking77)",
    "mrpc": "full fine-tuning, pairs (mrpc)",
    "long_documents": "full fine-tuning, 256–512 tokens",
    "ag_news": "partial, top 2 layers, 5 epochs (ag_news)",
    "alpaca_gpt4_en": "LoRA on chats (alpaca_gpt4_en)",
    "predict": "prediction (ag_news)",
}
Seconds = dict[str, dict[str, Any]]


def newest() -> dict[str, Seconds]:
    """Workload -> trainer -> its result in the last sitting, which begins with the choice of the best peer.

    Peers are kept with the turns of ours that they alternated with.
    """
    found: dict[str, Seconds] = {}
    for path in sorted((HERE / "results").glob("*.json")):
        ours: dict[str, Any] = {}
        today: dict[str, Seconds] = {}
        for read in json.loads(path.read_text(encoding="utf-8"))["results"]:
            if "choosing" in read:
                today.pop(read["choosing"], None)
            if "turns" not in read:
                continue
            result = {"once": 0.0, "whole_turns": 1.0} | read
            if result["trainer"] == OURS:
                ours = result
            today.setdefault(result["turns"], {})[result["trainer"]] = {**result, "ours": ours}
        found |= today
    return found


def ratio(result: dict[str, Any]) -> tuple[float, float, float]:
    """Median and quartiles of the peer's time over ours."""
    return ratios(result, result["ours"])


def best(results: Seconds) -> str:
    """The fastest peer beside the defaults, of those with the most turns."""
    peers = [name for name in results if name not in (OURS, *DEFAULTS)]
    most = max(len(results[name]["seconds"]) for name in peers)
    peers = [name for name in peers if len(results[name]["seconds"]) == most]
    return min(peers, key=lambda name: ratio(results[name])[0])


def rows_of(workload: str) -> tuple[int, str]:
    """What one turn works through."""
    if workload == "predict":
        return PREDICTED, "rows"
    if WORKLOADS[workload].task == "text-generation":
        return CHATS, "chats"
    return STEPS * WORKLOADS[workload].batch_size, "rows"


def line(workload: str, results: Seconds) -> str:
    """One row of the table."""
    count, unit = rows_of(workload)
    tuned = best(results)
    ours = results[OURS]
    rate = count / (median(ours["seconds"]) + ours["once"] / ours["whole_turns"])
    cells = [TITLES.get(workload, workload), f"{rate:.3g} {unit}/s"]
    for name in (next((name for name in DEFAULTS if name in results), None), tuned):
        if name is None:
            cells.append("not measured")
            continue
        middle, low, high = ratio(results[name])
        cells.append(f"{middle:.2f} ({low:.2f}–{high:.2f})" + (f", {name}" if name == tuned else ""))
    cells.append(f"{results[OURS]['peak_memory_mb']:.0f} / {results[tuned]['peak_memory_mb']:.0f}")
    cells.append(str(len(results[tuned]["seconds"])))
    return "| " + " | ".join(cells) + " |"


def plot(found: dict[str, Seconds], path: Path) -> None:
    """Bars: the peers' time over ours."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "speed"
    from matplotlib import pyplot

    names = [name for name in TITLES if name in found]
    figure, axes = pyplot.subplots(figsize=(8, 0.9 + 0.75 * len(names)))
    for place, name in enumerate(names):
        results = found[name]
        bars = [(peer, "as it comes", "#9aa7b4") for peer in DEFAULTS if peer in results]
        bars.append((best(results), "best settings found", "#2f6f9f"))
        for number, (peer, label, colour) in enumerate(bars):
            middle, low, high = ratio(results[peer])
            height = place - 0.2 + 0.4 * number
            spread = [[middle - low], [high - middle]]
            axes.barh(height, middle, 0.36, xerr=spread, color=colour, label=label if place == len(names) - 1 else None)
            axes.text(high, height, f" {middle:.1f}× {peer}", va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(names)), [TITLES[name] for name in names])
    axes.set_xlabel("time of the peer / time of Chainrule (1 = as fast)")
    axes.margins(x=0.25)
    axes.invert_yaxis()
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--search", action="store_true", help="of searches beside the Trainer's")
    options = parser.parse_args()
    if options.search:
        lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
        print("\n".join(table([json.loads(line) for line in lines])))
        return
    found = newest()
    print("| work | Chainrule | peer as it comes / ours | best peer / ours | peak memory, MB, ours / best | turns |")
    print("|---|---|---|---|---|---|")
    for workload in (name for name in TITLES if name in found):
        print(line(workload, found[workload]))
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
