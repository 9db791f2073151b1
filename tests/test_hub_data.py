"""Other people's data sets: files that they name outside their own folder are never read."""

import shutil

import pytest

pytest.importorskip("datasets")

import pandas as pd

from stages.core.errors import UsageError
from stages.tasks.classification.data import DATA_LOADERS as PHOTOS
from stages.tasks.rows import row_file
from stages.tasks.sources import parse_source
from stages.tasks.text_to_image.pictures import PICTURE_LOADERS, to_png
from tests.tiny_judges import RED, plain


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def inputs(tmp_path):
    """An audit's inputs with an empty folder `news`, and beside them a private file."""
    (tmp_path / "inputs" / "news").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    pd.DataFrame({"body": ["secret"]}).to_parquet(tmp_path / "secret" / "x.parquet")
    (tmp_path / "secret" / "x.png").write_bytes(to_png(plain(RED)))
    return tmp_path / "inputs"


def readme(folder, files):
    (folder / "README.md").write_text(f'---\nconfigs:\n- config_name: default\n  data_files: "{files}"\n---\n')


def rows(inputs):
    return parse_source({"datasets": "news", "split": "train"}, PHOTOS, "prepare.data").read_split(inputs, "train")


@pytest.mark.parametrize("files", ["{0}/secret/x.parquet", "../../secret/*.parquet"])
def test_a_readme_that_names_files_elsewhere_is_refused(inputs, files):
    readme(inputs / "news", files.format(inputs.parent))
    with pytest.raises(UsageError, match=r"prepare\.data\.datasets: news names the file .*x\.parquet, which lies outs"):
        rows(inputs)


def test_files_of_the_folder_and_links_in_it_are_read_as_they_are_now(inputs):
    (inputs / "news" / "more").mkdir()
    shutil.copy(inputs.parent / "secret" / "x.parquet", inputs / "news" / "more" / "a.parquet")
    readme(inputs / "news", "more/../more/*.parquet")
    assert rows(inputs)["body"][:] == ["secret"]
    (inputs / "news" / "more" / "b.parquet").symlink_to(inputs.parent / "secret" / "x.parquet")
    assert rows(inputs)["body"][:] == ["secret", "secret"]


@pytest.mark.parametrize("name", ["{0}/secret/x.png", "{0}/inputs/news/../../secret/x.png", "x.png"])
def test_a_row_that_names_a_picture_elsewhere_is_refused_by_all_tasks(inputs, name):
    name = name.format(inputs.parent)
    table = {"image": [{"bytes": None, "path": name}], "label": ["cat"], "text": ["a red square"]}
    pd.DataFrame(table).to_parquet(inputs / "news" / "train.parquet")
    told = "names the file .*x.png, which lies outside the data set's folder"
    with pytest.raises(UsageError, match=told):
        parse_source({"datasets": "news"}, PICTURE_LOADERS, "prepare.data").load(inputs)
    photos = parse_source({"datasets": "news", "split": "train"}, PHOTOS, "prepare.data").load(inputs)
    with pytest.raises(UsageError, match=told):
        photos.pictures.read(0, (3, 8, 8), None)


def test_a_row_may_name_what_lies_in_the_folder_or_was_unpacked(inputs, tmp_path):
    for folder in (inputs / "news", tmp_path / "cache"):
        assert row_file(inputs / "news", str(folder / "a.png")) == folder / "a.png"
