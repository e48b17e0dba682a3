"""Images and labels: named sets, folders and files."""
