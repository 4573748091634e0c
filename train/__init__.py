"""Fit the two towers and judge them."""
