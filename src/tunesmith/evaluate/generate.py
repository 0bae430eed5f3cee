"""Greedy answers to many prompts, the same for every arm.

What all prompts of an arm begin with (the system message, fixed shots) is computed once, and held once where a model's
attention allows it. Prompts are sorted by length and answered in batches: each batch is read in pieces without padding
to attend to, its keys and values are laid into one buffer that is allocated once, aligned on the right, and rows that
have ended leave it. Nothing is read from a model's own generation config: sampling, penalties and limits in its files
cannot change an arm.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from tunesmith.evaluate.attention import KeysValues, attending, holds_once
from tunesmith.progress import bar
from tunesmith.prompt import Renderer, common_prefix

BATCH_ROWS = 128
BATCH_TOKENS = 65536
"""Most tokens of a batch that keys and values are held for, prompts and answers together."""
HELD_ONCE = 128
"""Fewest tokens of a shared beginning that is held once: below, torch's own attention over copies is as fast."""
MOST_SCORES = 2**26
"""Most attention scores laid out at once: 256 MiB in float32."""
READ_TOKENS = 2048
"""Prompt tokens read in one pass: enough to keep the matrices busy, few enough that activations stay small."""


@dataclass(frozen=True)
class Settings:
    """How answers are generated; part of an arm's identity."""

    max_new_tokens: int
    end_ids: list[int]
    pad_id: int
    batch_rows: int = BATCH_ROWS
    batch_tokens: int = BATCH_TOKENS
    decoding: str = "greedy"
    engine: str = "transformers"

    def as_dict(self) -> dict[str, Any]:
        """As an arm's file holds it."""
        return asdict(self)


@dataclass(frozen=True)
class Answer:
    """One generated answer."""

    ids: list[int]
    """The tokens written, the end token included."""
    text: str
    ended: bool
    tokens_in: int
    seconds: float
    """Wall time of the batch that this row was answered in."""
    replayed: bool = False
    """Whether it was computed at another time, and kept: its seconds are of that time."""

    @property
    def tokens_out(self) -> int:
        """How many tokens were written."""
        return len(self.ids)


class Constraint(Protocol):
    """What forbids tokens while one batch is answered."""

    def mask(self, scores: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """Forbid tokens in scores of shape (len(rows), vocabulary); `rows` are places in the batch."""

    def admits(self, row: int, token: int) -> bool:
        """Whether a token may come next in a row."""

    def accept(self, row: int, token: int) -> None:
        """Take note of a token that was written."""


MakeConstraint = Callable[[int], Constraint]
"""Makes the constraint of one batch, given its number of rows."""
Keep = Callable[[list[int], dict[int, Answer]], None]
"""Takes the indices of a batch and the answers so far."""


def settings_for(renderer: Renderer, max_new_tokens: int, batch_tokens: int = BATCH_TOKENS) -> Settings:
    """The one way in which every arm of a run generates."""
    return Settings(max_new_tokens, renderer.end_ids, renderer.pad_id, batch_tokens=batch_tokens)


def shared_prefix(prompts: Sequence[list[int]]) -> int:
    """How many first tokens of the prompts are computed once, leaving at least one of each to be read on its own."""
    if len(prompts) < 2:
        return 0
    return min(common_prefix(prompts), min(map(len, prompts)) - 1)


def batches(prompts: Sequence[Sequence[int]], settings: Settings) -> list[list[int]]:
    """Indices of prompts in batches of like length, longest first: the bar's time left then errs on the long side."""
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    cut: list[list[int]] = []
    while order:
        room = settings.batch_tokens // (len(prompts[order[0]]) + settings.max_new_tokens)
        rows = max(1, min(settings.batch_rows, room))
        cut.append(order[:rows])
        order = order[rows:]
    return cut


def generate(
    model: PreTrainedModel,
    renderer: Renderer,
    prompts: Sequence[list[int]],
    settings: Settings,
    *,
    prefix: int,
    label: str,
    constraint: MakeConstraint | None = None,
    begun: Sequence[list[int]] | None = None,
    only: list[list[int]] | None = None,
    keep: Keep | None = None,
) -> dict[int, Answer]:
    """Answer every prompt; returns answers by the prompts' index.

    `prefix` is how many first tokens all prompts share and are computed once; `shared_prefix` finds the most.
    `begun` are first tokens of each answer that are known already: they are read with the prompt and gone on from.
    `only` names some of the batches that `batches` would cut, to answer those alone, in the same company as before.
    `keep` is given each batch and its answers as soon as it is answered.
    """
    model.eval()
    answers: dict[int, Answer] = {}
    known = begun or [[]] * len(prompts)
    whole = [prompt + start for prompt, start in zip(prompts, known, strict=True)]
    cut = batches(whole, settings) if only is None else only
    with torch.inference_mode(), bar(label, sum(map(len, cut))) as progress:
        shared = read_beginning(model, prompts[0][:prefix]) if prefix else None
        for batch in cut:
            began = time.perf_counter()
            bound = constraint(len(batch)) if constraint else None
            slots = read_prompts(model, [whole[i] for i in batch], shared, settings)
            with slots.in_use(model):
                written = _write(model, slots, [known[i] for i in batch], settings, bound)
            seconds = round(time.perf_counter() - began, 3)
            for index, ids in zip(batch, written, strict=True):
                ended = ids[-1] in settings.end_ids
                answers[index] = Answer(ids, renderer.decode(ids), ended, len(prompts[index]), seconds)
            if keep:
                keep(batch, answers)
            progress.advance(len(batch))
    return answers


class SlotLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer in a buffer of shape (rows, heads, room, width), filled up to `length`."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values, self.length = keys, values, length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write behind what is there, in place: `DynamicLayer` would copy all of it for each token."""
        end = self.length + key_states.shape[-2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """How many places are filled."""
        return self.length


@dataclass
class Slots:
    """A batch whose prompts are read up to their last token, which is `ids`; all of them end at the same place."""

    cache: DynamicCache
    ids: torch.Tensor
    """(rows, 1)"""
    positions: torch.Tensor
    """(rows, 1)"""
    mask: torch.Tensor
    """(rows, places): 0 where a shorter prompt has not begun yet"""
    once: "Beginning | None"
    """What all rows begin with, if it is not in the cache because it is held once"""

    def in_use(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """While the model reads these slots."""
        return self.once.attended(model) if self.once else nullcontext()


@dataclass(frozen=True)
class Beginning:
    """What all prompts begin with, as keys and values."""

    tokens: int
    layers: list[KeysValues]
    """(1, heads, tokens, width) each"""

    def attended(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """While rows attend to it in addition to what their cache holds."""
        return attending(model, self.layers)


def read_beginning(model: PreTrainedModel, beginning: list[int]) -> Beginning:
    """Keys and values of what all prompts begin with."""
    cache = DynamicCache()
    ids = torch.tensor([beginning], device=model.device)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return Beginning(len(beginning), [(layer.keys, layer.values) for layer in cache.layers])


def read_prompts(
    model: PreTrainedModel, prompts: Sequence[list[int]], shared: Beginning | None, settings: Settings
) -> Slots:
    """Read all prompts but for their last token, `READ_TOKENS` at a time, over what they share."""
    prefix = shared.tokens if shared else 0
    once = shared if shared and prefix >= HELD_ONCE and holds_once(model, shared.layers) else None
    # What lies in the buffer of a row: its whole prompt, or what comes after a beginning that is held once.
    skipped = prefix if once else 0
    longest = max(map(len, prompts)) - 1 - skipped
    buffers: list[KeysValues] = []
    start = 0
    while start < len(prompts):
        rows = max(1, READ_TOKENS // max(1, len(prompts[start]) - 1 - prefix))
        piece = prompts[start : start + rows]
        layers = _read(model, [prompt[prefix:-1] for prompt in piece], shared, once, settings.pad_id)
        for number, part in enumerate(layers):
            if number == len(buffers):
                shape = (len(prompts), part[0].shape[1], longest + settings.max_new_tokens + 1)
                buffers.append(
                    (part[0].new_zeros((*shape, part[0].shape[-1])), part[1].new_zeros((*shape, part[1].shape[-1])))
                )
            for buffer, states in zip(buffers[number], part, strict=True):
                for place, prompt in enumerate(piece):
                    length = len(prompt) - 1 - skipped
                    buffer[start + place, :, longest - length : longest] = states[place, :, :length]
        start += len(piece)
    cache = DynamicCache()
    cache.layers = [SlotLayer(keys, values, longest) for keys, values in buffers]
    lengths = [len(prompt) - skipped for prompt in prompts]
    device = model.device
    return Slots(
        cache,
        torch.tensor([prompt[-1:] for prompt in prompts], device=device),
        torch.tensor([[len(prompt) - 1] for prompt in prompts], device=device),
        torch.tensor([[0] * (longest + 1 - length) + [1] * length for length in lengths], device=device),
        once,
    )


def _read(
    model: PreTrainedModel,
    parts: Sequence[list[int]],
    shared: Beginning | None,
    once: Beginning | None,
    pad_id: int,
) -> list[KeysValues]:
    """Keys and values, by layer, of each part behind a beginning, padded on the right, where nothing looks at it.

    They begin with those of the beginning itself unless it is held once.
    """
    width = max(map(len, parts))
    cache = DynamicCache()
    reads_once = None
    if once:
        # Scores of what is held once are laid out whole; where they would be large, torch's own attention reads copies.
        heads = model.config.get_text_config().num_attention_heads
        reads_once = once if len(parts) * heads * width * (once.tokens + width) <= MOST_SCORES else None
    if shared and not reads_once:
        for number, layer in enumerate(shared.layers):
            cache.update(*(states.expand(len(parts), -1, -1, -1) for states in layer), number)
    if width:
        ids = torch.tensor([part + [pad_id] * (width - len(part)) for part in parts], device=model.device)
        positions = (shared.tokens if shared else 0) + torch.arange(width, device=model.device)
        with reads_once.attended(model) if reads_once else nullcontext():
            model(input_ids=ids, position_ids=positions[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
    if not cache.layers and once:
        return [(keys[:, :, :0], values[:, :, :0]) for keys, values in once.layers]
    skipped = once.tokens if once and not reads_once else 0
    return [(layer.keys[:, :, skipped:], layer.values[:, :, skipped:]) for layer in cache.layers]


def _write(
    model: PreTrainedModel,
    slots: Slots,
    known: Sequence[list[int]],
    settings: Settings,
    constraint: Constraint | None,
) -> list[list[int]]:
    """Write the likeliest next token of each row until its end token; returns answers, end token included.

    Rows that have ended leave the batch as soon as they are an eighth of it: transformers' `generate` would carry them,
    and their cache, along to the last row's end.
    """
    end_ids = set(settings.end_ids)
    written = [list(start) for start in known]
    for row, start in enumerate(known if constraint else []):
        for token in start:
            constraint.accept(row, token)  # type: ignore[union-attr]
    rows = list(range(len(written)))
    done: set[int] = set()
    cache, ids, positions, mask = slots.cache, slots.ids, slots.positions, slots.mask
    while True:
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        scores = constraint.mask(logits, rows) if constraint else logits
        tokens: list[int] = scores.argmax(-1).tolist()
        for row, token in zip(rows, tokens, strict=True):
            if row in done:
                continue
            written[row].append(token)
            if constraint:
                constraint.accept(row, token)
            if token in end_ids or len(written[row]) == settings.max_new_tokens:
                done.add(row)
        if len(done) == len(written):
            return written
        ids = torch.tensor(tokens, device=model.device)[:, None]
        positions = positions + 1
        mask = torch.cat([mask, mask.new_ones((len(mask), 1))], dim=-1)
        going = [place for place, row in enumerate(rows) if row not in done]
        if len(going) <= len(rows) * 7 // 8:
            keep = torch.tensor(going, device=model.device)
            cache.batch_select_indices(keep)
            ids, positions, mask = ids[keep], positions[keep], mask[keep]
            rows = [rows[place] for place in going]
