"""Image files as people send them: recognised, decoded in child processes, checked, reduced."""
