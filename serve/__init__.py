"""Publish a run and answer searches."""
