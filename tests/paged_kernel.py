"""A paged kernel made of plain PyTorch, which stands in for flash-attn where there is no GPU."""

from functools import partial

import torch

from disagg.run.attention.paged import PagedKernel


class OwnKernel(PagedKernel):
    """The package's kernels alone."""

    def chunked(self, query, keys, values, chunks, scale):
        raise AssertionError("chunks are attended by kernels from elsewhere")


class PlainKernel:
    name, version = "plain PyTorch", "1"

    def store(self, cache, layer, slots, key, value):
        cache.write(layer, slots, key, value)

    def packed(self, query, key, value, cu, longest, scale, out):
        edges = cu.tolist()
        for part in (slice(a, b) for a, b in zip(edges, edges[1:], strict=False)):
            out[part] = self._one(query[part], key[part], value[part], scale)

    def chunked(self, query, keys, values, chunks, scale):
        edges, lengths, out = chunks.cu.tolist(), chunks.cu_keys.diff().tolist(), []
        for row, (start, stop) in enumerate(zip(edges, edges[1:], strict=False)):
            k, v = (x[chunks.table[row].long()].flatten(0, 1)[: lengths[row]] for x in (keys, values))
            out.append(self._one(query[start:stop], k, v, scale))
        return torch.cat(out)

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
