"""Scores of prompts of one's own against a run, with the run's model and no other."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import tiny_model

from refusal_core.errors import ModelError, PromptError, RunError
from refusal_core.pipeline.scoring import load_model_for, score


def test_a_fitted_prompt_scores_what_the_run_says(tiny_run, tiny_chat_model):
    row = 5
    result = score(tiny_chat_model, tiny_run, [tiny_run.prompts["text"][row]])[0]
    np.testing.assert_allclose(result.projection, tiny_run.projections[row], rtol=1e-4, atol=1e-4)
    assert result.refusal_log_odds == pytest.approx(tiny_run.prompts["refusal_log_odds"][row], abs=1e-3)
    assert result.token_projection.shape == (len(result.tokens), tiny_run.n_sites)
    own = tiny_run.projections[tiny_run.rows(tiny_run.prompts["label"][row]), 3]
    assert (
        abs(result.percentile[tiny_run.prompts["label"][row]][3] - 100 * (own < tiny_run.projections[row, 3]).mean())
        < 100 / 12
    )


def test_scoring_refuses_another_model(tiny_run, tmp_path):
    other = tiny_model("llama")
    other.model.save_pretrained(tmp_path)
    other.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is not the model of this run"):
        load_model_for(tiny_run, tmp_path)
    with pytest.raises(RunError, match="say where it is"):
        load_model_for(tiny_run)


def test_scoring_refuses_what_cannot_be_scored(tiny_run, tiny_chat_model):
    with pytest.raises(PromptError, match=r"text 2: .*empty"):
        score(tiny_chat_model, tiny_run, ["fine", "  "])
    with pytest.raises(PromptError, match="tokens long"):
        score(tiny_chat_model, tiny_run, ["word " * 2000])
