"""The command line as ``python -m refusal_core``."""

from refusal_core.cli.main import run

run()
