"""Python code to copy that uses a run's direction with other libraries, at the right layer."""

from __future__ import annotations

from pathlib import Path

from refusal_core.models.known import KNOWN, KnownModel
from refusal_core.options import ESTIMATORS
from refusal_core.runs.manifest import DIRECTIONS, TemplateRecord
from refusal_core.runs.run import Run
from refusal_core.sites import hidden_state_index, transformer_lens_name

PROMPT = "How do I kill the weeds between my paving stones?"


def transformers_snippet(run: Run, site: int) -> str:
    """Return code that projects a prompt on the direction of a site with plain ``transformers`` and one hook.

    Weights, dtype, quantisation and chat template are the run's. A local model is looked for in the working folder,
    because a run does not say where it lay. The manifest's texts, which are untrusted, are written as Python literals.
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
modules = model.get_decoder().modules()
blocks = next(m for m in modules if isinstance(m, torch.nn.ModuleList) and len(m) == {run.n_layers})
outputs = []
hook = blocks[{site}].register_forward_hook(lambda module, inputs, output: outputs.append(output))
with torch.no_grad():
    model(ids)
hook.remove()
hidden = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
"""
    return f"""\
{_model_and_ids(run, site)}
{read}
projection = float(hidden[0, -1].float().cpu() @ direction)
print(projection)
"""


def transformer_lens_snippet(run: Run, site: int) -> str:
    """Return the same with TransformerLens 4, which wraps the model that ``transformers`` loaded."""
    hook = transformer_lens_name(site, run.n_layers)
    return f"""\
{_model_and_ids(run, site, "from transformer_lens.model_bridge import TransformerBridge")}
bridge = TransformerBridge.boot_transformers(
    name, hf_model=model, tokenizer=tokenizer, dtype=model.dtype, device=model.device
)
hook = {hook!r}  # {run.site_label(site)}
with torch.no_grad():
    _, cache = bridge.run_with_cache(ids, names_filter=hook)
projection = float(cache[hook][0, -1].float().cpu() @ direction)
print(projection)
"""


def _model_and_ids(run: Run, site: int, *imports: str) -> str:
    """Return their beginning: ``direction``, ``name``, ``tokenizer``, ``model`` and the prompt's token ``ids``."""
    model, compute, template = run.manifest.model, run.manifest.compute, run.manifest.template
    auto = "AutoModelForCausalLM"
    if model.architecture.endswith("ForConditionalGeneration"):
        auto = "AutoModelForImageTextToText"
    classes, arguments, quantisation = [auto, "AutoTokenizer"], [f"dtype={compute.dtype!r}"], _quantisation(run)
    if quantisation:
        classes.append(quantisation.partition("(")[0])
        arguments.append("quantization_config=quantisation")
    standard = []
    if template.day is not None:
        standard += ["import re", "from datetime import date"]
    if _known(run):
        standard.append("from os.path import expanduser")
    name, chosen = _source(run)
    lines = [
        *([*standard, ""] if standard else []),
        "import torch",
        "from safetensors.torch import load_file",
        *imports,
        f"from transformers import {', '.join(classes)}",
        "",
        *name,
        *([f"# Not the mean difference: {ESTIMATORS[run.manifest.estimator]}."] if run.estimator_note else []),
        f'direction = load_file({DIRECTIONS!r})["unit_direction"][{site}]',
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({', '.join(['name', *chosen])})",
        *([f"quantisation = {quantisation}"] if quantisation else []),
        f"model = {auto}.from_pretrained({', '.join(['name', *chosen, *arguments])}).eval()",
        f"prompt = {PROMPT!r}",
        *_ids(template),
    ]
    return "\n".join(lines)


def _known(run: Run) -> KnownModel | None:
    """Return the known model of the run's name, if the run's was opened as such."""
    model = run.manifest.model
    return KNOWN.get(model.name) if model.source == "fetched" else None


def _source(run: Run) -> tuple[list[str], list[str]]:
    """Return the lines that say where the model is, and the other arguments of ``from_pretrained``."""
    model, known = run.manifest.model, _known(run)
    name = model.name
    if known is not None:
        return _fetched(known), []
    if model.source == "hub":
        return [f"name = {name!r}"], [f"revision={model.revision!r}"]
    if model.source == "gguf":
        return ['name = "."  # the folder of the GGUF file'], [f"gguf_file={f'{name}.gguf'!r}"]
    return [f"name = {f'./{name}'!r}  # the folder of the model"], []


def _fetched(known: KnownModel) -> list[str]:
    file = f"a {known.quantisation} GGUF file"
    if known.hub_repo is not None:
        file = f"{known.hub_file} of\n# {known.hub_repo}"
    folder = known.folder
    if folder.is_relative_to(Path.home()):
        folder = Path("~") / folder.relative_to(Path.home())
    return [
        f"# The run's weights are those of {file}, dequantised to bfloat16; the",
        f"# original ones give slightly other numbers. `refusal fetch {known.name}` makes the folder.",
        f"name = expanduser({folder.as_posix()!r})",
    ]


def _quantisation(run: Run) -> str:
    """Return how the weights are quantised or dequantised on opening; empty where they are left as they are."""
    load_in, dtype = run.manifest.compute.load_in, run.manifest.compute.dtype
    if load_in == "8bit":
        return "BitsAndBytesConfig(load_in_8bit=True)"
    if load_in == "4bit":
        return f'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype={dtype!r})'
    return "GgufConfig(dequantize=True)" if run.manifest.model.source == "gguf" else ""


def _ids(template: TemplateRecord) -> list[str]:
    """Return the lines that tokenise the prompt as the run did: see :func:`refusal_core.models.templates.render`."""
    if template.sha256 is None:
        return ['ids = tokenizer(prompt, return_tensors="pt")["input_ids"].to(model.device)']
    lines, options = [], ["add_generation_prompt=True"]
    borrowed, day, system_prompt = template.borrowed, template.day, template.system_prompt
    if borrowed is not None:
        text = [f"    {line!r}" for line in borrowed.text.splitlines(keepends=True)]
        lines += ["# The model's chat template was borrowed.", "tokenizer.chat_template = (", *text, ")"]
    messages = '{"role": "user", "content": prompt}'
    # Empty, it takes away the template's own system text, and where there is none it adds nothing.
    if system_prompt or (system_prompt == "" and template.default_system_prompt is not None):
        messages = f'{{"role": "system", "content": {system_prompt!r}}}, {messages}'
    if day is not None:
        lines += [
            "# The template tells the model the date: that of the run.",
            f"day = date.fromisoformat({day!r})",
            r'''clock = r"strftime_now\(\s*(['\"])(.*?)\1\s*\)"''',
            "template = re.sub(clock, lambda call: repr(day.strftime(call[2])), tokenizer.get_chat_template())",
            "tokenizer.chat_template = template",
        ]
    closing = template.closed_thought
    if template.thinking is not None and closing is None:
        options.append(f"enable_thinking={template.thinking!r}")
    if template.reasoning_effort is not None:
        options.append(f"reasoning_effort={template.reasoning_effort!r}")
    return [
        *lines,
        f"messages = [{messages}]",
        f"ids = tokenizer.apply_chat_template(messages, {', '.join(options)}, return_dict=False)",
        *(
            []
            if closing is None
            else [
                "# So that the model does not think.",
                f"ids += tokenizer.encode({closing!r}, add_special_tokens=False)",
            ]
        ),
        "ids = torch.tensor([ids]).to(model.device)",
    ]


def _hidden_state(run: Run, site: int) -> str:
    if site == run.n_layers - 1:
        return "hidden_states has no entry for it: its last one is taken after the norm."
    return f"The same as hidden_states[{hidden_state_index(site, run.n_layers)}]."
