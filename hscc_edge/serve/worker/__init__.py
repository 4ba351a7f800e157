"""The worker: complete studies are read, inferred and decided, each network in a process of its own."""
