"""From options to a run: extraction, analysis and storage; refits; scoring of typed prompts."""
