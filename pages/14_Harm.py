"""Does the model know harm apart from refusing? What is read of either, and what steering along either moves."""

from __future__ import annotations

from refusal_core.ui import address
from refusal_core.ui import harm as parts
from refusal_core.ui.frame import frame
from refusal_core.ui.judgement import judged

run = frame("Harm and refusal", "What is read where the instruction ends, and what where the reply begins.")
measured = parts.measured(run)
if measured is not None:
    site = parts.choose_site(run, measured)
    parts.apart(run, measured, site)
    parts.over_layers(run, measured, site)
    parts.numbers(run, measured, site)
judged(run)
address.write()
