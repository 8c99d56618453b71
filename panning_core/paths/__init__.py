"""Which weights lie on a path from an input to an output.

Paths belong to the *linearised* network (Tanaka et al. 2020, section 4): nothing but its weights
changes a value. A forward pass of the module's own code runs in a mode that replaces what it calls
(``rules``): an element-wise activation or a norm is the identity, a difference is a sum, a constant
is nothing where it is added and its magnitude where it multiplies. What is not known there is
refused by name, so that no path is lost silently.
"""

from .linear import linearised, on_paths

__all__ = ["linearised", "on_paths"]
