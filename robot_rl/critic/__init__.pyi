from .config import CriticConfig as CriticConfig
from .critic import Critic as Critic
from .critic import load_critic as load_critic
from .learner import CriticLearner as CriticLearner
from .learner import make_learner as make_learner
