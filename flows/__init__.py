"""What an operator starts: one module per flow."""
