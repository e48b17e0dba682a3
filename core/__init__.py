"""The contracts that two rooms share. Everything here but `harmony.core.models` runs without torch."""
