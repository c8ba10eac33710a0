import os
from pathlib import Path

from outline import check_alone
from PIL import Image

from vse.pages.search import search_page
from vse.search.results import Hit, Result


def test_every_query_and_hit_is_shown(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), "blue").save(tmp_path / "sea.png")
    pictured = Hit(1, 0.9, "7", tmp_path / "sea.png", "the <sea>"), Hit(2, 0.5, "8", tmp_path / "gone.jpg", None)
    plain = Hit(1, 0.25, "c1", None, "a blue sea"), Hit(2, 0.125, "c2", None, None)
    results = [
        Result("blue <script>water</script>", None, pictured),
        Result("sea.png", tmp_path / "sea.png", plain),
    ]
    search_page(results, tmp_path / "found.html")
    outline = check_alone(tmp_path / "found.html")
    first, second = outline.find("article")
    assert "blue <script>water</script>" in outline.text(first)
    captions = [outline.text(place) for place in outline.find("figcaption", within=first)]
    assert captions == ["1. the <sea> 0.900", "2. 8 0.500"]
    assert "gone.jpg: cannot be shown" in outline.text(first)
    listed = [outline.text(place) for place in outline.find("li", within=second)]
    assert listed == ["1.a blue sea0.250", "2.c20.125"]
    assert len(outline.find("image")) == 1 and len(outline.find("use")) == 2  # one picture, shown twice


def test_a_file_whose_name_is_not_unicode(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (64, 48), "blue").save(file)
    search_page([Result(file.name, file, (Hit(1, 0.9, file.name, file, None),))], tmp_path / "found.html")
    outline = check_alone(tmp_path / "found.html")
    captions = [outline.text(place) for place in outline.find("figcaption")]
    assert captions == ["caf\\udce9.png", "1. caf\\udce9.png 0.900"] and len(outline.find("image")) == 1
