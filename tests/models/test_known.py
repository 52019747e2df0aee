"""The models that are known by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from refusal_core.models.known import KNOWN, models_folder


def test_wheels_are_pinned_in_order() -> None:
    assert [len(known.wheels) for known in KNOWN.values()] == [6, 22, 1, 4]
    for known in KNOWN.values():
        parts = [wheel.name.rpartition("part")[2] for wheel in known.wheels]
        assert parts == [str(part) for part in range(1, len(parts) + 1)] or len(parts) == 1
        assert len({wheel.sha256 for wheel in known.wheels}) == len(known.wheels)
        assert all(len(bytes.fromhex(wheel.sha256)) == 32 for wheel in known.wheels)
        # A wheel is a zip of nearly incompressible data, so its size is that of its part.
        assert 0.85 * known.size < sum(wheel.size for wheel in known.wheels) < 1.01 * known.size


def test_models_folder_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert models_folder() == tmp_path / "models"
    monkeypatch.delenv("REFUSAL_MODELS")
    assert models_folder() == Path.home() / ".cache" / "refusal_core" / "models"
