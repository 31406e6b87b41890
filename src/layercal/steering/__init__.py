"""Directions, what is done with them, and what it shows."""
