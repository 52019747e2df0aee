"""How fast the engine is, beside what one would use instead: ``python -m benchmarks``. A section is a module."""
