"""Many devices: a mesh from one line, rules from axis names to mesh axes, and arrays that go there and come back."""
