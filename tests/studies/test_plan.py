"""Which runs a study asks for; the shipped studies, and the numbers that they call published."""

import re
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

from vse.config_files import shipped_configs, shipped_studies
from vse.errors import InputError
from vse.evaluation.published import PUBLISHED
from vse.studies.plan import StudyFile, StudyRow, find_study, published_metrics, read_study, share, slug

SHIPPED = sorted(shipped_studies())
VSE_INFTY = "VSE∞ (Chen et al., CVPR 2021)"
DIVE = "DivE (Kim et al., CVPR 2023), ablation on Flickr30K"

# Published numbers that a study's file gives itself, and where they are printed; all others are in PUBLISHED.
FACTS: dict[tuple[str, str], tuple[dict[str, Any], str]] = {
    ("f30k", "VSE∞, grid of bottom-up attention, BERT"): (
        {"i2t": {"r1": 81.5, "r5": 97.1}, "t2i": {"r1": 63.7, "r5": 88.3}},
        "VSE∞'s README",
    ),
    ("f30k", "VSE++, VSE∞'s recipe"): ({"rsum": 442.3}, f"{VSE_INFTY}, Table 2"),
    ("coco", "VSE++, VSE∞'s recipe"): (
        {"coco_1k": {"rsum": 490.5}, "coco_5k": {"rsum": 370.2}},
        f"{VSE_INFTY}, Table 2 and supplement",
    ),
    **{
        ("coco", name): ({"coco_1k": {"i2t": {"r1": r1}}}, f"{VSE_INFTY}, {place}")
        for name, r1, place in (
            ("VSE∞, BiGRU, without size augmentation", 74.6, "size augmentation"),
            ("images by FSPool, captions by mean", 76.3, "Figure 4"),
            ("images by GPO, captions by mean", 77.7, "Figure 4"),
            ("captions by first, BiGRU", 76.8, "Figure 4"),
            ("captions by GeM, BiGRU", 74.3, "Figure 4"),
            ("captions by FSPool, BiGRU", 76.7, "Figure 4"),
            ("captions by first, BERT", 77.2, "Figure 4"),
            ("captions by GeM, BERT", 78.0, "Figure 4"),
            ("captions by FSPool, BERT", 78.8, "Figure 4"),
        )
    },
    ("ablation", "VSE∞"): ({"rsum": 498.1}, f"{VSE_INFTY}, Table 2"),
    **{
        ("ablation_sets", name): ({"rsum": rsum}, DIVE)
        for name, rsum in (
            ("DivE, K = 4", 500.8),
            ("K = 1", 492.6),
            ("K = 2", 495.5),
            ("K = 3", 497.4),
            ("K = 5", 498.4),
            ("K = 6", 499.3),
            ("best pair", 491.7),
            ("matching probability", 490.5),
            ("Chamfer", 499.6),
            ("PIE-Net", 483.3),
            ("transformer", 496.1),
        )
    },
}


def write(folder: Path, text: str) -> str:
    file = folder / "own.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


TWO_ROWS = """# Two rows.
seeds: [3, 5]
settings: {train.epochs: 1, optim.lr: 1e-3}
rows:
  - {name: A, config: demo}
  - {name: B, config: demo, settings: {train.epochs: 2, model.image.aggregator: mean}}
"""


def test_rows_times_seeds(tmp_path: Path) -> None:
    """A row's settings win over the study's, and the command's over both."""
    study = read_study(write(tmp_path, TWO_ROWS), ["optim.lr=0.5"], tmp_path / "out")
    assert (study.name, study.title, study.baseline) == ("own", "Two rows.", "A")
    assert [(run.row, run.seed, run.config.run.seed) for run in study.runs] == [
        ("A", 3, 3),
        ("A", 5, 5),
        ("B", 3, 3),
        ("B", 5, 5),
    ]
    assert [run.config.train.epochs for run in study.runs] == [1, 1, 2, 2]
    assert {run.config.optim.lr for run in study.runs} == {0.5}
    assert [run.config.model.image.aggregator.name for run in study.runs] == ["gpo", "gpo", "mean", "mean"]
    assert [run.config.run.dir for run in study.runs] == [
        str(tmp_path / "out" / row / f"seed_{seed}") for row in ("a", "b") for seed in (3, 5)
    ]


def test_a_config_beside_the_study(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: demo\ntrain: {epochs: 9}\n")
    study = read_study(write(tmp_path, "seeds: [1]\nrows: [{name: A, config: mine.yaml}]\n"))
    assert study.runs[0].config.train.epochs == 9


def test_names_of_folders_differ() -> None:
    assert [slug(name) for name in ("VSE++", "VSE∞", "PIE-Net, K = 2")] == ["vsepp", "vse_infty", "pie_net_k_2"]


@pytest.mark.parametrize("machines", [1, 2, 3, 7])
def test_shares_are_all_runs(tmp_path: Path, machines: int) -> None:
    runs = read_study(write(tmp_path, TWO_ROWS)).runs
    shares = [share(runs, f"{number}/{machines}") for number in range(1, machines + 1)]
    assert sorted(run.name for own in shares for run in own) == sorted(run.name for run in runs)
    assert share(runs, None) == runs


@pytest.mark.parametrize("only", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3"])
def test_wrong_shares(only: str) -> None:
    with pytest.raises(InputError, match=r"--only: expected a share such as 1/3, got"):
        share([], only)


ROW = "{name: A, config: demo}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "own.yaml: expected a mapping with rows and seeds, got list"),
        ("seeds: [1]\n", "own.yaml: rows: missing"),
        (f"seeds: []\nrows: [{ROW}]\n", "own.yaml: seeds: list should have at least 1 item"),
        (f"seeds: [1, 1]\nrows: [{ROW}]\n", r"own.yaml: seeds: expected different numbers, got \[1, 1\]"),
        (f"seeds: [-1]\nrows: [{ROW}]\n", "own.yaml: seeds.0: input should be greater than or equal to 0, got -1"),
        (f"seeds: [1]\nrows: [{ROW}]\nseed: 2\n", r"own.yaml: seed: unknown key \(did you mean 'seeds'\?\)"),
        ("seeds: [1]\nrows: [{name: A, confg: demo}]\n", r"row 1: confg: unknown key \(did you mean 'config'\?\)"),
        (f"seeds: [1]\nrows: [{ROW}, {{name: B}}]\n", "own.yaml: row 2: config: missing"),
        (f"seeds: [1]\nrows: [{ROW}, {{name: a!, config: demo}}]\n", "rows 'A' and 'a!' would share the folder a"),
        (f"seeds: [1]\nrows: [{ROW}]\nbaseline: B\n", r"own.yaml: baseline: 'B' is no row \(known: A\)"),
        (f"seeds: [1]\nrows: [{ROW}]\nsplit: tset\n", r"own.yaml: split: 'tset' \(did you mean 'test'\?\)"),
        (f"seeds: [1]\nrows: [{ROW}]\nprotocol: f3k\n", r"protocol 'f3k': did you mean 'f30k'\?"),
        ("seeds: [1]\nrows: [{name: A, config: dmeo}]\n", r"row 'A': dmeo: no such config file \(did you mean 'demo'"),
        (
            "seeds: [1]\nrows: [{name: A, config: demo, settings: {train.epoch: 1}}]\n",
            "own.yaml: row 'A': override 'train.epoch=1': train.epoch: unknown key",
        ),
        (
            "seeds: [1]\nrows: [{name: A, config: demo, published: 3}]\n",
            "row 1: published: expected the name of a published result, or metrics such as {rsum: 498.1}, got 3",
        ),
        (
            "seeds: [1]\nprotocol: f30k\nrows: [{name: A, config: demo, published: DivE}]\n",
            "row 'A': published: 'DivE': no such result",
        ),
        (
            "seeds: [1]\nprotocol: coco\nrows: [{name: A, config: demo, published: {rsum: 1.0}}]\n",
            "row 'A': published: expected coco_1k or coco_5k, and in it i2t, t2i or rsum, got",
        ),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_study(write(tmp_path, text))


def test_mistakes_of_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"deom: no such study \(did you mean 'demo'\?\)"):
        find_study("deom")
    with pytest.raises(InputError, match="override 'run.seed=2': a study sets it; change the study's seeds"):
        read_study(write(tmp_path, TWO_ROWS), ["run.seed=2"])


@pytest.mark.parametrize("name", SHIPPED)
def test_every_row_of_a_shipped_study_is_a_config(name: str) -> None:
    study = read_study(name)
    assert study.title and len(study.runs) == len(study.content.rows) * len(study.content.seeds)
    assert len({run.folder for run in study.runs}) == len(study.runs)


@pytest.mark.parametrize("name", SHIPPED)
def test_published_numbers_are_the_papers(name: str) -> None:
    study = read_study(name)
    given = {row.name: row.published for row in study.content.rows if isinstance(row.published, dict)}
    expected = {row: numbers for (owner, row), (numbers, _) in FACTS.items() if owner == name}
    assert given == expected


@pytest.mark.parametrize("protocol", ["f30k", "coco_1k", "coco_5k"])
def test_every_published_result_of_a_single_model_is_a_row(protocol: str) -> None:
    rows = read_study(protocol.partition("_")[0]).content.rows
    systems = {result.system for result in PUBLISHED if result.protocol == protocol and result.models == 1}
    assert systems <= {row.published for row in rows if isinstance(row.published, str)}


def test_published_results_of_all_parts() -> None:
    protocol = read_study("coco").protocol
    row = StudyRow(name="A", config="demo", published="ESA (TCSVT 2023), regions, BERT")
    found = published_metrics(row, protocol)
    assert (found["coco_1k"]["rsum"], found["coco_5k"]["rsum"]) == (528.9, 437.3)
    assert published_metrics(row.model_copy(update={"published": None}), protocol) == {}


def test_the_page_on_studies(tmp_path: Path) -> None:
    """Its file is one, it lists the shipped studies and no other, and the keys of a study."""
    text = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    study = read_study(write(tmp_path, block))
    assert (len(study.runs), study.baseline) == (6, "mean")
    first_cells = [
        cell for cells in re.findall(r"^\| (`.*?`) \|", text, flags=re.MULTILINE) for cell in cells.split(", ")
    ]
    named = {cell.strip("`") for cell in first_cells}
    assert named == {*StudyFile.model_fields, "published", "results.md", "cost.svg", "results.json", *SHIPPED}


def test_studies_are_no_configs() -> None:
    assert {"demo", "flickr8k", "ablation", "f30k", "coco"} <= set(SHIPPED)
    assert not [name for name in shipped_configs() if "studies" in name]
