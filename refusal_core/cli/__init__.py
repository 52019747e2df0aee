"""The command line: one file per group of verbs over the same functions as the API."""
