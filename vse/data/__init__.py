"""Data: corpora, vocabulary, and the batches made of them."""
