"""Container images: what hosts have, what they lack, and how it gets there."""
