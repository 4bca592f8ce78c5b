"""What importance does to Q4_0, on random weights: llama.cpp's two ways to write a block, in numpy.

Without importance the largest number of a block is exact and the others are rounded; with it, of 19 scales
the one is taken whose weighed error is least. Needs numpy alone; the same on every machine.
"""

import numpy as np

BLOCK, ROWS, BLOCKS = 32, 896, 28


def half(values):
    return values.astype(np.float16).astype(np.float32)


def plain(weights, bits):
    """Blocks as Q4_0 and Q5_0 write them without importance, read back."""
    most = 1 << (bits - 1)
    largest = np.take_along_axis(weights, np.abs(weights).argmax(-1, keepdims=True), -1)
    scale = largest / -most
    return half(scale) * (np.minimum(2 * most - 1, (weights / scale + most + 0.5).astype(np.int8)) - most)


def weighed(weights, importance):
    """Blocks as Q4_0 writes them with importance, read back."""
    mean_square = (weights.reshape(ROWS, -1) ** 2).mean(-1)[:, None, None]
    costs = importance * np.sqrt(mean_square + weights * weights)
    largest = np.take_along_axis(weights, np.abs(weights).argmax(-1, keepdims=True), -1)
    best = None
    for step in [0, *range(-9, 0), *range(1, 10)]:
        steps = np.clip(np.rint(-(8 + 0.1 * step) / largest * weights), -8, 7)
        along = (costs * weights * steps).sum(-1, keepdims=True)
        scale = along / (costs * steps * steps).sum(-1, keepdims=True)
        gain = scale * along
        if best is None:
            best = (gain, scale, steps)
        else:
            best = tuple(np.where(gain > best[0], new, old) for new, old in zip((gain, scale, steps), best))
    return half(best[1]) * best[2]


def main():
    random = np.random.default_rng(0)
    weights = plain(random.standard_normal((ROWS, BLOCKS, BLOCK)).astype(np.float32) * 0.02, 5)
    for name, importance in [
        ("all columns alike", np.ones(BLOCK)),
        ("log-normal, sigma 1", np.exp(random.standard_normal((BLOCKS, BLOCK)))),
        ("one column of 32 at 1,000", np.where(np.arange(BLOCK) == 5, 1000.0, 1.0)),
    ]:
        costs = np.broadcast_to(importance.astype(np.float32), weights.shape)
        ways = [plain(weights, 4), weighed(weights, costs)]
        bare = [((way - weights) ** 2).sum() / (weights**2).sum() for way in ways]
        by_cost = [(costs * (way - weights) ** 2).sum() / (costs * weights**2).sum() for way in ways]
        print(f"{name:26} plain error {bare[0]:.4f} -> {bare[1]:.4f}  weighed {by_cost[0]:.4f} -> {by_cost[1]:.4f}")


main()
