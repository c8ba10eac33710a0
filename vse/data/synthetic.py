"""A small world for trying the package: rendered scenes of coloured shapes, and captions that describe parts of them.

A scene is a 4 x 4 grid with five or six shapes. Each of its five captions names two of them, often without their size,
so that several scenes fit one caption and no caption describes all of its scene. In a clip two shapes move, and each
caption says where they go.
"""

import errno
import json
import math
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vse.console import show_progress
from vse.errors import InputError, first_line

CELL, GRID = 24, 4  # pixels per cell, cells per side
COLOURS = {
    "red": (214, 48, 49),
    "green": (46, 160, 67),
    "blue": (41, 98, 217),
    "yellow": (240, 200, 40),
    "purple": (142, 68, 173),
    "orange": (235, 130, 30),
    "white": (250, 250, 250),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring")
SIZES = {"small": 5.0, "large": 9.0}  # radius in pixels
_SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
_TEMPLATES = (
    "{a} and {b}.",
    "there is {a} and {b}",
    "{a}, {b}, and more.",
    "a picture of {a} and {b}.",
    "{a} among others, such as {b}",
)
_CAPTIONS_PER_SCENE = 5
_HEADINGS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_MOVES = ("moves", "goes", "slides")


def world_sizes(split: str, seed: int, train_scenes: int, eval_scenes: int) -> dict[str, int]:
    """Check the sizes of a world.

    Args:
        split: The split that is wanted.
        seed: The seed of the scenes.
        train_scenes: Number of scenes to train on.
        eval_scenes: Number of scenes in dev, and in test.

    Returns:
        The number of scenes in each split.

    Raises:
        InputError: There is no such split or world.

    >>> world_sizes("dev", seed=0, train_scenes=30, eval_scenes=5)
    {'train': 30, 'dev': 5, 'test': 5}
    """
    sizes = {"train": train_scenes, "dev": eval_scenes, "test": eval_scenes}
    if split not in sizes:
        raise InputError(f"the synthetic corpus has the splits train, dev and test, not {split}")
    if seed < 0 or min(sizes.values()) < 1:
        raise InputError(
            f"data.options: seed must not be negative, and train_scenes and eval_scenes must be at least 1; "
            f"got {seed}, {train_scenes} and {eval_scenes}"
        )
    return sizes


def render_world(root: Path, sizes: dict[str, int], seed: int, clips: bool = False) -> None:
    """Write the scenes and their captions under ``root``, unless they are there.

    Pictures become ``root/images/*.png`` and ``root/dataset_synthetic.json`` in Karpathy's layout; clips become
    ``root/gifs/*.gif``, ``root/tgif-v1.0.tsv`` and split files in TGIF's. ``root/world.json`` holds the settings. The
    folder appears only when it is complete.

    Args:
        root: The folder to write.
        sizes: The number of scenes in each split, see :func:`world_sizes`.
        seed: The seed of the scenes.
        clips: Whether to render clips of moving shapes.

    Raises:
        InputError: ``root`` contains something else or cannot be written.
    """
    recipe = {"version": 1, "seed": seed, **sizes, **({"clips": 1} if clips else {})}
    if _is_rendered(root, recipe):
        return
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
        try:
            (_write_clips if clips else _write_world)(unfinished, sizes, seed, f"rendering {root}")
            (unfinished / "world.json").write_text(json.dumps(recipe))
            unfinished.chmod(0o755)
            unfinished.rename(root)  # an empty folder there is replaced
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not _is_rendered(root, recipe):  # by another process
            raise InputError(f"{root}: the demo's world cannot be written there ({error.strerror})") from None


def _is_rendered(root: Path, recipe: dict[str, int]) -> bool:
    """Whether exactly this world is there. Raises InputError when something else is."""
    marker = root / "world.json"
    if not marker.is_file():
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise InputError(f"{root}: is not empty and contains no rendered world; change data.root")
        return False
    try:
        found = json.loads(marker.read_text())
    except ValueError:
        found = "unreadable"
    if found != recipe:
        raise InputError(f"{marker}: holds another world ({found}, not {recipe}); remove {root} or set data.root")
    return True


def _write_world(folder: Path, sizes: dict[str, int], seed: int, title: str) -> None:
    (folder / "images").mkdir()
    entries: list[dict[str, object]] = []
    scenes = [(split, number) for split, size in sizes.items() for number in range(size)]
    for split, number in show_progress(scenes, len(scenes), title, " scenes"):
        rng = np.random.default_rng((seed, ("train", "dev", "test").index(split), number))
        picture, captions = draw_scene(rng)
        name = f"{split}_{number:05d}.png"
        picture.save(folder / "images" / name, compress_level=1)  # noise hardly compresses, and slowly
        first = len(entries) * _CAPTIONS_PER_SCENE
        sentences = [{"raw": caption, "sentid": first + i} for i, caption in enumerate(captions)]
        split = {"dev": "val"}.get(split, split)
        entries.append({"filename": name, "imgid": len(entries), "split": split, "sentences": sentences})
    (folder / "dataset_synthetic.json").write_text(json.dumps({"dataset": "synthetic", "images": entries}))


def _write_clips(folder: Path, sizes: dict[str, int], seed: int, title: str) -> None:
    (folder / "gifs").mkdir()
    table: list[str] = []
    scenes = [(split, number) for split, size in sizes.items() for number in range(size)]
    listed: dict[str, list[str]] = {split: [] for split in sizes}
    for split, number in show_progress(scenes, len(scenes), title, " clips"):
        rng = np.random.default_rng((seed, 3 + ("train", "dev", "test").index(split), number))
        frames, captions = draw_clip(rng)
        url = f"demo://{split}_{number:05d}.gif"
        frames[0].save(folder / "gifs" / f"{split}_{number:05d}.gif", save_all=True, append_images=frames[1:])
        listed[split].append(url)
        table += [f"{url}\t{caption}\t{len(frames)}" for caption in captions]
    (folder / "tgif-v1.0.tsv").write_text("".join(f"{line}\n" for line in table))
    for split, urls in listed.items():
        (folder / f"{'val' if split == 'dev' else split}.txt").write_text("".join(f"{url}\n" for url in urls))


def draw_clip(rng: np.random.Generator) -> tuple[list[Image.Image], list[str]]:
    """Draw one clip of two moving shapes.

    Args:
        rng: The random generator.

    Returns:
        The frames, RGB pictures of 48 x 48 pixels, and the captions.
    """
    side, count = 2 * CELL, int(rng.integers(8, 13))
    shade = tuple(int(value) for value in rng.integers(110, 190, size=3))
    colours = [list(COLOURS)[i] for i in rng.permutation(len(COLOURS))[:2]]
    things = []
    for colour in colours:
        heading = list(_HEADINGS)[rng.integers(len(_HEADINGS))]
        start = rng.uniform(12, side - 12, size=2) - 10 * np.array(_HEADINGS[heading])
        things.append((colour, SHAPES[rng.integers(len(SHAPES))], heading, start))
    frames = []
    for time in np.linspace(0, 1, count):
        frames.append(Image.new("RGB", (side, side), shade))
        for colour, shape, heading, start in things:
            place = start + 20 * time * np.array(_HEADINGS[heading])
            draw_shape(frames[-1], shape, place, 9.0, COLOURS[colour], 0.0)
    captions = []
    for _ in range(_CAPTIONS_PER_SCENE):
        a, b = (
            f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape} {_MOVES[rng.integers(len(_MOVES))]} {heading}"
            for colour, shape, heading, _ in (things[i] for i in rng.permutation(2))
        )
        captions.append(f"{a} and {b}.")
    return frames, captions


def draw_scene(rng: np.random.Generator) -> tuple[Image.Image, list[str]]:
    """Draw one scene of shapes.

    Args:
        rng: The random generator.

    Returns:
        The picture, RGB of 96 x 96 pixels, and the captions.
    """
    colours = list(COLOURS)
    side = CELL * GRID
    shade = rng.uniform(110, 190, size=3)
    noise = rng.normal(0, 6, size=(side, side, 3))
    slope = np.linspace(-15, 15, side)[:, None, None] * rng.choice([-1, 1])
    picture = Image.fromarray((shade + slope + noise).clip(0, 255).astype(np.uint8))
    things = []
    for cell in rng.permutation(GRID * GRID)[: rng.integers(5, 7)]:
        thing = (rng.choice(list(SIZES)), colours[rng.integers(len(colours))], SHAPES[rng.integers(len(SHAPES))])
        radius = SIZES[thing[0]] * rng.uniform(0.9, 1.1)
        room = CELL / 2 - radius - 1
        centre = np.array([cell % GRID, cell // GRID]) * CELL + CELL / 2 + rng.uniform(-room, room, size=2)
        draw_shape(picture, thing[2], centre, radius, COLOURS[thing[1]], rng.uniform(-0.2, 0.2))
        things.append(thing)
    captions = []
    for _ in range(_CAPTIONS_PER_SCENE):
        pair = rng.permutation(len(things))[:2]
        a, b = (_describe(things[i], rng) for i in pair)
        captions.append(_TEMPLATES[rng.integers(len(_TEMPLATES))].format(a=a, b=b))
    return picture, captions


def _describe(thing: tuple[str, str, str], rng: np.random.Generator) -> str:
    size, colour, shape = thing
    words = [colour, shape]
    if rng.random() < 0.5:
        words.insert(0, _SIZE_WORDS[size][rng.integers(len(_SIZE_WORDS[size]))])
    return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)


def draw_shape(
    picture: Image.Image, shape: str, centre: np.ndarray, radius: float, colour: tuple[int, int, int], turn: float
) -> None:
    """Draw one shape into a picture.

    Args:
        picture: The picture.
        shape: One of :data:`SHAPES`.
        centre: The place (x, y) of its centre in pixels.
        radius: Its radius in pixels.
        colour: Its colour in RGB.
        turn: The angle in radians by which it is turned.
    """
    draw = ImageDraw.Draw(picture)
    x, y = centre
    box = (x - radius, y - radius, x + radius, y + radius)

    def polygon(*corners: tuple[float, float]) -> None:
        """Corners as (angle in turns from the top, distance in radii)."""
        angles = [(2 * math.pi * angle + turn, radius * distance) for angle, distance in corners]
        draw.polygon([(x + r * math.sin(a), y - r * math.cos(a)) for a, r in angles], fill=colour)

    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "ring":
        draw.ellipse(box, outline=colour, width=max(2, round(radius / 3)))
    elif shape == "square":
        polygon(*((i / 4 + 1 / 8, 1.2) for i in range(4)))
    elif shape == "diamond":
        polygon((0, 1.2), (0.25, 0.7), (0.5, 1.2), (0.75, 0.7))
    elif shape == "triangle":
        polygon(*((i / 3, 1.2) for i in range(3)))
    elif shape == "star":
        polygon(*((i / 10, 1.2 if i % 2 == 0 else 0.5) for i in range(10)))
    else:  # cross: twelve corners, an arm 0.7 radii wide
        inner, arm = math.hypot(0.35, 0.35), math.hypot(0.35, 1.1)
        lean = math.atan2(0.35, 1.1) / (2 * math.pi)
        polygon(*(c for q in (0, 0.25, 0.5, 0.75) for c in ((q - lean, arm), (q + lean, arm), (q + 0.125, inner))))


def read_patches(paths: list[Path]) -> np.ndarray:
    """Cut pictures into their cells.

    Args:
        paths: The files of pictures that :func:`draw_scene` has drawn.

    Returns:
        Bytes (pictures, cells, pixels and channels of a cell).
    """
    pictures = np.stack([_read_picture(path) for path in paths])
    cells = pictures.reshape(len(paths), GRID, CELL, GRID, CELL, 3).transpose(0, 1, 3, 2, 4, 5)
    return np.ascontiguousarray(cells).reshape(len(paths), GRID * GRID, CELL * CELL * 3)


def _read_picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise InputError(f"{path}: not a picture of the demo's world ({first_line(error)})") from None
    if pixels.shape != (GRID * CELL, GRID * CELL, 3):
        raise InputError(f"{path}: expected {GRID * CELL} x {GRID * CELL} pixels, found {pixels.shape[:2]}")
    return pixels
