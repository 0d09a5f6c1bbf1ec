"""A success classifier: frozen features of an episode's last frames, a small trained head, calibrated probabilities, a report.

It stands here and not under `data`, whose labels it makes, because its checkpoints are those of `policies` and its report is drawn by
`robot_rl.evaluation`, neither of which `data` may use.

What it is weak at: the right thing done to the wrong object. On tabletop demonstrations the default network tells other failures from
successes well (AUROC .92) and these hardly (.58; it called 63% of 18 of them successes); a rule or a hand is better for those.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
