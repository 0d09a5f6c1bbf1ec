from .base import ActionSpec as ActionSpec
from .base import Observations as Observations
from .base import Policy as Policy
from .base import Trainable as Trainable
from .loading import FAMILIES as FAMILIES
from .loading import load_policy as load_policy
