"""Value-aligned language models: from written examples to a capped, checked, shippable model."""

__version__ = "0.1.0"
