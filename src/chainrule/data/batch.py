"""Which rows go together, in which order, and the padded tensors the model reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from chainrule.core.lists import Lists
from chainrule.data.encode import Encoded

# Batches are sorted by length inside windows of this many batches: nearly all padding goes, much of the shuffle stays.
WINDOW_BATCHES = 50
IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Tensors of one micro-batch.

    Attributes:
        inputs: input_ids (s, t) int64 of all sequences of the rows, and attention_mask and token_type_ids (s, t) where
            the model needs them; or inputs_embeds (s, t or 1, hidden) and attention_mask for a model that starts above
            its frozen layers; or input_ids and position_ids (1, t) of rows side by side; or pixel_values (b, channels,
            height, width).
        targets: (b,) or (b, labels); (b, longest list) of relevances, IGNORED after a list's end; or (s, t) what is
            learned of each token (its id, or a class), IGNORED where nothing is; or None.
        rows: (b,) int64 positions in the Encoded they came from; s = b where a row is one sequence.
        counts: (b,) int64 sequences of each row, or None where each has one.
        shared: (m,) int64, where rows have sequences in common: which of the s each of those is that `counts` counts.
        tokens: real tokens, without padding; images have none.
        references: (b, …) float32, what the model before step one says of the rows, or None.
        at_once: padded tokens that a task which needs its batches whole may put through the model at once; None for
            all of them.
    """

    inputs: dict[str, torch.Tensor]
    targets: torch.Tensor | None
    rows: np.ndarray
    tokens: int
    references: torch.Tensor | None = None
    at_once: int | None = None
    counts: np.ndarray | None = None
    shared: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return next(iter(self.inputs.values())).device

    @property
    def padded_tokens(self) -> int:
        """Positions the model computes, padding included."""
        shape = next(iter(self.inputs.values())).shape
        return int(shape[0] * (shape[2] if "pixel_values" in self.inputs else shape[1]))


def epoch_order(
    lengths: np.ndarray, batch_size: int, *, seed: int, epoch: int, group_by_length: bool
) -> list[np.ndarray]:
    """The batches of one epoch as row positions: a function of (seed, epoch) and nothing else.

    Args:
        lengths: (n,) tokens of each row.
        group_by_length: put rows of similar length together, see WINDOW_BATCHES.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    if group_by_length:
        window = WINDOW_BATCHES * batch_size
        windows = [order[start : start + window] for start in range(0, len(order), window)]
        order = np.concatenate([part[np.argsort(-lengths[part], kind="stable")] for part in windows])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if group_by_length:
        generator.shuffle(batches)
    return batches


def micro_batches(rows: np.ndarray, lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Split the rows of one effective batch into pieces of at most `tokens` padded tokens, or of one row.

    Args:
        lengths: (n,) tokens of every row there is.
    """
    if len(rows) * int(lengths[rows].max()) <= tokens:
        return [rows]
    return [rows[part] for part in by_length(lengths[rows], tokens)]


def collate(encoded: Encoded, rows: np.ndarray, *, pad_id: int, left: bool, device: torch.device) -> Batch:
    """Pad the given rows to their longest and move them to the device.

    The attention mask is left out where nothing is padded: attention without a mask is faster and gives the same.
    """
    known = None if encoded.references is None else torch.from_numpy(encoded.references[rows]).to(device)
    if encoded.pixels is not None:
        images = torch.from_numpy(encoded.pixels.read(rows)).to(device)
        return Batch({"pixel_values": images}, _row_targets(encoded, rows, device), rows, 0, known)
    taken, shared = encoded.different(rows)
    starts, ends = encoded.offsets[taken], encoded.offsets[taken + 1]
    lengths = ends - starts
    width = int(lengths.max())
    ids = np.full((len(taken), width), pad_id, dtype=np.int64)
    types = np.zeros((len(taken), width), dtype=np.int64) if encoded.types is not None else None
    mask = np.zeros((len(taken), width), dtype=np.int64)
    for place, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        span = _filled(width, end - start, left)
        ids[place, span] = encoded.ids[start:end]
        mask[place, span] = 1
        if types is not None and encoded.types is not None:
            types[place, span] = encoded.types[start:end]
    inputs = {"input_ids": torch.from_numpy(ids).to(device)}
    if int(lengths.min()) != width:
        inputs["attention_mask"] = torch.from_numpy(mask).to(device)
    if types is not None:
        inputs["token_type_ids"] = torch.from_numpy(types).to(device)
    if encoded.states is not None:
        inputs = _state_inputs(encoded, taken, inputs, left)
    if encoded.trained is not None:
        learned = _token_targets(encoded, taken, width, left).to(device)
        return Batch(inputs, learned, rows, int(lengths.sum()), known)
    counts = None if encoded.sequences is None else np.diff(encoded.sequences)[rows]
    wanted = _row_targets(encoded, rows, device)
    return Batch(inputs, wanted, rows, int(lengths.sum()), known, counts=counts, shared=shared)


def _row_targets(encoded: Encoded, rows: np.ndarray, device: torch.device) -> torch.Tensor | None:
    """(b,) or (b, labels): one target a row as a whole."""
    if encoded.targets is None:
        return None
    chosen = encoded.targets[rows]
    if isinstance(chosen, Lists):
        chosen = chosen.padded(IGNORED)
    targets = torch.from_numpy(np.ascontiguousarray(chosen))
    return targets.to(device, torch.float32 if targets.is_floating_point() else torch.int64)


def in_pieces(batch: Batch) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """The sequences of a batch, at most `at_once` padded tokens of them together, each piece as wide as its longest.

    Returns:
        Positions of sequences, and their inputs; all of them in order where that is not too much.
    """
    first = next(iter(batch.inputs.values()))
    mask = batch.inputs.get("attention_mask")
    if batch.at_once is None or batch.padded_tokens <= batch.at_once:
        return [(torch.arange(len(first), device=first.device), batch.inputs)]
    width = first.shape[1]
    lengths = np.full(len(first), width) if mask is None else mask.sum(1).cpu().numpy()
    left = mask is not None and bool(mask[:, -1].all())
    pieces = []
    for rows in by_length(lengths, batch.at_once):
        few = torch.from_numpy(rows).to(first.device)
        columns = _filled(width, int(lengths[rows].max()), left)
        pieces.append((few, {name: values[few][:, columns] for name, values in batch.inputs.items()}))
    return pieces


def pack(encoded: Encoded, rows: np.ndarray, *, device: torch.device) -> Batch:
    """The given rows side by side, without padding: each begins at position 0, and its first token is not predicted.

    Krell et al. (2021), Efficient Sequence Packing without Cross-contamination, section 3.2.
    """
    taken = encoded.sequences_of(rows)
    spans = [slice(encoded.offsets[sequence], encoded.offsets[sequence + 1]) for sequence in taken]
    ids = np.concatenate([encoded.ids[span] for span in spans]).astype(np.int64)
    places = np.concatenate([np.arange(span.stop - span.start) for span in spans])
    inputs = {
        "input_ids": torch.from_numpy(ids)[None].to(device),
        "position_ids": torch.from_numpy(places)[None].to(device),
    }
    trained = places > 0
    if encoded.trained is not None:
        trained &= np.concatenate([encoded.trained[span] for span in spans])
    targets = torch.from_numpy(np.where(trained, ids, IGNORED))[None].to(device)
    return Batch(inputs, targets, rows, len(ids))


def packs_of(rows: np.ndarray, lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Split the rows of one effective batch into packs of at most about `tokens` tokens, as even as they come.

    Longest first, each to the shortest pack so far: Graham (1969), Bounds on Multiprocessing Timing Anomalies.

    Args:
        lengths: (n,) tokens of every row there is.
    """
    count = min(len(rows), -(-int(lengths[rows].sum()) // tokens))
    packs: list[list[int]] = [[] for _ in range(count)]
    sizes = np.zeros(count, dtype=np.int64)
    for row in rows[np.argsort(-lengths[rows], kind="stable")]:
        shortest = int(sizes.argmin())
        packs[shortest].append(row)
        sizes[shortest] += lengths[row]
    return [np.array(pack) for pack in packs]


def _state_inputs(
    encoded: Encoded, taken: np.ndarray, inputs: dict[str, torch.Tensor], left: bool
) -> dict[str, torch.Tensor]:
    """The sequences' states in place of their ids, zeros where they are padded."""
    states, width = encoded.states, inputs["input_ids"].shape[1]
    if states is None:
        return inputs
    device = inputs["input_ids"].device
    if not states.per_token:
        return {"inputs_embeds": _numbers(states.values[taken][:, None]).to(device)}
    padded = np.zeros((len(taken), width, states.values.shape[1]), dtype=states.values.dtype)
    for place, sequence in enumerate(taken):
        start, end = encoded.offsets[sequence], encoded.offsets[sequence + 1]
        padded[place, _filled(width, end - start, left)] = states.values[start:end]
    kept = {"attention_mask": inputs["attention_mask"]} if "attention_mask" in inputs else {}
    return {"inputs_embeds": _numbers(padded).to(device), **kept}


def _numbers(values: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(values)
    return tensor.view(torch.bfloat16) if values.dtype == np.uint16 else tensor


def _token_targets(encoded: Encoded, taken: np.ndarray, width: int, left: bool) -> torch.Tensor:
    """What is learned of each token (s, t), IGNORED where nothing is."""
    targets = np.full((len(taken), width), IGNORED, dtype=np.int64)
    learned = encoded.ids if encoded.classes is None else encoded.classes
    trained = encoded.trained if encoded.trained is not None else np.ones(len(encoded.ids), bool)
    for place, sequence in enumerate(taken):
        start, end = encoded.offsets[sequence], encoded.offsets[sequence + 1]
        targets[place, _filled(width, end - start, left)] = np.where(trained[start:end], learned[start:end], IGNORED)
    return torch.from_numpy(targets)


def _filled(width: int, length: int, left: bool) -> slice:
    """Where the tokens of a sequence stand in a padded row."""
    return slice(width - length, width) if left else slice(0, length)


def by_length(lengths: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Row positions, longest first, each batch of at most `tokens` padded tokens, or of one row."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        width = max(int(lengths[order[start]]), 1)
        size = max(1, tokens // width)
        yield order[start : start + size]
        start += size


def with_common(encoded: Encoded, tokens: int) -> Iterator[np.ndarray]:
    """Row positions in order, each batch of at most `tokens` padded tokens in different sequences, or of one row."""
    lengths = np.diff(encoded.offsets)
    rows, seen, longest = list[int](), set[int](), 0
    for row in range(len(encoded)):
        own = encoded.sequences_of(np.array([row]))
        new, widest = set(own.tolist()), int(lengths[own].max())
        if rows and (len(seen) + len(new - seen)) * max(longest, widest) > tokens:
            yield np.array(rows)
            rows, seen, longest = [], set(), 0
        rows.append(row)
        seen |= new
        longest = max(longest, widest)
    if rows:
        yield np.array(rows)
