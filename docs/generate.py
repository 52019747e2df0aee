"""Writes the reference of commands from the command line itself while the site is built."""

from __future__ import annotations

from typing import Any

from refusal_core.cli.main import app

_PAGE = "reference/commands.md"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Append every command with its options to the page that names them; MkDocs calls this for each page."""
    if page.file.src_uri != _PAGE:
        return markdown
    return f"{markdown}\n{app.generate_docs(output_format='markdown', heading_level=2, recursive=True)}"
