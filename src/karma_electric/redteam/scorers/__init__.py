"""Judges of the red-team: each reads the answers to scenarios and gives a verdict on each, or says why it cannot."""
