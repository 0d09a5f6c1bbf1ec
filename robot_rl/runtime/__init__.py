"""Runtime: policies behind a socket. The openpi protocol's server, batching of requests, the steering proxy and what they cost."""

import lazy_loader

# Public names load on first use, so that importing a package (for `--help`, say) costs nothing.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
