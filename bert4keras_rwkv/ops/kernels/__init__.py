"""Which form of a recurrence runs."""
