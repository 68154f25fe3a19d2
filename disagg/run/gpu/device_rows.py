"""The rows of a decode batch in device memory; a step uploads only what changed.

Every request of the batch has a place; one spare place pads a batch to the size of a graph.
"""

import torch
from torch import Tensor

from disagg.run.attention.split_decode import power_of_two
from disagg.run.model.sampling import greedy

TILE = 1024  # numbers that a program reads at a time
UPLOADS = 3  # buffers in turn: at most two steps are in flight, so the oldest upload has been read


class DeviceRows:
    """`order` [places] of the step's rows, and each place's last token, length and block table [width]: views of one
    int32 buffer. The padding place writes to `spare_block`, which no request owns."""

    def __init__(self, places: int, width: int, spare_block: int, device: torch.device | str) -> None:
        self.places, self.width, self.device = places, width, torch.device(device)
        sizes = [places, places + 1, places + 1, (places + 1) * width]
        self._state = torch.zeros(sum(sizes), dtype=torch.int32, device=self.device)
        self.order, self.tokens, self.lengths, tables = self._state.split(sizes)
        self.tables = tables.view(places + 1, width)
        self._starts = [0, places, 2 * places + 1, 3 * places + 2]
        self.order.fill_(places)
        self.tables.fill_(spare_block)
        self._changes: list[tuple[int, int]] = []
        self._order: list[int] = [places] * places
        self._uploads = [self._pinned(1024) for _ in range(UPLOADS)]

    def set_order(self, order: list[int], size: int) -> None:
        """The places of the step's rows; the rest of `size` is padding."""
        order = order + [self.places] * (size - len(order))
        for index, place in enumerate(order):
            if self._order[index] != place:
                self._order[index] = place
                self._changes.append((index, place))

    def set_token(self, place: int, token: int) -> None:
        self._changes.append((self._starts[1] + place, token))

    def set_length(self, place: int, length: int) -> None:
        self._changes.append((self._starts[2] + place, length))

    def set_row(self, place: int, token: int, length: int, blocks: list[int]) -> None:
        self.set_token(place, token)
        self.set_length(place, length)
        for index, block in enumerate(blocks):
            self.set_block(place, index, block)

    def set_block(self, place: int, index: int, block: int) -> None:
        self._changes.append((self._starts[3] + place * self.width + index, block))

    def upload(self) -> None:
        """Uploads the changes since the last upload, in stream order before later work."""
        if not self._changes:
            return
        latest = dict(self._changes)  # two values for one number would race
        self._changes.clear()
        self._uploads.append(self._uploads.pop(0))
        if self._uploads[-1].shape[1] < len(latest):
            self._uploads[-1] = self._pinned(2 * len(latest))
        staged = self._uploads[-1][:, : len(latest)]
        staged.copy_(torch.tensor([list(latest), list(latest.values())]))
        where, values = staged[0].to(self.device, non_blocking=True), staged[1].to(self.device, non_blocking=True)
        self._state.index_copy_(0, where, values.int())

    # ---- a step on the device, in few kernels ------------------------------------------------------------------------

    def take(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of the first rows of the order: last tokens [size] int64, lengths [size] and tables [size, width]."""
        if not self.on_gpu:
            order = self.order[:size].long()
            return self.tokens[order].long(), self.lengths[order], self.tables[order]
        from disagg.run.model import decode_kernels  # needs triton

        found = [self._state.new_empty(size, dtype=torch.long), self._state.new_empty(size)]
        table = self._state.new_empty(size, self.width)
        given = self.order, self.tokens, self.lengths, self.tables, *found, table
        decode_kernels.take_rows[(size,)](*given, WIDTH=self.width, TILE=min(TILE, power_of_two(self.width)))
        return found[0], found[1], table

    def move_on(self, logits: Tensor) -> Tensor:
        """What `greedy` gives for logits [size, vocab]; these rows get their tokens and are one token longer."""
        size, vocab = logits.shape
        if not self.on_gpu:
            picked, order = greedy(logits), self.order[:size].long()
            self.tokens.index_copy_(0, order, picked[0])
            self.lengths.index_add_(0, order, torch.ones_like(picked[0]))
            self.lengths[-1:].zero_()  # the padding place stays empty
            return picked
        from disagg.run.model import decode_kernels  # needs triton

        parts = 64 if size <= 8 else 16
        best, where = logits.new_empty(size, parts, dtype=torch.float32), self._state.new_empty(size, parts)
        picked = self._state.new_empty(2, size)
        decode_kernels.best_of_part[(size, parts)](logits.contiguous(), best, where, vocab, PARTS=parts, TILE=TILE)
        given = best, where, self.order, self.tokens, self.lengths, picked, self.places
        decode_kernels.move_on[(size,)](*given, PARTS=parts, num_warps=1)
        return picked

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def _pinned(self, count: int) -> torch.Tensor:
        return torch.empty(2, count, dtype=torch.long, pin_memory=self.device.type == "cuda")
