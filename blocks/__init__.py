"""The outside world: one class per kind of thing crossgap connects to."""
