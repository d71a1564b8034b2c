"""Where things happen in a model: taps in the tree, selectors that find them, positions in a text."""
