"""Models: from a hub or a folder, whole and proven, then onto the servers."""
