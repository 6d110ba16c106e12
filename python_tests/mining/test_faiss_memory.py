"""What building a FAISS index takes beside what it then holds."""

from __future__ import annotations

import pytest

pytest.importorskip("faiss", reason="FAISS: pip install 'cpr_kernels[faiss]'")

from fresh_process import peak_kib


def test_a_flat_store_that_knows_its_size_does_not_double_on_the_way() -> None:
    """Just past a power of two of its blocks, where growing by doubling holds everything twice."""
    rows, blocks, dim = 8192, 33, 128
    inputs = (
        "import numpy as np; from cpr_kernels.mining.faiss.store import VectorStore\n"
        f"torch.set_num_threads(1); block = np.random.default_rng(0).random(({rows}, {dim}), np.float32)\n"
        "def fill(count):\n"
        f"    store = VectorStore('Flat', {dim}, count * {rows})\n"
        f"    store.reserve(count * {rows})\n"
        f"    for i in range(count): store.add(block, np.arange(i * {rows}, (i + 1) * {rows}))\n"
        f"    assert store.held == count * {rows}; return store\n"
        "fill(1)"
    )
    held = blocks * rows * dim * 4
    assert held < 1024 * peak_kib(inputs, f"kept = fill({blocks})") < 1.3 * held
