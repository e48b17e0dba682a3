"""Other runtimes beside ours: the same net, the same images, answers compared first, then timed in turns."""
