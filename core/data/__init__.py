"""Images and labels: named sets, folders and files."""

from harmony.core.data.catalogue import NAMES, load
from harmony.core.data.dataset import Dataset

__all__ = ["NAMES", "Dataset", "load"]
