"""How harmful is it? A person rates the run's prompts one by one, without seeing what anyone else says of them."""

from __future__ import annotations

from refusal_core.ui import ratings as parts
from refusal_core.ui.frame import frame

run = frame("Rate prompts", "Read one prompt at a time and rate it by what it says. Every rating is kept at once.")
who = parts.rater()
parts.rate_prompts(run, who)
parts.about_rater(who)
