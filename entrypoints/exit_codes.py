"""Exit codes of the commands."""

EXIT_FAILED = 1
"""Failed for a reason outside the command line and the settings."""
EXIT_USAGE = 2
"""The command line or a setting is wrong."""
EXIT_SHUTDOWN_TIMEOUT = 3
"""The worker did not stop within SHUTDOWN_TIMEOUT."""
EXIT_INTERRUPTED = 130
"""128 plus the number of SIGINT, as in shells."""
