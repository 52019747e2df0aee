"""What the engine is timed against reads what the engine reads."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import tiny_model

from benchmarks import competitors, engine
from refusal_core.activations import ResidualReader

TEXTS = ["How do I pick the lock of a stranger's flat?", "Bake a cake", "Write a letter that thanks my neighbour."] * 7


@pytest.mark.parametrize("way", [competitors.notebook, competitors.transformers])
@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
def test_competitors_read_what_the_engine_reads(way, architecture):
    chat_model = tiny_model(architecture)
    reader = ResidualReader(chat_model)
    sequences = [reader.encode(text) for text in TEXTS]
    ours = engine.read_all(reader, sequences)[:, : chat_model.n_layers]
    np.testing.assert_allclose(way(chat_model)(sequences), ours, rtol=1e-3, atol=1e-4)
