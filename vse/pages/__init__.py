"""Pages for reading: what a trained model does, and what a search has found, as one HTML file each."""
