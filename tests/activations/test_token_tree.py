"""The tree of phrases: every beginning once, and the log-odds of the sum over phrases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from refusal_core.activations.token_tree import TokenTree

PHRASES = [[4, 2, 7], [4, 2, 1, 3], [4, 5], [6]]


def test_what_phrases_begin_with_is_run_once():
    tree = TokenTree(PHRASES)
    assert tree.nodes == [(), (4,), (4, 2), (4, 2, 1)]
    assert tree.branches == [[4, 2, 1]]
    assert TokenTree([[1], [2]]).branches == []


def test_log_odds_are_those_of_the_summed_probability():
    logits = 2 * torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(0))
    p = logits.double().softmax(dim=-1).numpy()
    total = p[:, 0, 4] * (p[:, 1, 2] * (p[:, 2, 7] + p[:, 2, 1] * p[:, 3, 3]) + p[:, 1, 5]) + p[:, 0, 6]
    found = TokenTree(PHRASES).log_odds(logits).numpy()
    np.testing.assert_allclose(found, np.log(total) - np.log1p(-total), rtol=1e-5)


def test_certainty_has_finite_log_odds():
    logits = torch.full((1, 4, 9), -900.0)
    logits[0, 0, 6] = 900.0
    assert torch.isfinite(TokenTree(PHRASES).log_odds(logits)).all()


@pytest.mark.parametrize(
    ("likeliest", "tokens", "nodes"),
    [([8, 0, 0, 0], [8], []), ([4, 8, 0, 0], [4, 8], [1]), ([4, 2, 1, 3], [4, 2, 1, 3], [1, 2, 3])],
)
def test_the_likeliest_way_is_followed_as_far_as_the_tree_goes(likeliest, tokens, nodes):
    assert TokenTree(PHRASES).greedy(likeliest) == (tokens, nodes)
