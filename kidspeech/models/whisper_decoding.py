"""
Greedy decoding of Whisper's decoder: the words of transformers' generate, in a fraction of its time.

What generate loses on short clips is not arithmetic. Every token costs some hundred small launches from Python (a GPU idles
between them), caches that grow by copying, a chain of logits processors, a look at the device to see who has finished, and
every batch runs to its longest clip in full. Here

- caches have their final size from the start, and cross-attention keys and values are computed once;
- a step reads and writes only tensors that stay where they are, its position included, so that on a GPU it is recorded
  once as a CUDA graph and replayed in one launch; on a CPU the same step runs as it is;
- tokens that must not come are one vector added to the logits;
- it is asked every LOOK steps whether all have finished, and without graphs the rows that have are dropped.

The layers are walked through by their names, which are the same in transformers 4.57 and 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LOOK = 8  # steps between looks at the device, each of which waits for it
ROOM = 32  # a cache has a multiple of this many positions, so that few shapes occur and graphs are used again
DROP = 0.5  # share of unfinished rows under which the others are dropped: a copy of the caches, at most log2(rows) times
GRAPHS = 64  # recorded steps kept; each holds some hundred kernels, no caches of its own


@dataclass(frozen=True)
class Layout:
    """
    Shape of one batch: rows, encoder states each, and positions of the self-attention caches.
    """

    rows: int
    states: int
    room: int


@dataclass
class Slots:
    """
    All that a step reads and writes besides weights. Caches are (layers, rows, heads, positions, width of a head).
    """

    layout: Layout
    keys: Tensor
    values: Tensor
    cross_keys: Tensor
    cross_values: Tensor
    ids: Tensor
    """Shape (rows, room): prompt, then what was made; the end token from a row's end on."""
    last: Tensor
    """Shape (rows,): the last position each row may fill."""
    finished: Tensor
    place: Tensor
    """Shape (1,): the position whose token is read; the next one is written."""
    graph: torch.cuda.CUDAGraph | None = None
    warm: bool = False
    """Whether a step has run as it is, which has kernels chosen and loaded before one is recorded."""


class GreedyDecoder:
    """
    Decodes batch after batch with one network, whose weights must stay where they are; their values may change.

    Args:
        network: transformers' WhisperForConditionalGeneration.
        prompt: token ids that every row starts with.
        end: id of the end token.
        suppress: ids that never come.
        suppress_first: ids that don't come first.
        graphs: record steps as CUDA graphs. Not under autocast, whose copies of the weights don't last.
    """

    def __init__(
        self,
        network: Any,
        prompt: Sequence[int],
        end: int,
        suppress: Sequence[int],
        suppress_first: Sequence[int],
        *,
        graphs: bool,
    ) -> None:
        self.decoder, self.proj_out = network.model.decoder, network.proj_out
        self.heads, self.graphs, self.end = network.config.decoder_attention_heads, graphs, end
        device = network.device
        self.prompt = torch.tensor(list(prompt), device=device)
        self.forbidden = torch.zeros(2, network.config.vocab_size, device=device)  # added to later logits, and to the first
        self.forbidden[:, list(suppress)] = -torch.inf
        self.forbidden[1, list(suppress_first)] = -torch.inf
        self._recorded: dict[Layout, Slots] = {}
        self._storage: dict[str, Tensor] = {}
        self._memory: Any = None
        self._stream: Any = None

    @torch.inference_mode()  # type: ignore[untyped-decorator]  # torch is not read by mypy here
    def __call__(self, encoded: Tensor, caps: Sequence[int]) -> list[list[int]]:
        """
        Return the new token ids of each row, its end token included where it came.

        Args:
            encoded: encoder states, shape (rows, states, width).
            caps: the most new tokens of each row.
        """
        slots = self._slots(encoded, caps)
        self._fill_cross(slots, encoded)
        for place in range(len(self.prompt) - 1):
            slots.place.fill_(place)
            self._hidden(slots)
        slots.place.fill_(len(self.prompt) - 1)
        made = torch.full((len(caps), max(caps)), self.end, device=encoded.device)
        rows = torch.arange(len(caps), device=encoded.device)
        for step in range(max(caps)):
            self._advance(slots)
            if (step + 1) % (LOOK if self.graphs else 1) == 0:
                slots, rows = self._drop(slots, rows, made)
                if not len(rows):
                    break
        self._keep(slots, rows, made)
        return [self._cut(ids, cap) for ids, cap in zip(made.tolist(), caps, strict=True)]

    def _slots(self, encoded: Tensor, caps: Sequence[int]) -> Slots:
        first, room = len(self.prompt), -(-(len(self.prompt) + max(caps)) // ROOM) * ROOM
        layout = Layout(len(encoded), encoded.shape[1], min(room, self.decoder.embed_positions.num_embeddings))
        slots = self._recorded.pop(layout, None) or self._new_slots(layout, encoded)
        if self.graphs:
            self._recorded[layout] = slots
            if len(self._recorded) > GRAPHS:
                self._recorded.pop(next(iter(self._recorded)))
        slots.keys.zero_()  # of another batch; what is masked is multiplied by zero, and an infinity would come through
        slots.values.zero_()
        slots.ids.fill_(self.end)
        slots.ids[:, :first] = self.prompt
        slots.last.copy_(torch.tensor(caps) + (first - 1))
        slots.finished.zero_()
        return slots

    def _new_slots(self, layout: Layout, like: Tensor) -> Slots:
        layers, width = len(self.decoder.layers), like.shape[2] // self.heads
        own = (layers, layout.rows, self.heads, layout.room, width)
        cross = (layers, layout.rows, self.heads, layout.states, width)
        device = like.device
        return Slots(
            layout,
            self._room_for("keys", own, like),
            self._room_for("values", own, like),
            self._room_for("cross_keys", cross, like),
            self._room_for("cross_values", cross, like),
            torch.empty(layout.rows, layout.room, dtype=torch.long, device=device),
            torch.empty(layout.rows, dtype=torch.long, device=device),
            torch.empty(layout.rows, dtype=torch.bool, device=device),
            torch.zeros(1, dtype=torch.long, device=device),
        )

    def _room_for(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        # all batches share one piece of memory per cache: recorded steps of many shapes would fill a card otherwise
        size = torch.Size(shape).numel()
        if name not in self._storage or len(self._storage[name]) < size:
            self._recorded.clear()  # their graphs write into the old piece
            self._memory = None
            self._storage.pop(name, None)
            self._storage[name] = torch.zeros(size + size // 8, dtype=like.dtype, device=like.device)
        return self._storage[name][:size].view(shape)

    def _fill_cross(self, slots: Slots, encoded: Tensor) -> None:
        for number, layer in enumerate(self.decoder.layers):
            attention = layer.encoder_attn
            slots.cross_keys[number].copy_(self._split(attention.k_proj(encoded)))
            slots.cross_values[number].copy_(self._split(attention.v_proj(encoded)))

    def _advance(self, slots: Slots) -> None:
        if self.graphs and slots.warm and slots.graph is None:
            slots.graph = self._record(slots)
        if slots.graph is not None:
            slots.graph.replay()
        else:
            self._step(slots)
            slots.warm = True

    def _record(self, slots: Slots) -> torch.cuda.CUDAGraph:
        # Runs nothing, and costs about two steps: torch.cuda.graph would also hand the free memory back each time, for the
        # next encoder to ask for again. All graphs share the memory of what lies between their kernels: they run one after
        # the other, and all that outlives a step is in the slots.
        if self._memory is None:
            self._memory, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._memory, capture_error_mode="thread_local")  # other threads may use the device
            try:
                self._step(slots)
            finally:
                graph.capture_end()
        return graph

    def _step(self, slots: Slots) -> None:
        logits = self.proj_out(self._hidden(slots)[:, 0]).float()
        first = (slots.place < len(self.prompt)).long()
        chosen = (logits + self.forbidden[first]).argmax(-1)
        chosen = torch.where(slots.finished, self.end, chosen)
        slots.place += 1
        slots.ids.index_copy_(1, slots.place, chosen[:, None])
        slots.finished |= (chosen == self.end) | (slots.place >= slots.last)

    def _hidden(self, slots: Slots) -> Tensor:
        tokens = slots.ids.index_select(1, slots.place)
        x = self.decoder.embed_tokens(tokens) + self.decoder.embed_positions.weight[slots.place]
        seen = (torch.arange(slots.layout.room, device=x.device) <= slots.place)[None, None, None]
        for number, layer in enumerate(self.decoder.layers):
            x = x + self._self_attend(layer, x, (slots.keys[number], slots.values[number]), slots.place, seen)
            query = layer.encoder_attn_layer_norm(x)
            x = x + self._attend(layer.encoder_attn, query, slots.cross_keys[number], slots.cross_values[number], None)
            x = x + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x))))
        hidden: Tensor = self.decoder.layer_norm(x)
        return hidden

    def _self_attend(self, layer: nn.Module, x: Tensor, cache: tuple[Tensor, Tensor], place: Tensor, seen: Tensor) -> Tensor:
        attention, normed, (keys, values) = layer.self_attn, layer.self_attn_layer_norm(x), cache
        keys.index_copy_(2, place, self._split(attention.k_proj(normed)).to(keys.dtype))
        values.index_copy_(2, place, self._split(attention.v_proj(normed)).to(values.dtype))
        return self._attend(attention, normed, keys, values, seen)

    def _attend(self, attention: nn.Module, normed: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None) -> Tensor:
        # the query is scaled before the product, as transformers does: the other order differs in the last bits
        query = self._split(attention.q_proj(normed) * attention.scaling).to(keys.dtype)
        heard = functional.scaled_dot_product_attention(query, keys, values, attn_mask=seen, scale=1.0)
        result: Tensor = attention.out_proj(heard.transpose(1, 2).flatten(2))
        return result

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _drop(self, slots: Slots, rows: Tensor, made: Tensor) -> tuple[Slots, Tensor]:
        going = (~slots.finished).nonzero()[:, 0]
        if len(going) and (self.graphs or len(going) > DROP * len(rows)):
            return slots, rows
        self._keep(slots, rows, made)
        names = ("ids", "last", "finished")
        kept = {name: getattr(slots, name)[going] for name in names}
        caches = {name: getattr(slots, name)[:, going] for name in ("keys", "values", "cross_keys", "cross_values")}
        layout = Layout(len(going), slots.layout.states, slots.layout.room)
        return Slots(layout, **caches, **kept, place=slots.place), rows[going]

    def _keep(self, slots: Slots, rows: Tensor, made: Tensor) -> None:
        new = slots.ids[:, len(self.prompt) :][:, : made.shape[1]]
        made[rows, : new.shape[1]] = new

    def _cut(self, ids: list[int], cap: int) -> list[int]:
        length = ids.index(self.end) + 1 if self.end in ids else cap
        return ids[: min(length, cap)]
