"""Hubs: what a revision of a model consists of, and its bytes."""
