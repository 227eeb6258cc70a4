"""Savepoint's engine: exact, pickle-free checkpoints around one readable training loop. Forks leave it alone."""

__version__ = "0.1.0"
