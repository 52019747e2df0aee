"""The runs and models that tests share."""

from __future__ import annotations

import share_cores  # noqa: F401

# isort: split

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from making import make_run
from synthetic import N_LAYERS, PLANTED_PROMPTS, RUN, WIDTH, intervene, save_synthetic_run, synthetic_prompts
from tiny import PLANTED_SIGN, planted_model, tiny_model

from refusal_core.access.folders import FOLDERS
from refusal_core.models.opening import ChatModel, load_model
from refusal_core.runs import store


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where pictures of the pages go."""
    parser.addoption(
        "--pictures", metavar="DIR", help="keep a picture of every page in this folder, as README shows it"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest begin first, so that no worker waits for another's last one.

    Those with Chromium come last: their driver leaves an event loop behind, beside which no test can run its own.
    """
    longest = {item.path for item in items if item.get_closest_marker("real")}
    items.sort(key=lambda item: (item.path.parent.name == "browser", item.path not in longest))


@pytest.fixture(scope="session", autouse=True)
def open_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Lets visitors of every page that a test opens name paths in the folders of tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(FOLDERS, str(tmp_path_factory.getbasetemp().parent))
        yield


@pytest.fixture(scope="session")
def synthetic_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with one run whose direction is planted and grows over the layers."""
    cache = tmp_path_factory.mktemp("cache")
    prompts = synthetic_prompts()
    hidden = np.random.default_rng(0).normal(size=(len(prompts), N_LAYERS + 1, WIDTH))
    side = prompts["label"].map({"harmful": 1.0, "harmless": -1.0, "grey": 0.0}).to_numpy()
    hidden[..., 0] += side[:, None] * np.linspace(0, 3, N_LAYERS + 1)
    save_synthetic_run(hidden, prompts, cache)
    return cache


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest):
    """Returns a folder that one worker of pytest-xdist fills and all of them read."""

    def made(name: str, make: Callable[[Path], object]) -> Path:
        shared = tmp_path_factory.getbasetemp()
        if hasattr(request.config, "workerinput"):
            shared = shared.parent
        folder = shared / "made-once" / name
        folder.parent.mkdir(exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                unfinished = folder.with_suffix(".unfinished")
                unfinished.mkdir()
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return made


@pytest.fixture(scope="session")
def tiny_folder(made_once) -> Path:
    """A tiny random Qwen2 in a folder, as ``save_pretrained`` leaves it."""

    def make(folder: Path) -> None:
        chat_model = tiny_model("qwen2")
        chat_model.model.save_pretrained(folder / "tiny-qwen2")
        chat_model.tokenizer.save_pretrained(folder / "tiny-qwen2")

    return made_once("tiny-model", make) / "tiny-qwen2"


@pytest.fixture(scope="session")
def tiny_chat_model(tiny_folder: Path) -> ChatModel:
    """The model of ``tiny_folder``, opened."""
    return load_model(tiny_folder, dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def tiny_run(tiny_folder: Path, made_once) -> store.Run:
    """A run of the tiny model in a cache of its own."""

    def make(cache: Path) -> None:
        make_run(tiny_folder, "pairs", limit_per_label=12, dtype="float32", device="cpu", cache=cache)

    cache = made_once("tiny-run", make)
    return store.open_run(next(cache.glob("tiny-qwen2*")).name, cache)


@pytest.fixture
def run(synthetic_cache: Path) -> store.Run:
    """The synthetic run, opened."""
    return store.open_run(RUN, synthetic_cache)


@pytest.fixture(scope="session")
def planted_folder(made_once) -> Path:
    """The model of :func:`tiny.planted_model` in a folder."""

    def make(folder: Path) -> None:
        chat_model = planted_model()
        chat_model.model.save_pretrained(folder / "planted")
        chat_model.tokenizer.save_pretrained(folder / "planted")

    return made_once("planted-model", make) / "planted"


@pytest.fixture(scope="session")
def planted_run(planted_folder: Path, made_once) -> store.Run:
    """A run of the planted model in a cache of its own, with its interventions beside it."""

    def make(cache: Path) -> None:
        rng = np.random.default_rng(0)
        # Letters that are tokens of their own, so that all prompts are of one length and the planted direction is as
        # strong in each harmful one.
        rows = [
            ("".join(rng.choice(list("bdgjkvwxz"), 20)) + sign, label)
            for _ in range(PLANTED_PROMPTS)
            for sign, label in ((PLANTED_SIGN, "harmful"), ("?", "harmless"))
        ]
        prompts = cache / "planted.csv"
        pd.DataFrame(rows, columns=["text", "label"]).to_csv(prompts, index=False)
        made = make_run(planted_folder, str(prompts), cache=cache, dtype="float32").run
        intervene(made, planted_folder)

    cache = made_once("planted-run", make)
    return store.open_run(next(cache.glob("planted*--*")).name, cache)
