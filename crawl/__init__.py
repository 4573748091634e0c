"""Bring tagged images in: sources, the gate, the collection."""
