"""HARMONY and its rivals: local step, server step, rounds, evaluation."""

from harmony.train.evaluate import Accuracy, ClientEvaluation, Evaluation, evaluate
from harmony.train.join import Joined, Newcomer, join, own_labels
from harmony.train.promises import BudgetCurve
from harmony.train.runs import METHODS, Look, Progress, resumed_config, train
from harmony.train.side_by_side import train_side_by_side

__all__ = [
    "METHODS",
    "Accuracy",
    "BudgetCurve",
    "ClientEvaluation",
    "Evaluation",
    "Joined",
    "Look",
    "Newcomer",
    "Progress",
    "evaluate",
    "join",
    "own_labels",
    "resumed_config",
    "train",
    "train_side_by_side",
]
