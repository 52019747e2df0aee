"""Files of vectors in the layouts of other programs: each vector lands at the site where it was read."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from plain import TEXTS
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch
from tiny import tiny_model, write_tiny_gguf

from refusal_core.activations.extraction import extract
from refusal_core.analysis.directions import Direction
from refusal_core.children import Limits, in_child
from refusal_core.errors import RefusalError
from refusal_core.models.templates import render
from refusal_core.pipeline.vector_files import NUMBERINGS, count_vectors, read_vectors
from refusal_core.steering import residual_stream

LAYERS, WIDTH = 4, 32


def vectors(count: int) -> np.ndarray:
    """A vector of its own direction and length per place."""
    return (np.arange(1, count + 1)[:, None] * np.eye(WIDTH)[:count]).astype(np.float32)


def places(path: Path, numbering: str | None = None, layer: int | None = None) -> dict[int, int]:
    """Site → which of :func:`vectors` it got."""
    read = read_vectors(path, numbering, layer, LAYERS, WIDTH)
    for vector in read.unit.values():
        assert vector.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vector), 1, rtol=1e-6)
    return {site: int(vector.argmax()) for site, vector in read.unit.items()}


def write_repeng(path: Path, directions: dict[int, np.ndarray]) -> None:
    """What repeng's ControlVector.export_gguf writes."""
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "qwen2")
    writer.add_uint32("controlvector.layer_count", len(directions))
    for layer, vector in directions.items():
        writer.add_tensor(f"direction.{layer}", vector)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("numbering", "count", "expected"),
    [
        ("blocks", LAYERS, {0: 0, 1: 1, 2: 2, 3: 3}),
        ("block-inputs", LAYERS, {0: 1, 1: 2, 2: 3}),
        ("hidden-states", LAYERS + 1, {0: 1, 1: 2, 2: 3, 4: 4}),
    ],
)
def test_a_stack_is_counted_as_its_numbering_says(numbering, count, expected, tmp_path):
    np.save(tmp_path / "stack.npy", vectors(count))
    save_file({"directions": vectors(count)}, tmp_path / "stack.safetensors")
    save_torch({"vectors": torch.tensor(vectors(count)).bfloat16()}, tmp_path / "half.safetensors")
    named = {f"layers.{place}": vector for place, vector in enumerate(vectors(count))}
    save_file(named, tmp_path / "named.safetensors")
    for name in ("stack.npy", "stack.safetensors", "half.safetensors", "named.safetensors"):
        assert places(tmp_path / name, numbering) == expected


def test_numberings_are_those_of_the_libraries_that_use_them():
    """What transformers and hooks return at each place is what is read at the site that it is counted as."""
    chat_model = tiny_model("llama")
    ours = extract(chat_model, TEXTS[:1]).hidden[0]
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []
    for block in chat_model.blocks:
        block.register_forward_pre_hook(lambda _, given: inputs.append(given[0][0, -1]))
        block.register_forward_hook(lambda _, given, out: outputs.append(residual_stream(out)[0, -1]))
    with torch.inference_mode():
        states = chat_model.model(
            torch.tensor([render(chat_model, TEXTS[0])]), output_hidden_states=True, use_cache=False
        ).hidden_states
    theirs = {
        "blocks": outputs,
        "block-inputs": inputs,
        "hidden-states": [state[0, -1] for state in states],
    }
    assert set(theirs) == set(NUMBERINGS)
    for numbering, stack in theirs.items():
        read = _read(np.stack([state.float().numpy() for state in stack]), numbering, chat_model)
        assert len(read) >= chat_model.n_layers - 1
        for site, vector in read.items():
            np.testing.assert_allclose(vector, ours[site] / np.linalg.norm(ours[site]), atol=1e-5)


def _read(stack: np.ndarray, numbering: str, chat_model) -> dict[int, np.ndarray]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stack.npy"
        np.save(path, stack)
        return dict(read_vectors(path, numbering, None, chat_model.n_layers, chat_model.d_model).unit)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_control_vector_of_repeng_counts_blocks(dtype, tmp_path):
    write_repeng(tmp_path / "cv.gguf", dict(enumerate(vectors(LAYERS)[1:].astype(dtype), start=1)))
    assert places(tmp_path / "cv.gguf") == {1: 1, 2: 2, 3: 3}
    assert places(tmp_path / "cv.gguf", "block-inputs") == {0: 1, 1: 2, 2: 3}


def test_negative_numbers_count_from_the_end(tmp_path):
    """RepE's readers and repeng name layers by hidden_states[-1] and so on."""
    save_file({f"layer.{-place}": vectors(3)[place - 1] for place in (1, 2, 3)}, tmp_path / "repe.safetensors")
    assert places(tmp_path / "repe.safetensors", "hidden-states") == {4: 0, 2: 1, 1: 2}
    assert places(tmp_path / "repe.safetensors", "blocks") == {3: 0, 2: 1, 1: 2}


def test_a_hyphen_in_a_name_is_no_minus_sign(tmp_path):
    save_file(
        {f"layer-{place}": vector for place, vector in enumerate(vectors(LAYERS))}, tmp_path / "named.safetensors"
    )
    assert places(tmp_path / "named.safetensors", "blocks") == {0: 0, 1: 1, 2: 2, 3: 3}


def own_file(path: Path, array: np.ndarray, **described: int) -> Path:
    """A file as :meth:`Direction.save` writes it, of any array."""
    metadata = json.dumps({"site": 2, "n_layers": LAYERS, "magnitude": 1.0} | described)
    save_torch({"direction": torch.tensor(array)}, path, {"refusal_direction": metadata})
    return path


@pytest.mark.parametrize(
    ("array", "described", "says"),
    [
        (np.ones((), np.float32), {}, "shape"),
        (np.ones((1, WIDTH), np.float32), {}, "expected one vector"),
        (np.ones(WIDTH, np.int32), {}, "int32"),
        (np.ones(WIDTH, np.float32), {"n_layers": LAYERS + 1}, "a model of 5 layers, and this one has 4"),
    ],
)
def test_a_direction_of_ours_is_held_to_its_shape_type_and_model(array, described, says, tmp_path):
    assert places(own_file(tmp_path / "sound.safetensors", np.ones(WIDTH, np.float32))).keys() == {2}
    with pytest.raises(RefusalError, match=says):
        places(own_file(tmp_path / "own.safetensors", array, **described))


def test_one_vector_is_of_the_layer_that_is_named(tmp_path):
    np.save(tmp_path / "one.npy", vectors(2)[1])
    save_file({"direction": vectors(2)[1]}, tmp_path / "one.safetensors")
    for name in ("one.npy", "one.safetensors"):
        assert places(tmp_path / name, "blocks", 2) == {2: 1}
        assert places(tmp_path / name, "hidden-states", 2) == {1: 1}
        assert places(tmp_path / name, "block-inputs", -1) == {2: 1}
        with pytest.raises(RefusalError, match="one vector and no layer"):
            places(tmp_path / name, "blocks")


def test_files_of_this_program_say_their_layers(tmp_path):
    Direction(vectors(3)[2] / 3, 1.5, 2, LAYERS).save(tmp_path / "own.safetensors")
    assert places(tmp_path / "own.safetensors") == {2: 2}
    stack = {name: vectors(LAYERS + 1) for name in ("unit_direction", "harmful_mean", "harmless_mean")}
    save_file(stack, tmp_path / "directions.safetensors")
    assert places(tmp_path / "directions.safetensors") == {site: site for site in range(LAYERS + 1)}
    with pytest.raises(RefusalError, match="says its layers itself"):
        places(tmp_path / "own.safetensors", "blocks")


class _Bomb:
    """What a pickle may do when it is opened."""

    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was opened')",)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")
    for path in (tmp_path, tmp_path / "pipe.npy", Path("/dev/zero")):
        with pytest.raises(RefusalError, match="is a folder or a device"):
            places(path, "blocks")


def test_a_pickle_is_never_opened_and_the_cure_is_named(tmp_path):
    torch.save({"direction": torch.ones(WIDTH)}, tmp_path / "direction.pt")
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(_Bomb()))
    (tmp_path / "bomb.safetensors").write_bytes(pickle.dumps(_Bomb()))
    (tmp_path / "weights.bin").write_bytes(b"anything")
    (tmp_path / "WEIGHTS.PT").write_bytes(b"anything")
    for name in ("direction.pt", "bomb.pkl", "bomb.safetensors", "weights.bin", "WEIGHTS.PT"):
        with pytest.raises(RefusalError, match=r"is a pickle.*save_file"):
            places(tmp_path / name, "blocks")
    np.save(tmp_path / "objects.npy", np.array([_Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(RefusalError, match=r"objects\.npy"):
        places(tmp_path / "objects.npy", "blocks")


@pytest.mark.parametrize(
    ("content", "numbering", "layer", "says"),
    [
        (vectors(7), "blocks", None, "7 vectors: a model of 4 layers has 4 blocks; it was made with another model"),
        (vectors(5), "blocks", None, "that number fits hidden-states"),
        (vectors(4), "hidden-states", None, "that number fits blocks or block-inputs"),
        (vectors(4), None, None, "does not say how it counts layers"),
        (vectors(4), "layers", None, "one of blocks, block-inputs, hidden-states"),
        (vectors(4), "blocks", 2, "leave the layer out"),
        (np.ones((2, 4, WIDTH), np.float32), "blocks", None, r"shape \(2, 4, 32\)"),
        (np.ones((4, 48), np.float32), "blocks", None, "width 48, and the model is 32 wide"),
        (np.ones((4, WIDTH), int), "blocks", None, "int64 values"),
        (np.full((4, WIDTH), np.nan), "blocks", None, "is not finite"),
        (np.zeros((4, WIDTH)), "blocks", None, "has no vector of a layer"),
        (np.ones(WIDTH), "blocks", 4, "0 to 3; it was made with another model, or counts layers in another way"),
        (np.ones(WIDTH), "block-inputs", 0, "has no vector of a layer"),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(content, numbering, layer, says, tmp_path):
    np.save(tmp_path / "given.npy", content)
    with pytest.raises(RefusalError, match=rf"(?s)(given\.npy|expected a numbering).*{says}"):
        places(tmp_path / "given.npy", numbering, layer)


def test_other_files_are_refused_in_a_sentence(tmp_path):
    (tmp_path / "text.txt").write_text("not vectors")
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00")
    save_file({"a.0": vectors(1)[0], "b.0": vectors(1)[0]}, tmp_path / "twice.safetensors")
    save_file({"a.0": vectors(1)[0], "b": vectors(1)[0]}, tmp_path / "unnamed.safetensors")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("text.txt", "cut.npy", "cut.gguf", "twice.safetensors", "unnamed.safetensors", "empty", "missing.npy"):
        with pytest.raises(RefusalError, match="expected") as error:
            places(tmp_path / name, "blocks")
        assert name in str(error.value)


def test_a_gguf_model_is_no_control_vector(tmp_path):
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path)
    with pytest.raises(RefusalError, match="expected a control vector"):
        places(path)


@pytest.mark.slow
def test_a_file_whose_few_bytes_take_much_is_given_up_in_a_process_of_its_own(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "long.gguf", "controlvector")
    # The reader makes an array of each element of this one.
    writer.add_array("x", bytes(4_000_000))
    writer.add_tensor("direction.0", vectors(1)[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(RefusalError, match="more memory or time than it may"):
        in_child(count_vectors, str(tmp_path / "long.gguf"), limits=Limits(2**30, 3, 60))
    write_repeng(tmp_path / "short.gguf", dict(enumerate(vectors(2))))
    assert in_child(count_vectors, str(tmp_path / "short.gguf")) == 2
