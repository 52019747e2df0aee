"""Does the model know harm apart from refusing? What is read where the instruction ends, and where the reply begins."""

from __future__ import annotations

from refusal_core.ui import address
from refusal_core.ui import harm as parts
from refusal_core.ui.frame import frame

run = frame("Harm and refusal", "What is read where the instruction ends, and what where the reply begins.")
measured = parts.measured_or_end(run)
site = parts.choose_site(run, measured)
parts.apart(run, measured, site)
parts.over_layers(run, measured, site)
parts.numbers(run, measured, site)
address.write()
