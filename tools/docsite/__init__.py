"""Builds the documentation: docs/ as it is, and a reference that is read off the code. See build.py."""
