"""One command, `harmony`, a thin file per subcommand."""
