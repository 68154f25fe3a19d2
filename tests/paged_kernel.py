"""A paged kernel made of plain PyTorch, which stands in for flash-attn where there is no GPU."""

from functools import partial

import torch


class PlainKernel:
    name, version = "plain PyTorch", "1"

    def store(self, cache, layer, slots, key, value):
        goes = slots >= 0
        cache.write(layer, slots[goes], key[: len(slots)][goes], value[: len(slots)][goes])

    def chunked(self, query, keys, values, chunks, scale, out):
        self.tiled(query, keys, values, (chunks.table, chunks.tiles, torch.zeros(1, 1), torch.zeros(1)), scale, out)

    def tiled(self, query, keys, values, places, scale, out):
        table, tiles, stored, row = places
        stored[int(row), 0] = 1
        for where, first, rows, at in tiles.tolist():
            if rows:
                blocks = table[where, : -(-(at + rows) // keys.shape[1])].long()
                k, v = (x[blocks].flatten(0, 1)[: at + rows] for x in (keys, values))
                out[first : first + rows] = self._one(query[first : first + rows], k, v, scale)

    def decoder(self, cache, table, lengths):
        return partial(self.decode, table, lengths)

    def decode(self, table, lengths, query, key, value, keys, values, scale):
        out = []
        for row, length in enumerate(lengths.tolist()):
            block, place = int(table[row, length // keys.shape[1]]), length % keys.shape[1]
            keys[block, place], values[block, place] = key[row], value[row]
            k, v = (x[table[row].long()].flatten(0, 1)[: length + 1] for x in (keys, values))
            out.append(self._one(query[row : row + 1], k, v, scale))
        return torch.cat(out)

    def _one(self, query, key, value, scale):
        """query [T, heads, head_dim] sees the last T of key [S, kv_heads, head_dim] causally."""
        group = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(group, 1) for x in (key, value))
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        scores = torch.einsum("qhd,khd->hqk", query, key) * scale
        seen = torch.ones(len(query), len(key), dtype=torch.bool).tril(len(key) - len(query))
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, float("-inf")).softmax(-1), value)
