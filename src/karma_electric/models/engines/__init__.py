"""Engines: things that answer conversations."""
