"""Front ends that are not ours, brought along for `harmony export --module`."""
