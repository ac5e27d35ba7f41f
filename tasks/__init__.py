"""What can be done: one package per subject."""
