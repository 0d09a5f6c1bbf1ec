from .classifier import SuccessClassifier as SuccessClassifier
from .classifier import load_classifier as load_classifier
from .config import ClassifierConfig as ClassifierConfig
from .report import classifier_page as classifier_page
from .report import classifier_tables as classifier_tables
from .training import train_classifier as train_classifier
