"""Runs for other people and programs: archives, reports, rendered figures, code."""
