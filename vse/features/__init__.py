"""Features of pictures and clips, extracted into files to train from."""
