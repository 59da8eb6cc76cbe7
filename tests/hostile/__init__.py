"""Hostile drivers and peers at real back-ends, and what lives on beside them."""
