"""Maps between others' names and conventions and ours, each a small declarative file; `presets/` holds the usual ones."""

import lazy_loader

# Public names load on first use, so that importing a package (for `--help`, say) costs nothing.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
