"""Log lines: whose job they belong to, what they may not say, how they look, where they go."""
