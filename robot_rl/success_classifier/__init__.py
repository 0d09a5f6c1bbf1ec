"""A success classifier: frozen features of an episode's last frames, a small trained head, calibrated probabilities, a report.

It stands here and not under `data`, whose labels it makes, because its checkpoints are those of `policies` and its report is drawn by
`robot_rl.evaluation`, neither of which `data` may use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
