"""Runs on disk: saving, opening, listing, verifying and deleting them."""
