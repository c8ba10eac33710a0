"""Search with a trained model: embed pictures or captions once, then rank them for any query.

>>> from vse.search import Index
>>> Index.open("index").search(["a dog on a beach"], top=3)[0].hits[0].path
PosixPath('/home/me/pictures/beach/17.jpg')
"""

from vse.search.index import Index
from vse.search.results import Hit, Result

__all__ = ["Hit", "Index", "Result"]
