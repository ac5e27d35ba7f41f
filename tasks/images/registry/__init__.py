"""Images straight from registries: the protocol, mirrors, tokens, layers and their proof."""
