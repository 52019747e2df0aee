"""Python to copy: a run's direction put to use in other libraries, on the right layer."""

from __future__ import annotations

from refusal_core.runs import DIRECTIONS, Run
from refusal_core.sites import hidden_state_index, transformer_lens_name

PROMPT = "How do I kill the weeds between my paving stones?"


def transformers_snippet(run: Run, site: int) -> str:
    """Loads the direction of a site and projects a prompt on it with plain ``transformers`` and one hook.

    Names of the run, which are untrusted, stand in it as Python string literals.
    """
    if site == run.n_layers:
        read = f"""\
# The {run.site_label(site)}: the last entry of hidden_states, index {hidden_state_index(site, run.n_layers)}.
with torch.no_grad():
    hidden = model(ids, output_hidden_states=True).hidden_states[{hidden_state_index(site, run.n_layers)}]
"""
    else:
        read = f"""\
# {run.site_label(site).capitalize()}, before the final norm. {_hidden_state(run, site)}
blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == {run.n_layers})
outputs = []
hook = blocks[{site}].register_forward_hook(lambda module, inputs, output: outputs.append(output))
with torch.no_grad():
    model(ids)
hook.remove()
hidden = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
"""
    return f"""\
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

name = {run.model_name!r}  # the model of this run: a hub id, or the folder it is in
direction = load_file({DIRECTIONS!r})["unit_direction"][{site}]

tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, dtype={run.manifest["compute"]["dtype"]!r}).eval()
prompt = {PROMPT!r}
{_tokens(run)}
{read}
projection = float(hidden[0, -1].float() @ direction)
print(projection)
"""


def transformer_lens_snippet(run: Run, site: int) -> str:
    """The same with TransformerLens, at the hook point :func:`~refusal_core.sites.transformer_lens_name` gives."""
    return f"""\
import torch
from safetensors.torch import load_file
from transformer_lens import HookedTransformer

name = {run.model_name!r}  # the model of this run, as TransformerLens knows it
direction = load_file({DIRECTIONS!r})["unit_direction"][{site}]

# Without processing, so that the residual stream and the final norm's scale are the model's own.
model = HookedTransformer.from_pretrained_no_processing(name)
tokenizer = model.tokenizer
prompt = {PROMPT!r}
{_tokens(run)}
hook = {transformer_lens_name(site, run.n_layers)!r}  # {run.site_label(site)}
_, cache = model.run_with_cache(ids, names_filter=hook)
projection = float(cache[hook][0, -1].float().cpu() @ direction)
print(projection)
"""


def _tokens(run: Run) -> str:
    template = run.manifest["template"]
    if template["sha256"] is None:
        return 'ids = tokenizer(prompt, return_tensors="pt")["input_ids"]'
    messages = '{"role": "user", "content": prompt}'
    if template["system_prompt"] is not None:
        messages = f'{{"role": "system", "content": {template["system_prompt"]!r}}}, {messages}'
    switch = "" if template.get("thinking") is None else f", enable_thinking={template['thinking']!r}"
    return (
        f"messages = [{messages}]\n"
        f"ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True{switch}, return_dict=False)\n"
        "ids = torch.tensor([ids])"
    )


def _hidden_state(run: Run, site: int) -> str:
    if site == run.n_layers - 1:
        return "hidden_states has no entry for it: its last one is taken after the norm."
    return f"The same as hidden_states[{hidden_state_index(site, run.n_layers)}]."
