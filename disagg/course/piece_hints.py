"""Three hints for each piece of `my_disagg`: a nudge, a step, nearly the line. No torch, so a page can list them."""

HINTS = {
    "attention": (
        "Four steps, one line each: a score for each key, e to the score, the shares, and then the sums.",
        "score = sum(q * k for q, k in zip(query, key)) / math.sqrt(len(query)); share = e to it / the sum of all.",
        "The result has one number a column: for column in zip(*values), sum(s * v for s, v in zip(shares, column)).",
    ),
    "cache": (
        "self.held has an entry for each layer that was seen before. What is new in the first call of a layer?",
        "If the layer is there, join: torch.cat([old, new]) for keys and for values. Otherwise take the new ones.",
        "Then self.held[layer] = keys, values, and return keys, values.",
    ),
    "batch": (
        "First who leaves, then who joins; and nobody may stand in two lists.",
        "Keep the rows that are not row.done. While there is a place and somebody waits, take the first in line.",
        "while waiting and len(batch) < places: batch.append(waiting.pop(0)), then return batch.",
    ),
    "queue": (
        "put only keeps. take decides: may anything start now, and which copy is first?",
        "No copy starts before self.free_at. Tuples (request, layer, takes) are compared in just the wanted order.",
        "copy = min(self.waiting); remove it, set self.free_at = now + copy[2], and return it.",
    ),
    "ring": (
        "A slot is in self.free, or it holds data: each call moves one from the one side to the other.",
        "put: no slot free, so None; else slot = self.free.pop(), keep the data there, and return the slot.",
        "take: self.free.append(slot), and return self.slots[slot].",
    ),
    "table": (
        "Count blocks before you take any: how many are needed for all tokens, and how many are there already?",
        "need = -(-(self.tokens + tokens) // self.size) - len(self.blocks). Too few free: False, and nothing changes.",
        "Token n is in block self.blocks[n // self.size], at n % self.size; give_back also sets tokens to 0.",
    ),
    "bins": (
        "There is one bin more than bounds. Which number does the bin of a length have?",
        "It is the number of bounds that are smaller than the length: a row as long as a bound is still below it.",
        "groups[sum(length > bound for bound in bounds)].append(row), and return the groups that are not empty.",
    ),
}
