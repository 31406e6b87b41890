"""What parts of the network do: its null space, its neurons, its blocks."""
