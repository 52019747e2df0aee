"""Runs that earlier versions wrote, in the present format; what is on disk stays as it is."""

from __future__ import annotations

from typing import Any

from refusal_core.runs.manifest import FORMAT_VERSION


def migrated_manifest(content: dict[str, Any], version: int) -> dict[str, Any]:
    """Return the content of a run's manifest as the present format has it.

    Args:
        content: as read from ``manifest.json``.
        version: its ``format_version``.
    """
    if version < 2:
        content = _manifest_from_1(content)
    return content | {"format_version": FORMAT_VERSION}


def _manifest_from_1(content: dict[str, Any]) -> dict[str, Any]:
    """Call where a borrowed template comes from ``source``, which was ``from``."""
    template = content.get("template")
    borrowed = template.get("borrowed") if isinstance(template, dict) else None
    if not isinstance(template, dict) or not isinstance(borrowed, dict):
        return content
    renamed = {"source" if name == "from" else name: value for name, value in borrowed.items()}
    return content | {"template": template | {"borrowed": renamed}}
