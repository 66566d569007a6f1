"""What ends the benchmark."""

__all__ = ["BenchmarkError"]


class BenchmarkError(Exception):
    """The benchmark cannot go on; the message says why, and what to do about it."""
