"""Published networks and comparisons by name, and how much shorter they are run."""
