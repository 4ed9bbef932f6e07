"""Whether a cap fits the model it is used on: refuses another shape, warns about another model or template."""

from __future__ import annotations

from karma_electric.steer.axis import Axis, require_fits


def check_model(axis: Axis, *, fingerprint: str, template_sha256: str, n_layers: int, hidden: int) -> list[str]:
    """Refuse an axis of another shape; return warnings about one made for another model or template."""
    require_fits(axis, n_layers=n_layers, hidden=hidden)
    warnings = []
    if axis.model != fingerprint:
        warnings.append("The axis was extracted from another model: thresholds and direction may not fit this one.")
    if axis.template_sha256 != template_sha256:
        warnings.append("The axis was extracted under another chat template.")
    return warnings
