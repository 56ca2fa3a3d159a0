"""The figures that the project promises, and how each is measured: ``python -m benchmarks``."""
