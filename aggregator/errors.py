"""Errors of this side alone, in a module that costs nothing to import."""

from shared.errors import MedDualLoRAError


class CannotBind(MedDualLoRAError):
    """The address cannot be listened on."""
