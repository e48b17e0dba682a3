"""HARMONY and its rivals: local step, server step, rounds, evaluation."""

from harmony.train.evaluate import Accuracy, ClientEvaluation, Evaluation, evaluate
from harmony.train.runs import METHODS, Progress, resumed_config, train

__all__ = [
    "METHODS",
    "Accuracy",
    "ClientEvaluation",
    "Evaluation",
    "Progress",
    "evaluate",
    "resumed_config",
    "train",
]
