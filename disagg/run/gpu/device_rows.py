"""The rows of a decode batch in device memory; a step uploads only what changed.

Every request of the batch has a place; one spare place pads a batch to the size of a graph.
"""

import torch

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

    def _pinned(self, count: int) -> torch.Tensor:
        return torch.empty(2, count, dtype=torch.long, pin_memory=self.device.type == "cuda")
