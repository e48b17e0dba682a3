"""HARMONY and its rivals: local step, server step, rounds, evaluation."""
