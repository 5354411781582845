"""What a training takes on 8 to 1,024 GPUs, computed from arithmetic, bytes and links: no measurement.

    python benchmarks/scale_model.py            prints the tables of docs/scale.md
    python benchmarks/scale_model.py --plot     draws docs/images/scale.svg as well

Two trainings of a decoder with 7 billion weights in bfloat16, on machines with eight GPUs each: LoRA, which this
repository's data-parallel engine could do as it is, and full fine-tuning with everything sharded (ZeRO-3, FSDP), which
it cannot do yet. Every assumption is a field of a class below.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

GIB = 2**30
WORKERS = (8, 16, 32, 64, 128, 256, 512, 1024)
SVG = Path(__file__).resolve().parents[1] / "docs" / "images" / "scale.svg"


@dataclass(frozen=True)
class Model:
    """A decoder: Llama 2 7B's shape (Touvron et al., 2023)."""

    weights: float = 6.74e9
    layers: int = 32
    hidden: int = 4096
    rank: int = 16  # of LoRA on all seven linear layers of each block

    @property
    def adapter(self) -> float:
        """LoRA's numbers: rank · (inputs + outputs) of each layer; the MLP is 11,008 wide."""
        block = 4 * (2 * self.hidden) + 3 * (self.hidden + 11_008)
        return float(self.layers * self.rank * block)


@dataclass(frozen=True)
class Machine:
    """Eight GPUs such as an H100 SXM, and the links between them.

    Attributes:
        peak: dense bfloat16 operations a second of one GPU.
        share: of the peak that forward and backward reach.
        memory: bytes of one GPU.
        inside: bytes a second that each GPU sends to the others of its machine (NVLink, measured rather than nominal).
        between: bytes a second of one GPU's own link to other machines (400 Gbit/s InfiniBand, about 80 % of it).
        latency: seconds a message takes from one machine to the next; inside one it is a fifth of that.
        exposed: the share of communication that does not hide behind arithmetic, where it could.
        straggling: how much slower the slowest of 1,024 is than one alone, growing with the logarithm of their number.
    """

    peak: float = 989e12
    share: float = 0.4
    memory: float = 80e9
    inside: float = 350e9
    between: float = 40e9
    latency: float = 10e-6
    exposed: float = 0.15
    straggling: float = 0.05
    size: int = 8


@dataclass(frozen=True)
class Work:
    """What one step of one worker is made of.

    Attributes:
        sequences: of each worker in each step (weak scaling), cut into micro-batches of `micro`.
        length: tokens of a sequence, packed, so that none is padding.
        recompute: activations are made again in the backward.
    """

    sequences: int = 8
    micro: int = 2
    length: int = 2048
    recompute: bool = True

    @property
    def tokens(self) -> int:
        return self.sequences * self.length


@dataclass(frozen=True)
class Step:
    """Seconds of one step and bytes of one worker."""

    compute: float
    communication: float
    waiting: float
    memory: float

    @property
    def seconds(self) -> float:
        return (self.compute + self.communication) * (1 + self.waiting)


def operations(model: Model, work: Work, *, full: bool) -> float:
    """Of a step: 2 a weight and token forward, as many back for the inputs, and for the weights where they are trained.

    Kaplan et al. (2020), Scaling Laws for Neural Language Models, section 2.1; attention as in Narayanan et al. (2021),
    with half of it left out by the causal mask.
    """
    passes = 3 if full else 2
    passes += 1 if work.recompute else 0
    products = 2 * model.weights * work.tokens
    attention = 2 * work.length * model.hidden * model.layers * work.tokens
    return passes * products + (3 + (1 if work.recompute else 0)) * attention


def collective(machine: Machine, workers: int, size: float, *, rounds: int) -> float:
    """Seconds to gather `size` bytes at every worker, or to sum and scatter them; an all-reduce is two rounds.

    Inside a machine each worker sends (n − 1)/n of the bytes over NVLink. Between machines every worker's own link
    carries its eighth of them, as NCCL's rings and trees use all links at once; latency grows with the logarithm.
    """
    machines = math.ceil(workers / machine.size)
    here = min(workers, machine.size)
    seconds = size * (here - 1) / here / machine.inside + machine.latency / 5 * math.ceil(math.log2(max(here, 2)))
    if machines > 1:
        seconds += size / here * (machines - 1) / machines / machine.between
        seconds += machine.latency * math.ceil(math.log2(machines))
    return rounds * seconds


def kept(model: Model, work: Work) -> float:
    """Bytes of activations of a micro-batch: with recomputing, each block's input and one block's inside."""
    tokens = work.micro * work.length
    inputs = 2 * tokens * model.hidden * model.layers
    one_block = 34 * tokens * model.hidden  # Korthikanti et al. (2022), table 2, with a fused attention
    logits = 6 * tokens * 32_000
    return inputs + one_block + logits if work.recompute else model.layers * one_block + logits


def lora(model: Model, machine: Machine, work: Work, workers: int) -> Step:
    """Data-parallel: every worker holds the frozen weights in bfloat16; the adapter's gradients are summed in float32.

    As this repository does it: after the last micro-batch, so that nothing hides behind arithmetic.
    """
    memory = 2 * model.weights + 16 * model.adapter + kept(model, work)
    communication = collective(machine, workers, 4 * model.adapter, rounds=2)
    return _step(machine, workers, operations(model, work, full=False), communication, memory)


def full(model: Model, machine: Machine, work: Work, workers: int) -> Step:
    """Fully sharded: Rajbhandari et al. (2020), ZeRO, stage 3: 16 bytes a weight over all workers, two blocks whole.

    Weights are gathered before the forward and again before the backward of each micro-batch, gradients are summed and
    scattered once a micro-batch, in bfloat16. What hides does so behind arithmetic, at most all of it but `exposed`.
    """
    block = 2 * model.weights / model.layers
    memory = 16 * model.weights / workers + 2 * block + kept(model, work)
    pieces = work.sequences // work.micro
    each = collective(machine, workers, block, rounds=3) * model.layers
    computing = operations(model, work, full=True) / (machine.peak * machine.share)
    total = pieces * each
    shown = max(total * machine.exposed, total - computing * (1 - machine.exposed))
    return _step(machine, workers, operations(model, work, full=True), shown, memory)


def _step(machine: Machine, workers: int, counted: float, communication: float, memory: float) -> Step:
    waiting = machine.straggling * math.log2(workers) / math.log2(WORKERS[-1])
    return Step(counted / (machine.peak * machine.share), communication, waiting, memory)


def strong(work: Work, workers: int) -> Work:
    """The same batch whatever the number of workers: what eight have, divided; a whole sequence at least."""
    each = max(1, work.sequences * WORKERS[0] // workers)
    return replace(work, sequences=each, micro=min(work.micro, each))


PLANS = {"LoRA": lora, "full": full}
SLOW = replace(Machine(), between=1.1e9 / 8)  # 10 Gbit/s Ethernet, one port for the eight GPUs of a machine


@dataclass(frozen=True)
class Case:
    """One table and one curve.

    Attributes:
        same_batch: the batch of eight GPUs is divided; else each GPU has as much as before.
    """

    name: str
    plan: str
    colour: str
    machine: Machine = field(default_factory=Machine)
    same_batch: bool = False

    def work(self, workers: int) -> Work:
        return strong(Work(), workers) if self.same_batch else Work()

    def tokens(self, workers: int) -> int:
        """Of a step, over all workers; those beyond the sequences of the batch have none."""
        return Work().tokens * (WORKERS[0] if self.same_batch else workers)

    def step(self, workers: int) -> Step:
        return PLANS[self.plan](Model(), self.machine, self.work(workers), workers)

    def rate(self, workers: int) -> float:
        """Tokens a second and GPU, against those of eight GPUs."""
        now, first = (self.tokens(n) / n / self.step(n).seconds for n in (workers, WORKERS[0]))
        return now / first


CASES = (
    Case("LoRA, 8 sequences a GPU", "LoRA", "#2f81c7"),
    Case("LoRA, machines joined by 10 Gbit/s", "LoRA", "#5b9e48", SLOW),
    Case("full, 8 sequences a GPU", "full", "#d1632a"),
    Case("full, one batch of 64 sequences", "full", "#a23b72", same_batch=True),
    Case("full, machines joined by 10 Gbit/s", "full", "#7d8590", SLOW),
)


def table(case: Case) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| GPUs | tokens a step | memory a GPU | step | communication | efficiency |", "|---:|" + "---:|" * 5]
    for workers in WORKERS:
        step = case.step(workers)
        shown = 100 * step.communication / (step.compute + step.communication)
        lines.append(
            f"| {workers:,} | {case.tokens(workers):,} | {step.memory / GIB:.1f} GiB | {step.seconds:.2f} s "
            f"| {shown:.1f} % | {100 * case.rate(workers):.0f} % |"
        )
    return lines


def bend(machine: Machine, workers: int) -> int:
    """Tokens of a micro-batch below which the full fine-tune's communication no longer hides behind its arithmetic."""
    model = Model()
    sent = collective(machine, workers, 2 * model.weights / model.layers, rounds=3) * model.layers
    one = replace(Work(), sequences=1, micro=1)
    computed = operations(model, one, full=True) / one.tokens / (machine.peak * machine.share)
    return math.ceil(sent / computed)


LEFT, TOP, WIDE, HIGH = 52, 16, 430, 230


def picture() -> str:
    """Efficiency over the number of GPUs, both axes named."""
    style = (
        "text{font:12px sans-serif;fill:#7d8590}.frame{stroke:#7d8590;fill:none}"
        "polyline{stroke-width:2;fill:none;stroke-linejoin:round}"
    )
    size = f'width="760" height="300" viewBox="0 0 760 300"><style>{style}</style>'
    drawn = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}']
    drawn.append(f'<path class="frame" d="M{LEFT} {TOP}V{TOP + HIGH}H{LEFT + WIDE}"/>')
    for share in (0, 25, 50, 75, 100):
        drawn.append(f'<text x="{LEFT - 8}" y="{_down(share / 100) + 4:.1f}" text-anchor="end">{share}%</text>')
    for number, workers in enumerate(WORKERS):
        drawn.append(f'<text x="{_across(number):.1f}" y="{TOP + HIGH + 18}" text-anchor="middle">{workers}</text>')
    drawn.append(f'<text x="{LEFT + WIDE / 2}" y="{TOP + HIGH + 40}" text-anchor="middle">GPUs</text>')
    for place, case in enumerate(CASES):
        points = " ".join(f"{_across(n):.1f},{_down(case.rate(workers)):.1f}" for n, workers in enumerate(WORKERS))
        drawn.append(f'<polyline stroke="{case.colour}" points="{points}"/>')
        drawn.append(f'<path stroke="{case.colour}" stroke-width="2" d="M{LEFT + WIDE + 16} {40 + 22 * place}h16"/>')
        drawn.append(f'<text x="{LEFT + WIDE + 38}" y="{44 + 22 * place}">{case.name}</text>')
    return "\n".join([*drawn, "</svg>"])


def _across(number: int) -> float:
    return LEFT + WIDE * number / (len(WORKERS) - 1)


def _down(share: float) -> float:
    return TOP + HIGH * (1 - share)


def main(arguments: list[str]) -> None:
    print(f"LoRA trains {Model().adapter / 1e6:.1f} million numbers of {Model().weights / 1e9:.2f} billion.\n")
    for case in CASES:
        print(f"{case.name}\n")
        print("\n".join(table(case)), end="\n\n")
    for name, machine in (("400 Gbit/s a GPU", Machine()), ("10 Gbit/s a machine", SLOW)):
        print(f"full, 64 GPUs, {name}: below {bend(machine, 64):,} tokens a GPU and micro-batch links are what waits")
    if "--plot" in arguments:
        SVG.write_text(picture() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
