from .ascent import ascend as ascend
from .config import SteeringConfig as SteeringConfig
from .steered_policy import Decision as Decision
from .steered_policy import RandomChoice as RandomChoice
from .steered_policy import SteeredPolicy as SteeredPolicy
from .steered_policy import steered_spec as steered_spec
