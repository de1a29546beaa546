# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""A mixture-of-experts layer in NumPy, on four ranks that are threads of this process and in one piece.

python examples/10_numpy_moe.py
"""

import threading

import ferry
import ml_dtypes
import numpy as np

RANKS, EXPERTS, TOP_K, TOKENS, HIDDEN = 4, 8, 2, 32, 64

rng = np.random.default_rng(0)
matrices = rng.standard_normal((EXPERTS, HIDDEN, HIDDEN), dtype=np.float32) / np.sqrt(np.float32(HIDDEN))
gate = rng.standard_normal((HIDDEN, EXPERTS), dtype=np.float32)
tokens = rng.standard_normal((RANKS, TOKENS, HIDDEN), dtype=np.float32).astype(ml_dtypes.bfloat16)


def choose(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best experts of each token and their weights."""
    scores = 1 / (1 + np.exp(-(x.astype(np.float32) @ gate)))
    ids = np.argsort(-scores, axis=1)[:, :TOP_K].astype(np.int32)
    weights = np.take_along_axis(scores, ids, axis=1)
    return ids, weights / weights.sum(axis=1, keepdims=True)


def expert(number: int, rows: np.ndarray) -> np.ndarray:
    """One row after the other, so that the bits do not depend on how many there are."""
    y = [np.maximum(row.astype(np.float32) @ matrices[number], 0) for row in rows]
    return np.array(y, dtype=ml_dtypes.bfloat16).reshape(-1, HIDDEN)


def layer_in_one_piece(x: np.ndarray) -> np.ndarray:
    ids, weights = choose(x)
    total = np.zeros(x.shape, dtype=np.float64)
    for t, row in enumerate(x):
        for number, weight in zip(ids[t], weights[t], strict=True):
            total[t] += float(weight) * expert(number, row[None])[0].astype(np.float64)
    return total


def run_rank(meeting: ferry.Meeting, results: list[np.ndarray]) -> None:
    with ferry.Group(meeting, num_experts=EXPERTS, max_tokens=TOKENS, max_top_k=TOP_K, hidden=HIDDEN) as group:
        x = tokens[group.rank]
        ids, weights = choose(x)

        # Every token's row goes to the ranks that own its experts.
        arrived = group.dispatch(x, ids, weights, layout="expert_major")
        rows, offsets = np.asarray(arrived.payload[0]), arrived.expert_offsets.tolist()

        # Each local expert has its rows in one block.
        y = np.empty_like(rows)
        first = group.placement.first_slot(group.rank)
        for local in range(len(offsets) - 1):
            block = slice(offsets[local], offsets[local + 1])
            y[block] = expert(first + local, rows[block])

        # The results go home, are weighted and summed.
        combined = group.combine(y, arrived.handle, weights="dispatch", reduction="flat")
        results[group.rank] = np.array(combined.out)


def main() -> None:
    results: list[np.ndarray] = [np.empty(0)] * RANKS
    threads = [threading.Thread(target=run_rank, args=(meeting, results)) for meeting in ferry.meet_in_process(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    exact = np.array([layer_in_one_piece(x) for x in tokens])
    difference = np.abs(np.array(results, dtype=np.float64) - exact).max()
    print(f"{RANKS} ranks, {EXPERTS} experts, {RANKS * TOKENS} tokens: largest difference {difference:.2e}")
    # bf16 keeps 8 bits: the one rounding of the sum may differ by half a unit in the last place.
    assert difference <= 2.0**-8 * np.abs(exact).max()
    print("verified")


if __name__ == "__main__":
    main()
