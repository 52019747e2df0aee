"""Models that the tests of this room share, and no model of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_model

from refusal_core.models.opening import ChatModel


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model of this machine, and no connection to the hub."""
    monkeypatch.setenv("REFUSAL_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, ChatModel]:
    """A tiny model in a folder, and the same model in memory."""
    chat_model = tiny_model("qwen2")
    folder = tmp_path / "my-model"
    chat_model.model.save_pretrained(folder)
    chat_model.tokenizer.save_pretrained(folder)
    return folder, chat_model
