"""Errors of long jobs that end a command with one line."""

from __future__ import annotations


class TrainError(RuntimeError):
    """An error the user can mend: one line that says what was expected, what came and what to do."""


class Interrupted(TrainError):
    """A job was stopped by a signal; what it had done is saved."""
