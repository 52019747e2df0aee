"""The quantities and terms of all pages, and what they mean."""

from __future__ import annotations

from refusal_core.ui.frame import head
from refusal_core.ui.glossary import show_glossary

head("Glossary", "What the quantities and terms on these pages mean.")
show_glossary()
