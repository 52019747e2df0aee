"""How harmful is it? A person rates the run's prompts one by one, without seeing any other judgement."""

from __future__ import annotations

from refusal_core.ui import ratings as parts
from refusal_core.ui.frame import frame

run = frame(
    "Rate prompts", "Read one prompt at a time and rate it by what it says. Ratings are saved as they are given."
)
name = parts.rater()
under_way = parts.rate_prompts(run, name)
if not under_way:
    parts.about_rater(name)
