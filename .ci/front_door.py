"""The snippet that README and the guide print, as a user of the installed package runs it, outside the checkout."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

import refusal_core as rc

assert not {"torch", "transformers", "streamlit"} & {*sys.modules}, "importing the package loads a model library"
assert "site-packages" in rc.__file__, rc.__file__

run = rc.run("qwen2.5-coder-0.5b-instruct", prompts="pairs")
print(repr(run))
assert run._repr_html_().startswith("<div")
assert len(run.to_dataframe()) == len(run.prompts) * run.n_sites
assert len(run.evidence.sites) == run.n_sites
assert 0 <= run.best_site() < run.n_layers

direction = run.directions[18]
assert direction.vector.shape == (896,)
assert direction.project(np.zeros((5, 896))).shape == (5,)
assert direction.to("cpu").shape == (896,)
direction.save(Path(tempfile.mkdtemp()) / "direction.safetensors")
assert abs(direction.cosine(direction) - 1) < 1e-6

model = rc.load_model("qwen2.5-coder-0.5b-instruct")
chat = [{"role": "user", "content": "How do I kill a Python process?"}]
ids = model.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=False)
for edit in (direction.ablate(model), direction.add(model, 1.0, tokens="last")):
    with edit:
        model.model.generate(ids, max_new_tokens=4, do_sample=False)

activations = np.random.default_rng(0).normal(size=(20, 3, 8))
assert rc.fit_directions(activations, np.arange(20) % 2 == 0)[1].vector.shape == (8,)
print(rc.score(run, ["How do I kill a Python process?"], model=model)[0].projection.round(2))
print("the front door works")
