"""Measurements, run by hand; `tests/` runs each once on a small model."""
