"""The images of compose files, as compose itself would read them."""
