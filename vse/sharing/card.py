"""The card of an exported model: a README.md as the Hugging Face hub reads it, for people who have only that."""

from pathlib import PurePath
from typing import Any

import yaml

from vse import __version__
from vse.checkpoints.load import Loaded
from vse.config import Config
from vse.data.vocabulary import MissingVocabulary, Vocabulary
from vse.encoders.base import traits_of
from vse.evaluation.json_file import rounded
from vse.evaluation.tables import Row, Table, as_markdown, tables_of
from vse.sharing.papers import bibtex, papers_of

_LICENSE = "# license: choose one; the data and the pretrained encoders may say which are possible"
_CLIPS = ("tgif", "mrw", "msrvtt", "vatex", "synthetic_clips")  # the data formats of clips


def model_card(name: str, loaded: Loaded, metrics: dict[str, Any]) -> str:
    """Describe a model.

    Args:
        name: What the model is called.
        loaded: The model and its config.
        metrics: Its metrics on the test split of its data, as ``vse eval`` writes them; {} if they are not known.

    Returns:
        Markdown with a head of YAML. The licence is left to the user, in a comment.
    """
    config = loaded.config
    sections = [
        f"# {name}",
        _about(loaded),
        "## Use",
        _use(loaded),
        "## Results",
        _results(name, metrics),
        "## Data",
        _data(loaded),
        "## Recipe",
        "```yaml\n" + _yaml(_recipe(config)) + "```",
        "## Citation",
        _citation(config),
    ]
    head = _yaml(_head(name, loaded, metrics))
    return f"---\n{head}{_LICENSE}\n---\n\n" + "\n\n".join(sections) + "\n"


def _about(loaded: Loaded) -> str:
    """What kind of model it is."""
    model = loaded.config.model
    systems = ", ".join(paper.system for paper in papers_of(loaded.config))
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    what = "Clips" if _is_of_clips(loaded) else "Images"
    lines = [
        f"A visual-semantic embedding model for {_task(loaded)} retrieval"
        + (f", as in {systems}." if systems else "."),
        f"{what}: `{model.image.encoder.name}`, `{model.image.aggregator.name}`.",
        f"Captions: `{model.text.encoder.name}`, `{model.text.aggregator.name}`.",
        f"Similarity: `{model.similarity.name}` of embeddings with {model.embed_dim} numbers.",
        f"It has {parameters:,} parameters and was exported by vse {__version__}.",
    ]
    return " ".join(lines)


def _task(loaded: Loaded) -> str:
    return "video-text" if _is_of_clips(loaded) else "image-text"


def _is_of_clips(loaded: Loaded) -> bool:
    """Whether the images are clips, be it as frames or as precomputed features of frames."""
    return loaded.config.data.format in _CLIPS or "frames" in traits_of(loaded.model.image.encoder).reads


def _head(name: str, loaded: Loaded, metrics: dict[str, Any]) -> dict[str, Any]:
    """The fields of the card that programs read."""
    task = f"{_task(loaded)}-retrieval"
    head: dict[str, Any] = {"library_name": "vse", "tags": ["vse", "visual-semantic-embedding", task]}
    if metrics:
        found = [
            {"name": f"{side} {title}".strip(), "type": title.lower(), "value": rounded(cell.value)}
            for table in _tables(name, metrics)
            for (side, title), cell in zip(table.head, table.rows[0][1], strict=True)
        ]
        data = {"name": f"{loaded.config.data.format}, test split", "type": loaded.config.data.format}
        head["model-index"] = [{"name": name, "results": [{"task": {"type": task}, "dataset": data, "metrics": found}]}]
    return head


def _tables(name: str, metrics: dict[str, Any]) -> list[Table]:
    return tables_of([Row(name, metrics)])


def _use(loaded: Loaded) -> str:
    """An example that embeds two captions and two images or clips."""
    width, of_clips = traits_of(loaded.model.image.encoder).in_dim, _is_of_clips(loaded)
    name, ending, count, elements = ("clips", "gif", 20, "frames") if of_clips else ("images", "jpg", 36, "features")
    if width is None:
        imports, example, note = [], f'["a.{ending}", "b.{ending}"]', ""
    else:
        imports, example = ["import numpy"], f"numpy.random.randn(2, {count}, {width})"
        note = f"{count} {elements} each; "
    lines = [
        *imports,
        "import vse",
        "",
        'model = vse.load("FOLDER")  # this folder, or "hf://owner/name"',
        'captions = model.encode_texts(["a dog runs", "two red kites"])  # (2, K, H)',
        f"{name} = model.encode_images({example})  # {note}(2, K, H)",
        f"scores = model.similarity({name}, captions)  # (2, 2)",
    ]
    return "\n".join(["```python", *lines, "```"])


def _results(name: str, metrics: dict[str, Any]) -> str:
    if not metrics:
        return "Not evaluated yet; `vse eval FOLDER data.root=DIR` does it."
    table = as_markdown(_tables(name, metrics))
    text = f"On the test split of the data below, in percent, as `vse eval` gives them:\n\n{table}"
    if "bootstrap" in metrics:
        text += "\n\nIn brackets: 95 % intervals, from a bootstrap of the images."
    return text


def _data(loaded: Loaded) -> str:
    """What the model was trained on, and what it reads."""
    data, width = loaded.config.data, traits_of(loaded.model.image.encoder).in_dim
    words = loaded.model.vocabulary
    kind = "words" if isinstance(words, Vocabulary | MissingVocabulary) else "subwords"
    lines = [f"Format `{data.format}`" + (f", with {_yaml_line(data.options)}." if data.options else ".")]
    if width is not None:
        what = "Clips are precomputed features of frames" if _is_of_clips(loaded) else "Images are precomputed features"
        lines.append(f"{what} with {width:,} numbers each.")
    if data.transform is not None:
        lines.append(f"Pictures are read by the transform `{data.transform.name}`.")
    if words is not None:
        lines.append(f"Captions are read as {kind}, of which the model knows {len(words):,}.")
    if isinstance(words, MissingVocabulary):
        lines.append(f"The vocabulary is not part of this model: pass vocabulary=FILE to `vse.load` ({words.file}).")
    return " ".join(lines)


def _recipe(config: Config) -> dict[str, Any]:
    """The settings that decide what is trained, without the folders of one machine."""
    content = config.model_dump()
    recipe = {"run": {key: content["run"][key] for key in ("seed", "precision")}}
    recipe["data"] = {key: content["data"][key] for key in ("sampling", "views", "transform", "vocabulary")}
    recipe |= {key: content[key] for key in ("model", "loss", "optim", "train")}
    return {key: _without_folders(value) for key, value in recipe.items()}


def _without_folders(value: Any) -> Any:
    """Settings in which each absolute path is only its last part."""
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    is_path = isinstance(value, str) and PurePath(value).is_absolute()
    return PurePath(value).name if is_path else value


def _citation(config: Config) -> str:
    papers = papers_of(config)
    if not papers:
        return "Please cite the software, vse, and the papers of the encoders."
    return "```bibtex\n" + "\n\n".join(bibtex(paper) for paper in papers) + "\n```"


def _yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _yaml_line(content: Any) -> str:
    """Settings in one line, in code quotes."""
    line = yaml.safe_dump(_without_folders(content), default_flow_style=True, allow_unicode=True, width=1000).strip()
    return f"`{line}`"
