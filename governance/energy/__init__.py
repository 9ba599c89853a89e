"""Energy: what a node's meters read, which part of it survived, and what it is worth to believe."""
