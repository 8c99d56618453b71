"""A profile's results as a site that opens from disk: ``results/PROFILE/html/index.html``.

A page for each executed notebook, and beside it one with the runs behind its numbers. No page asks
anything of a network; ``page/`` holds their templates, style and script.
"""

from .build import Site, build
from .contents import OVERVIEW

__all__ = ["OVERVIEW", "Site", "build"]
