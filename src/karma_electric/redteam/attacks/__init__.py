"""Adaptive attacks: conversations that go on from what the target has said."""
