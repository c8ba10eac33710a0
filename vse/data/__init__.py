"""Data: corpora, vocabulary, and the batches made of them.

A data format of one's own is a function that returns a :class:`Corpus`, whose images are an :class:`ImageSource`:
:class:`Features` (a .npy file) or :class:`ArrayFeatures` (an array) for precomputed features, :class:`PictureFiles` for
pictures, :class:`ClipFiles` or :class:`FrameFeatures` for clips.
"""

from vse.data.clips import ClipFiles, FrameFeatures
from vse.data.corpus import ArrayFeatures, Corpus, Features, ImageSource
from vse.data.transforms import PictureFiles

__all__ = ["ArrayFeatures", "ClipFiles", "Corpus", "Features", "FrameFeatures", "ImageSource", "PictureFiles"]
