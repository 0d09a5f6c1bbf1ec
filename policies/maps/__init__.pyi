from .grippers import StickyGripper as StickyGripper
from .policy_map import MapSession as MapSession
from .policy_map import PolicyMap as PolicyMap
from .policy_map import load_map as load_map
from .policy_map import presets as presets
