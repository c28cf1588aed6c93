"""Every way a bundle can be damaged is refused, and the error names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peregrine import bundle, fingerprint
from peregrine.bundle.manifest import files_in, seal
from peregrine.errors import BundleCorrupt, BundleError
from peregrine.types import Candidate, Target
from tiny_onnx import tiny_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    model = tiny_model(root / "tiny")
    artifact = root / "artifact"
    (artifact / "nested").mkdir(parents=True)
    (artifact / "engine.bin").write_bytes(bytes(range(256)))
    (artifact / "nested" / "cache.bin").write_bytes(b"x")
    report = root / "report.json"
    report.write_text("{}")
    candidate, target = Candidate("onnxruntime"), Target()
    return bundle.write(
        root / "tiny.bundle",
        model=model,
        candidate=candidate,
        target=target,
        fingerprint=fingerprint.current(model, candidate, target),
        artifact=artifact,
        report_json=report,
    )


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def refused(directory: Path, name: str, *, verify: bool = True) -> None:
    with pytest.raises(BundleCorrupt) as caught:
        bundle.load(directory, verify=verify)
    assert name in caught.value.what
    assert caught.value.why
    assert caught.value.fix


def flip_first(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 0x01
    path.write_bytes(content)


def flip_last(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x80
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


DAMAGES: list[Callable[[Path], None]] = [
    flip_first,
    flip_last,
    truncate,
    lengthen,
    Path.unlink,
    lambda path: path.write_bytes(b""),
    lambda path: (path.unlink(), path.mkdir())[0],
]


def test_every_file_of_a_bundle_is_guarded(whole: Path, tmp_path: Path) -> None:
    names = list(files_in(whole, "."))
    assert {"manifest.json", "manifest.sha256", "report.json", "model/model.json"} <= set(names)
    for name in names:
        for number, damage in enumerate(DAMAGES):
            damaged = tmp_path / f"{number}-{name.replace('/', '-')}"
            shutil.copytree(whole, damaged)
            damage(damaged / name)
            refused(damaged, "manifest." if name == "manifest.sha256" else name)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_single_changed_byte_is_noticed(copy: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(files_in(copy, "."))))
    path = copy / name
    original = path.read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    changed = bytearray(original)
    changed[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    try:
        refused(copy, "manifest.json" if name == "manifest.sha256" else name)
    finally:
        path.write_bytes(original)


def test_unlisted_files_are_refused_where_runtimes_look(copy: Path) -> None:
    (copy / "README").write_text("a note beside the parts is harmless")
    bundle.read(copy)
    for name in ("artifact/nested/more.so", "model/zoo.py"):
        (copy / name).write_text("unlisted")
        refused(copy, name)
        (copy / name).unlink()


def test_links_out_of_the_bundle_are_refused(copy: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.bin"
    engine = copy / "artifact" / "engine.bin"
    shutil.copy(engine, outside)
    engine.unlink()
    engine.symlink_to(outside)
    refused(copy, "artifact/engine.bin")
    # The same by a linked directory.
    engine.unlink()
    shutil.copy(outside, engine)
    shutil.move(copy / "artifact", tmp_path / "artifact")
    (copy / "artifact").symlink_to(tmp_path / "artifact")
    refused(copy, "artifact/")


def test_a_link_inside_the_bundle_is_harmless(copy: Path) -> None:
    engine = copy / "artifact" / "engine.bin"
    engine.rename(copy / "blob")
    engine.symlink_to("../blob")
    bundle.read(copy)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "model/../../secret", "..\\secret", "artifact/.."]
)
def test_a_manifest_cannot_point_outside(copy: Path, name: str) -> None:
    """Sealed anew, as whoever meant harm would do."""
    (copy.parent / "secret").write_text("x")
    record = json.loads((copy / "manifest.json").read_text())
    record["files"][name] = {"size": 1, "sha256": "0" * 64}
    reseal(copy, record)
    refused(copy, name)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: record.pop("candidate"),
        lambda record: record.update(files=[]),
        lambda record: record["candidate"].update(precision="fp3"),
        lambda record: record["fingerprint"].update(phase_of_moon="full"),
        lambda record: record["target"].update(profile={"batch": [4, 2, 1]}),
        lambda record: record["files"]["report.json"].pop("size"),
    ],
)
def test_a_manifest_that_makes_no_sense(copy: Path, spoil: Callable[[dict], object]) -> None:
    record = json.loads((copy / "manifest.json").read_text())
    spoil(record)
    reseal(copy, record)
    refused(copy, "manifest.json")


def test_a_model_file_that_the_manifest_does_not_know(copy: Path) -> None:
    path = copy / "model" / "model.json"
    record = json.loads(path.read_text())
    record["onnx"] = "../../elsewhere.onnx"
    path.write_text(json.dumps(record))
    seal(copy, bundle.Manifest.from_json(rehashed(copy)))
    refused(copy, "elsewhere.onnx")


def test_sizes_are_checked_without_hashing_too(copy: Path) -> None:
    truncate(copy / "model" / "weights.bin")
    refused(copy, "model/weights.bin", verify=False)


def test_a_newer_format_is_no_damage(copy: Path) -> None:
    record = json.loads((copy / "manifest.json").read_text())
    record["format"] = 2
    reseal(copy, record)
    with pytest.raises(BundleError, match="format 2") as caught:
        bundle.load(copy)
    assert not isinstance(caught.value, BundleCorrupt)


def test_what_is_no_bundle_at_all(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        bundle.load(tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(BundleError, match="no bundle at"):
        bundle.load(tmp_path / "file")
    refused(tmp_path, "manifest.json")


def reseal(directory: Path, record: dict) -> None:
    """Write a manifest that is not one, with the hash that fits it."""
    import hashlib

    content = json.dumps(record).encode()
    (directory / "manifest.json").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    (directory / "manifest.sha256").write_text(f"{digest}  manifest.json\n")


def rehashed(directory: Path) -> dict:
    """The manifest's record with the hashes of the files as they are now."""
    from peregrine.bundle.manifest import FileRecord
    from peregrine.results import to_builtins

    record = json.loads((directory / "manifest.json").read_text())
    for name in record["files"]:
        record["files"][name] = to_builtins(FileRecord.of(directory / name))
    return record
