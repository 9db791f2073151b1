"""A user's own pictures: folders, lists and data sets, their labels, and how they are shown to a model."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.core.errors import UsageError
from stages.tasks.classification import ImageClassification
from stages.tasks.classification.data import DATA_LOADERS
from stages.tasks.classification.pictures import UnreadablePicture, View, choose_items, decode
from stages.tasks.sources import ItemCounts, parse_source
from tests.hubs import in_cache
from tests.images import CLASSES
from tests.own_pictures import own_context, striped, write_folder

SHAPE = (3, 16, 16)
TRAINED = {"train": "small_cnn", "epochs": 2, "batch_size": 16}


def source(**block):
    return parse_source(block, DATA_LOADERS, "prepare.data")


def chosen(inputs, classes=CLASSES, *, shape=SHAPE, view=None, seed=1, counts=None, **block):
    pool = source(**block).load(inputs)
    return choose_items(pool, ItemCounts(**(counts or {"discover": 6})), list(classes), seed, shape, view)


def test_a_folder_of_each_class(tmp_path):
    write_folder(tmp_path / "photos", 10)
    items = chosen(tmp_path, imagefolder="photos", counts={"discover": 9, "repair": 6, "test": 6})
    assert items["split"].value_counts().to_dict() == {"discover": 9, "repair": 6, "test": 6} and items["id"].is_unique
    assert (items["id"].str.partition("/")[0] == items["label"]).all()
    assert all(CLASSES[target] == label for target, label in zip(items["target"], items["label"], strict=True))
    first = items.iloc[0]
    picture = np.frombuffer(first["image"], np.uint8).reshape(SHAPE)
    assert np.array_equal(picture, decode(tmp_path / "photos" / first["id"], SHAPE, View(resize=16)))


def test_ready_splits_stay_apart(tmp_path):
    names, ours = {"val": 4, "train": 5, "test": 6}, {"discover": 12, "repair": 15, "test": 18}
    for seed, (name, n) in enumerate(names.items()):
        write_folder(tmp_path / "photos" / name, n, seed=seed)
    items = chosen(tmp_path, imagefolder="photos", counts=ours)
    theirs = dict(zip(ours, names, strict=True))
    assert all(row["id"].startswith(theirs[row["split"]] + "/") for _, row in items.iterrows())
    first = items[items["split"] == "discover"]["label"].tolist()
    assert first != sorted(first)  # drawn at random, not the first class first


@pytest.mark.parametrize(
    ("names", "order"),
    [
        ([str(i) for i in range(11)], None),
        (["Zebra", "ant"], None),
        (["n01440764", "n01443537"], ["n01440764", "n01443537"]),
    ],
)
def test_folders_have_an_order_where_torchvision_and_timm_agree(tmp_path, names, order):
    from timm.data.readers.reader_image_folder import find_images_and_targets
    from torchvision.datasets import ImageFolder

    write_folder(tmp_path / "photos", 1, classes=names)
    pool = source(imagefolder="photos").load(tmp_path)
    assert pool.classes == order
    theirs = find_images_and_targets(str(tmp_path / "photos"))[1]
    assert (theirs == ImageFolder(str(tmp_path / "photos")).class_to_idx) == (order is not None)
    assert order or pool.unordered.startswith("torchvision sorts their folders otherwise than timm: class ")


def test_damaged_pictures_are_replaced_and_listed(tmp_path):
    root = write_folder(tmp_path / "photos", 10)
    for name in ("flat/000.png", "upright/001.png", "slanted/002.png"):
        (root / name).write_bytes(b"junk")
    (root / "flat" / "notes.txt").write_text("no picture, and not counted as one")
    (root / "flat" / "001.png").write_bytes((root / "flat" / "002.png").read_bytes()[:60])
    items = chosen(tmp_path, imagefolder="photos", counts={"discover": 26}, max_corrupt=0.2)
    assert len(items) == 26
    skipped = {entry["file"]: entry["reason"] for entry in items.attrs["skipped"]}
    assert set(skipped) == {"flat/000.png", "flat/001.png", "upright/001.png", "slanted/002.png"}
    assert skipped["flat/000.png"] == "000.png is not a readable image"
    assert not any(str(tmp_path) in reason for reason in skipped.values())
    with pytest.raises(UsageError, match=r"27 items wanted, the data has 26 left .*and 4 that cannot be read"):
        chosen(tmp_path, imagefolder="photos", counts={"discover": 27}, max_corrupt=0.2)
    with pytest.raises(UsageError, match=r"cannot be read, .*max_corrupt allows 5%: .*is not a readable image"):
        chosen(tmp_path, imagefolder="photos", counts={"discover": 26})


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"imagefolder": "phots"}, "found there: empty, flat.png, photos"),
        ({"imagefolder": "flat.png"}, "is a file, expected a folder that holds a folder of each class"),
        ({"imagefolder": "photos", "sise": 3}, "did you mean 'size'?"),
        ({"datasets": "photos", "split": {"discovery": "train"}}, "did you mean 'discover'?"),
    ],
)
def test_bad_data_is_told_before_anything_runs(tmp_path, block, message):
    write_folder(tmp_path / "photos", 1)
    (tmp_path / "empty").mkdir()
    striped(0, np.random.default_rng(0)).save(tmp_path / "flat.png")
    errors = ImageClassification.check(own_context(tmp_path, TRAINED, block))
    assert len(errors) == 1 and message in errors[0]


def test_labels_that_the_model_does_not_know_are_named(tmp_path):
    write_folder(tmp_path / "photos", 4, classes=["flat", "uprigt", "XYZ"])
    with pytest.raises(UsageError, match=r"2 label\(s\) of the data: 'XYZ'; 'uprigt', did you mean 'upright'\?"):
        chosen(tmp_path, imagefolder="photos")


def test_labels_are_translated(tmp_path):
    write_folder(tmp_path / "photos", 4, classes=["0", "steil", "slanted"])
    items = chosen(tmp_path, imagefolder="photos", labels={0: "flat", "steil": "upright"}, counts={"discover": 12})
    folders = items["id"].str.partition("/")[0]
    assert set(folders + " " + items["label"]) == {"0 flat", "steil upright", "slanted slanted"}
    with pytest.raises(UsageError, match=r"the data have no label 'stiel', did you mean 'steil'\?; they have 0, "):
        chosen(tmp_path, imagefolder="photos", labels={"stiel": "upright"})
    with pytest.raises(UsageError, match=r"'uprihgt', did you mean 'upright'\?"):
        chosen(tmp_path, imagefolder="photos", labels={"0": "flat", "steil": "uprihgt"})


def test_pictures_are_turned_upright(tmp_path):
    picture = striped(1, np.random.default_rng(0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    picture.save(tmp_path / "upright.png")
    picture.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    one, other = (decode(tmp_path / name, SHAPE, View(resize=16)) for name in ("upright.png", "turned.png"))
    assert np.array_equal(one, other)


def test_a_picture_is_resized_and_cut_as_pillow_does_it(tmp_path):
    picture = striped(2, np.random.default_rng(0), width=60, height=40)
    picture.save(tmp_path / "a.png")
    wanted = np.asarray(picture.resize((30, 20), Image.Resampling.BILINEAR))[2:18, 7:23].transpose(2, 0, 1)
    assert np.array_equal(decode(tmp_path / "a.png", SHAPE, View(resize=20, interpolation="bilinear")), wanted)
    squeezed = np.asarray(picture.resize((16, 16), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.array_equal(decode(tmp_path / "a.png", SHAPE, View(resize=(16, 16))), squeezed)


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "1"])
def test_all_kinds_of_pictures_become_colour_or_grey(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    striped(0, np.random.default_rng(0)).convert(mode).save(path)
    colour = decode(path, SHAPE, View(resize=16))
    grey = decode(path, (1, 16, 16), View(resize=16))
    assert colour.shape == SHAPE and np.abs(colour.mean(0) - grey[0]).max() < 3 and grey.std() > 20


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 16 * 16).reshape(16, 16).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png", (1, 16, 16), View(resize=16))[0], ramp >> 8)
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadablePicture, match="of mode F, expected 8 or 16 bits"):
        decode(tmp_path / "a.tif", SHAPE, View(resize=16))


def test_a_picture_that_would_fill_the_memory_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # the warning; twice that is pillow's error
    for side, n in ((40, 1600), (100, 10000)):
        Image.new("RGB", (side, side)).save(tmp_path / "a.png")
        with pytest.raises(UnreadablePicture, match=f"a.png is too large: .*{n} pixels"):
            decode(tmp_path / "a.png", SHAPE, View(resize=16))


def write_list(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))


def test_a_list_of_pictures(tmp_path):
    write_folder(tmp_path / "set" / "photos", 6)
    rows = [
        {"image": f"photos/{name}/{i:03d}.png", "label": name, "id": f"{name}-{i}", "group": f"g{i}"}
        for name in CLASSES
        for i in range(6)
    ]
    write_list(tmp_path / "set" / "all.jsonl", rows)
    items = chosen(tmp_path, jsonl="set/all.jsonl", counts={"discover": 9, "test": 9})
    assert set(items["id"]) == {row["id"] for row in rows}
    groups = items.groupby("split")["id"].agg(lambda ids: {name.split("-")[1] for name in ids})
    assert not groups["discover"] & groups["test"]  # a group is in one split

    pools = ["discover", "repair", "test"]
    write_list(tmp_path / "set" / "all.jsonl", [{**row, "split": pools[i % 3]} for i, row in enumerate(rows)])
    items = chosen(tmp_path, jsonl="set/all.jsonl", counts={"discover": 6, "repair": 6, "test": 6})
    number = {row["id"]: i for i, row in enumerate(rows)}
    assert all(pools[number[name] % 3] == split for name, split in zip(items["id"], items["split"], strict=True))


def test_a_group_in_two_splits_is_refused(tmp_path):
    write_folder(tmp_path / "photos", 2)
    rows = [
        {"image": f"photos/{name}/00{i}.png", "label": name, "group": f"g{i}", "split": split}
        for name, split in (("flat", "discover"), ("upright", "test"))
        for i in range(2)
    ]
    rows[3]["group"] = "mine"
    write_list(tmp_path / "all.jsonl", rows)
    with pytest.raises(UsageError, match="the group 'g0' lies in the splits discover and test"):
        chosen(tmp_path, jsonl="all.jsonl", counts={"discover": 2, "test": 2})
    rows[2]["group"] = "yours"
    write_list(tmp_path / "all.jsonl", rows)
    assert len(chosen(tmp_path, jsonl="all.jsonl", counts={"discover": 2, "test": 2})) == 4


def test_lines_that_are_none_are_skipped_and_listed(tmp_path):
    write_folder(tmp_path / "photos", 3)
    good = [{"image": f"photos/flat/00{i}.png", "label": "flat"} for i in range(3)]
    bad = ["no json", "[]", {"image": "photos/flat/000.png"}, {"image": "/etc/passwd", "label": "flat"}]
    missing = {"image": "photos/flat/009.png", "label": "flat"}
    write_list(tmp_path / "all.jsonl", [*good, *bad, missing])
    told = r"4 of 8 pictures cannot be read.*line 4 \(no JSON\).*line 6 \(it has no label; its fields: image\)"
    with pytest.raises(UsageError, match=told):
        chosen(tmp_path, jsonl="all.jsonl", counts={"discover": 3})
    with pytest.raises(UsageError, match=r"4 items wanted, the data has 3 left .*1 that cannot be read"):
        chosen(tmp_path, jsonl="all.jsonl", counts={"discover": 4}, max_corrupt=1)
    items = chosen(tmp_path, jsonl="all.jsonl", counts={"discover": 3}, max_corrupt=1)
    reasons = [entry["reason"] for entry in items.attrs["skipped"]]
    assert reasons[:2] == ["no JSON", "list, expected an object with image and label"]
    assert any("/etc/passwd leads out of the folder of the list" in one for one in reasons)
    write_list(tmp_path / "all.jsonl", [{**good[0], "split": "discover"}, {**good[1], "split": "holdout"}])
    with pytest.raises(UsageError, match=r"the splits 'discover', 'holdout'; expected some of discover, repair, test"):
        chosen(tmp_path, jsonl="all.jsonl")


def hub_folder(path):
    """A folder of parquet files in the hub's layout: train and validation."""
    import datasets

    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=CLASSES)})
    for split, n in (("train", 30), ("validation", 15)):
        rng = np.random.default_rng(n)
        rows = {
            "picture": [striped(i % 3, rng) for i in range(n)],
            "kind": [i % 3 for i in range(n)],
        }
        (path / "data").mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(path / "data" / f"{split}-00000-of-00001.parquet")
    return path


def test_a_data_set_of_the_datasets_library(tmp_path):
    hub_folder(tmp_path / "bars")
    block = {"datasets": "bars", "image": "picture", "label": "kind"}
    items = chosen(tmp_path, **block, split="validation", counts={"discover": 8, "test": 7})
    assert sorted(items["id"]) == sorted(f"validation-{i}" for i in range(15))
    assert [CLASSES[int(name.split("-")[1]) % 3] for name in items["id"]] == items["label"].tolist()

    theirs = {"discover": "validation", "repair": "train"}
    both = chosen(tmp_path, **block, split=theirs, counts={"discover": 9, "repair": 9})
    assert (both["id"].str.partition("-")[0] == both["split"].map(theirs)).all()
    shown = np.frombuffer(both.iloc[0]["image"], np.uint8).reshape(SHAPE)
    assert np.array_equal(shown, striped_of(tmp_path / "bars", both.iloc[0]["id"]))

    with pytest.raises(UsageError, match=r"prepare\.data\.image: bars has no 'image'; found picture, kind"):
        chosen(tmp_path, datasets="bars", split="train")
    with pytest.raises(UsageError, match="bars, split dev, cannot be read"):
        chosen(tmp_path, **block, split="dev")
    (tmp_path / "bars" / "bars.py").write_text("raise SystemExit")
    with pytest.raises(UsageError, match=r"contains its own code, bars\.py, which is not run"):
        chosen(tmp_path, **block, split="train")


def test_a_data_set_of_the_hub_is_read_from_the_cache_and_its_commit_recorded(tmp_path, monkeypatch):
    commit = in_cache(monkeypatch, tmp_path / "hub", "ada/bars", hub_folder(tmp_path / "bars"), kind="dataset")
    data = source(datasets="ada/bars", image="picture", label="kind", split="train")
    assert len(data.load(tmp_path).ids) == 30
    assert data.origin(tmp_path) == f"ada/bars of the Hugging Face hub at {commit}"


def striped_of(folder, identity):
    split, row = identity.split("-")
    frame = pd.read_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return decode(frame["picture"].iloc[int(row)]["bytes"], SHAPE, View(resize=16))


def test_a_small_network_is_trained_on_a_folder(tmp_path):
    for seed, (name, n) in enumerate({"train": 60, "discover": 8, "test": 8}.items()):
        write_folder(tmp_path / "photos" / name, n, seed=seed)
    data = {"imagefolder": "photos", "size": 16, "channels": 1}
    context = own_context(tmp_path, {**TRAINED, "epochs": 8}, data)
    assert ImageClassification.prepare(context, tmp_path / "out")["clean_accuracy"]["discover"] > 0.8
    assert ImageClassification.load(context, tmp_path / "out").model.form.shape == (1, 16, 16)
    with pytest.raises(UsageError, match=r"prepare\.data\.size: missing"):
        ImageClassification.prepare(own_context(tmp_path, TRAINED, {"imagefolder": "photos"}), tmp_path / "out")
