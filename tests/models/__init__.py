"""Real models of every kind, and whether they are measured rightly: ``python -m tests.models``."""
