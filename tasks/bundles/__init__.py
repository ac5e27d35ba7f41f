"""Bundles: folders on a disk that is carried by hand, whatever is in them."""
