import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from peregrine.errors import BackendUnavailable, FeedError, OptionError
from peregrine.model.images import (
    Preprocessing,
    default_photos,
    list_photos,
    load_preprocessing,
)
from peregrine.model.load import load
from peregrine.model.model import Model
from peregrine.model.probe import OnnxRunner
from peregrine.model.zoo import entry, names
from peregrine.types import TensorSpec
from photo_arrays import read_images

PLAIN = {"size": 8, "resize": "short side 8, nearest", "scale": "0..255"}


def model(tmp_path, shape=("batch", 3, 8, 8), preprocessing=PLAIN):
    spec = TensorSpec("x", "float32", shape)
    out = TensorSpec("y", "float32", ("batch", 5))
    return Model("m", tmp_path, (spec,), (out,), "batch", preprocessing=preprocessing)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(["b.png", "a.jpg", "c.JPEG"]):
        Image.new("RGB", (16, 8), (10 * number, 100, 200)).save(folder / name)
    (folder / "notes.json").write_text("{}")
    return folder


def test_pixels_are_scaled_shifted_and_laid_out():
    image = Image.new("RGB", (8, 8), (51, 102, 204))
    chw = Preprocessing.parse(PLAIN).apply(image)
    assert (chw.shape, chw.dtype.name) == ((3, 8, 8), "float32")
    assert chw[:, 0, 0].tolist() == [51, 102, 204]
    bgr = Preprocessing.parse(PLAIN | {"channels": "BGR"}).apply(image)
    assert bgr[:, 0, 0].tolist() == [204, 102, 51]
    hwc = Preprocessing.parse(PLAIN | {"layout": "NHWC"}).apply(image)
    assert hwc.shape == (8, 8, 3)
    unit = Preprocessing.parse(
        PLAIN | {"scale": "0..1", "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.25, 0.1]}
    ).apply(image)
    np.testing.assert_allclose(unit[:, 0, 0], [0.2, 0.8, 5.0], rtol=1e-5)


def test_the_crop_is_central_and_squash_keeps_no_ratio():
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, :8] = 100
    image = Image.fromarray(pixels)
    cropped = Preprocessing.parse(PLAIN).apply(image)
    assert cropped.max() == 0
    squashed = Preprocessing.parse(PLAIN | {"resize": "8x8 squash, nearest"}).apply(image)
    assert (squashed[0] == 100).mean() == pytest.approx(1 / 3, abs=0.1)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
def test_other_colour_modes_become_rgb(mode):
    image = Image.new("L" if mode == "P" else mode, (9, 9), 0)
    assert Preprocessing.parse(PLAIN).apply(image.convert(mode)).shape == (3, 8, 8)


def test_what_the_zoo_and_the_sidecars_say_is_understood(shared_data):
    for name in names():
        assert Preprocessing.parse(entry(name).preprocessing).size == 224
    squeezenet = load_preprocessing(shared_data / "models" / "squeezenet1_0_deepcomp.json")
    found = Preprocessing.parse(squeezenet)
    assert (found.size, found.resize_to, found.squash) == (227, 256, True)
    assert (found.channels, found.mean) == ("BGR", (104, 117, 123))


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"size": "224"},
        {"resize": "small"},
        {"resize": "short side 4, bilinear"},
        {"resize": "8x9 squash, bilinear"},
        {"resize": "short side 8, blurry"},
        {"crop": "left"},
        {"channels": "YUV"},
        {"scale": "0..2"},
        {"mean": [1, 2]},
        {"mean": "imagenet"},
        {"std": [1, 0, 1]},
        {"layout": "CHW"},
        {"normalise": True},
    ],
)
def test_what_is_not_understood_is_refused_with_an_example(wrong):
    with pytest.raises(OptionError):
        Preprocessing.parse(PLAIN | wrong)


def test_reads_a_directory_in_order_with_a_limit(tmp_path, photos):
    found = read_images(photos, model(tmp_path))
    assert found.names == ("a.jpg", "b.png", "c.JPEG")
    assert found.pixels.shape == (3, 3, 8, 8)
    assert found.labels is None
    assert read_images(photos, model(tmp_path), limit=2).names == ("a.jpg", "b.png")


def test_labels_choose_and_order_the_photos(tmp_path, photos):
    (photos / "labels.txt").write_text("c.JPEG 7\n\nb.png 3\n")
    found = read_images(photos, model(tmp_path))
    assert found.names == ("c.JPEG", "b.png")
    assert found.labels.tolist() == [7, 3]
    assert found.pixels[1, 0, 0, 0] == 0


@pytest.mark.parametrize(
    ("line", "said"), [("b.png", "Line 1"), ("b.png x", "Line 1"), ("z.png 3", "not there")]
)
def test_wrong_labels_are_refused(tmp_path, photos, line, said):
    (photos / "labels.txt").write_text(line + "\n")
    with pytest.raises(FeedError, match=said):
        read_images(photos, model(tmp_path))


def test_labels_may_be_anywhere_and_of_a_larger_set(tmp_path, photos):
    (photos / "labels.txt").write_text("a.jpg 1\n")
    labels = tmp_path / "classes of all.txt"
    labels.write_text("c.JPEG 7\nelsewhere.png 4\nb.png 3\n")
    found = list_photos(photos, model(tmp_path), labels=labels)
    assert found.listed == (("c.JPEG", 7), ("b.png", 3))
    assert found.read("b.png").shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"elsewhere.png 4\n", "lists none of the photos"),
        (b"b.png cat\n", "Line 1"),
        (b"\n\n", "lists no photos"),
        (b"\xff\xfe\x00", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_wrong_labels_from_elsewhere_are_refused(tmp_path, photos, content, said):
    labels = tmp_path / "classes.txt"
    if content is not None:
        labels.write_bytes(content)
    with pytest.raises(FeedError, match=said) as caught:
        list_photos(photos, model(tmp_path), labels=labels)
    assert caught.value.fix


def test_empty_and_missing_directories_are_refused(tmp_path):
    with pytest.raises(FeedError, match="no photos"):
        read_images(tmp_path, model(tmp_path))
    with pytest.raises(FeedError, match="no directory"):
        read_images(tmp_path / "none", model(tmp_path))
    (tmp_path / "labels.txt").write_text("\n")
    with pytest.raises(FeedError, match="lists no photos"):
        read_images(tmp_path, model(tmp_path))


@pytest.mark.parametrize("how", ["random", "truncated", "empty"])
@pytest.mark.parametrize("name", ["a.jpg", "b.png"])
def test_a_damaged_photo_is_named(tmp_path, photos, name, how):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8))
    noise.save(photos / name)
    whole = (photos / name).read_bytes()
    content = {"random": rng.bytes(500), "truncated": whole[: len(whole) // 2], "empty": b""}
    (photos / name).write_bytes(content[how])
    with pytest.raises(FeedError, match=name):
        read_images(photos, model(tmp_path))


def test_a_model_that_takes_no_such_photos(tmp_path, photos):
    with pytest.raises(OptionError, match="does not say") as caught:
        read_images(photos, model(tmp_path, preprocessing={}))
    assert '"size"' in caught.value.fix
    for shape in (("batch", 3, 9, 9), ("batch", 8, 8, 3), ("batch", 12)):
        with pytest.raises(OptionError, match="do not fit"):
            read_images(photos, model(tmp_path, shape))
    assert read_images(photos, model(tmp_path, preprocessing={}), preprocessing=PLAIN).names


def test_a_users_json(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(PLAIN))
    assert load_preprocessing(path) == PLAIN
    path.write_text(json.dumps({"preprocessing": PLAIN, "source": "x"}))
    assert load_preprocessing(path) == PLAIN
    for text in ("{", "[]", '{"preprocessing": "in prose"}'):
        path.write_text(text)
        with pytest.raises(OptionError):
            load_preprocessing(path)


def test_default_photos_are_real_and_found_without_importing_skimage(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = default_photos()
    assert "skimage" not in sys.modules
    found = read_images(folder, model(tmp_path))
    assert found.names == ("astronaut.png", "chelsea.png", "coffee.png")
    assert found.pixels.std() > 20
    (folder / "coffee.png").write_bytes(b"half")
    assert read_images(default_photos(), model(tmp_path)).names == found.names


def test_without_scikit_image_the_command_is_shown(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable) as caught:
        default_photos()
    assert "pip install scikit-image" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "top1"), [("efficientnet_lite0", 0.90), ("squeezenet1_0_deepcomp", 0.6625)]
)
def test_real_networks_recognise_the_real_photos(tmp_path, shared_data, name, top1):
    net = load(shared_data / "models" / f"{name}.onnx", tmp_path)
    images = read_images(shared_data / "images", net)
    assert len(images.names) == 160
    runner = OnnxRunner(net.onnx_path)
    found = [int(runner.run({"input": images.pixels[i : i + 1]})[0].argmax()) for i in range(160)]
    # One photo up or down: decoders of JPEG differ in a last bit.
    assert np.mean(found == images.labels) == pytest.approx(top1, abs=0.013)


def test_the_trained_network_of_the_zoo_knows_a_cat_and_a_coffee(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    net = load("efficientnet_lite0", tmp_path / "m")
    images = read_images(Path(default_photos()), net)
    (logits,) = OnnxRunner(net.onnx_path).run({"x": images.pixels})
    top = dict(zip(images.names, logits.argmax(1).tolist(), strict=True))
    assert top["chelsea.png"] in range(281, 286)  # cats
    assert top["coffee.png"] in (504, 967)  # coffee mug, espresso
