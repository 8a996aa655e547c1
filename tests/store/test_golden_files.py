"""Files of former versions stay readable.

`golden/vN` was written once, by the first release of format version N, and is never written again. For
a new format version: raise `FORMAT_VERSION`, run `python tests/store/test_golden_files.py`, commit the
new folder, and keep the old ones passing.
"""

import hashlib
import io
import json
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest

from qinco_core.config import EncodeConfig, ModelConfig
from qinco_core.store import (
    FORMAT_VERSION,
    CodesSpec,
    Parent,
    StreamReader,
    StreamWriter,
    check_lineage,
    create_codes,
    load_centroids,
    load_checkpoint,
    load_model,
    open_codes,
    save_centroids,
    save_checkpoint,
    save_model,
    verify,
)
from qinco_core.store.folder import Manifest, begin_folder, part_notes, part_path
from qinco_core.store.index import FlatWriter, file_entry, load_index, save_manifest
from qinco_core.store.shards import load_shards, save_shards, shard_folder

GOLDEN = Path(__file__).parent / "golden"
FINGERPRINTS = {
    "v1": {
        "model.h5": "3a8152d74de46bedebcd370d6d19995d",
        "codes.h5": "4b0e4ce9a9d92b75a712d2786e89d1d9",
        "lists.h5": "6fa32ef4ab776ac63769b864f544cc19",
        "centroids.h5": "ca6e7a2c13d702586877f42f6612fb81",
        "training.h5": "5ffec07437af74bb0abf279ec2db0134",
        "index": "bdc5d6d9ed424f51f864ed98a656afe2",
        "parts": "ddb223a1efaeba30a4f465c52a29fa3d",
        "shards": "c6aa0d1a6570fc74f5859483e64d6ede",
    },
}

CONFIG = ModelConfig(D=4, M=3, K=16, L=1, E=4, H=3)
TENSORS = {
    "data_std": np.array(1.5, "f4"),
    "steps.1.w_up": np.arange(12, dtype="f4").reshape(3, 4) / 8,
}
ARRAYS = {"rng": np.arange(20, dtype="u1"), "used": np.array([True, False]), "lr": np.array(1e-3)}
STATE = {"step": 7, "loss": [0.25, 1e-300]}
CENTROIDS = np.arange(12, dtype="f4").reshape(3, 4) / 8 - 1
CODES = (np.arange(25 * 2) * 37 % 251).astype("u1").reshape(25, 2)
IDS = np.arange(25) * 10**15 - 3
PARTS = (np.arange(16_400 * 2) * 37 % 251).astype("u1").reshape(16_400, 2)
LISTS = np.arange(25) * 7 % 21  # 5 bits
INDEX = {
    "offsets": np.array([0, 10, 10, 25]),
    "centroids": CENTROIDS,
    "additive": np.arange(192, dtype="f4").reshape(3, 16, 4) / 64,
}
FLAT = {"codes": CODES, "ids": (IDS + 3).astype("<i8"), "norms": np.arange(25, dtype="u1") * 10}
FRONT = [{"recall": 0.5, "params": {"nprobe": 2}}]


def spec(model, ivf_K=0):
    return CodesSpec(model=model, D=4, M=3, K=16, dtype="float32", encoder={"A": 0, "B": 1}, ivf_K=ivf_K)


def write(folder):
    folder.mkdir(parents=True)
    header = save_model(folder / "model.h5", CONFIG, EncodeConfig(A=0, B=1), TENSORS, training={"mse": 0.5})
    codes = {"spec": spec(header.fingerprint), "with_ids": True, "count": 25}
    with create_codes(folder / "codes.h5", **codes, source_stamp="", chunk_rows=10) as out:
        out.append(CODES, IDS)
    with (folder / "codes.arrow").open("wb") as sink, StreamWriter(sink, **codes) as out:
        out.append(CODES, IDS)
    codes = {"spec": spec(header.fingerprint, 21), "with_ids": True, "count": 25}
    with create_codes(folder / "lists.h5", **codes, source_stamp="", chunk_rows=8) as out:
        out.append(CODES, IDS, LISTS)
    with (folder / "lists.arrow").open("wb") as sink, StreamWriter(sink, **codes) as out:
        out.append(CODES, IDS, LISTS)
    write_parts(folder / "parts", header.fingerprint)
    save_checkpoint(folder / "training.h5", config={"lr": 0.1}, arrays=ARRAYS, state=STATE)
    save_centroids(folder / "centroids.h5", CENTROIDS, training={"mse": 0.5})
    write_index(folder / "index", Parent("model", header.fingerprint))
    write_shards(folder / "shards", Parent("model", header.fingerprint))


def write_parts(folder, model):
    manifest = Manifest(spec(model), len(PARTS), False, "", created="2026-11-28T00:00:00+00:00")
    begin_folder(folder, manifest)
    for number in range(len(manifest.parts)):
        start, stop = manifest.parts.span(number)
        encoder = manifest.spec.encoder | part_notes(number)
        of_part = {"spec": manifest.spec.model_copy(update={"encoder": encoder}), "count": stop - start}
        with create_codes(
            part_path(folder, number), **of_part, with_ids=False, source_stamp="", created=manifest.created
        ) as out:
            out.append(PARTS[start:stop])


def write_shards(folder, model):
    places = [shard_folder(folder, 1, number) for number in range(2)]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_index(place, model, "../../../model.h5")
    source = {"kind": "model", "fingerprint": model.fingerprint, "path": "../model.h5"}
    shards = [{"fingerprint": load_index(place).header.fingerprint, "vectors": 25} for place in places]
    config = {"model": CONFIG.model_dump(mode="json"), "sources": [source], "generation": 1, "shards": shards}
    save_shards(folder, config | {"files": {}}, (model,))


def write_index(folder, model, path="../model.h5"):
    folder.mkdir()
    (folder / "index.0001.faiss").write_bytes(b"stands for a graph")
    files = {"coarse": file_entry(folder / "index.0001.faiss")}
    for name, array in FLAT.items():
        with FlatWriter(folder / f"{name}.0001.npy", array.shape, array.dtype) as out:
            out.append(array)
        files[name] = out.entry
    source = {"kind": "model", "fingerprint": model.fingerprint, "path": path}
    config = {"model": CONFIG.model_dump(mode="json"), "scales": {"norms": {"low": 1.5, "step": 0.25}}}
    config |= {"sources": [source], "generation": 1, "max_id": int(FLAT["ids"].max()), "files": files}
    save_manifest(folder, config, INDEX, (model,), FRONT)


def test_every_version_is_here():
    assert sorted(path.name for path in GOLDEN.iterdir()) == [f"v{n + 1}" for n in range(FORMAT_VERSION)]


@pytest.mark.parametrize("version", FINGERPRINTS)
def test_golden_files_are_read_and_verified(version):
    folder = GOLDEN / version
    for path in folder.iterdir():
        assert verify(path).ok, verify(path).checks
    stored = load_model(folder / "model.h5")
    assert (stored.config, stored.training, stored.encode.B) == (CONFIG, {"mse": 0.5}, 1)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(stored.tensors[name], tensor)
    with open_codes(folder / "codes.h5") as file, (folder / "codes.arrow").open("rb") as source:
        reader = StreamReader(source)
        check_lineage(file.spec, stored.header)
        assert file.spec == reader.spec == spec(stored.header.fingerprint)
        assert len(file) == reader.count == 25
        for rows in (file.rows(0, 25), *reader):
            np.testing.assert_array_equal(rows.codes, CODES)
            np.testing.assert_array_equal(rows.ids, IDS)
            assert rows.lists is None
    with open_codes(folder / "lists.h5") as file, (folder / "lists.arrow").open("rb") as source:
        reader = StreamReader(source)
        assert file.spec == reader.spec == spec(stored.header.fingerprint, 21)
        for rows in (file.rows(0, 25), *reader):
            np.testing.assert_array_equal(rows.codes, CODES)
            np.testing.assert_array_equal(rows.ids, IDS)
            np.testing.assert_array_equal(rows.lists, LISTS)
    with open_codes(folder / "parts") as file:
        assert (file.spec, file.with_ids) == (spec(stored.header.fingerprint), False)
        np.testing.assert_array_equal(file.read(0, 16_400), PARTS)
    config, arrays, state = load_checkpoint(folder / "training.h5")
    assert (config, state) == ({"lr": 0.1}, STATE)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype
    found = load_centroids(folder / "centroids.h5")
    np.testing.assert_array_equal(found.centroids, CENTROIDS)
    assert found.training == {"mse": 0.5}
    index = load_index(folder / "index")
    assert (index.front, index.generation) == (FRONT, 1)
    assert index.header.parents == (Parent("model", stored.header.fingerprint),)
    for arrays, expected in ((index.arrays, INDEX), (index.flat, FLAT)):
        assert set(arrays) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(arrays[name], array)
            assert arrays[name].dtype == array.dtype
    assert index.file("coarse").read_bytes() == b"stands for a graph"
    shards = load_shards(folder / "shards")
    assert [shard["vectors"] for shard in shards.config["shards"]] == [25, 25]
    for shard in shards.shards:
        np.testing.assert_array_equal(shard.flat["codes"], CODES)


@pytest.mark.parametrize("version", FINGERPRINTS)
def test_fingerprints_do_not_change(tmp_path, version):
    write(tmp_path / "new")
    for name, fingerprint in FINGERPRINTS[version].items():
        for folder in (GOLDEN / version, tmp_path / "new"):
            report = verify(folder / name)
            assert report.header is not None and report.header.fingerprint == fingerprint


def test_the_documented_format_is_enough():
    """What docs/artifacts.md says, without any code of the store."""

    def digest(raw):
        return hashlib.blake2b(raw, digest_size=16).hexdigest()

    def fingerprint(content):
        return digest(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())

    with h5py.File(GOLDEN / "v1" / "model.h5") as file:
        model, config = file.attrs["fingerprint"].decode(), json.loads(file.attrs["config"])
        entries = [
            [name, "<f4", list(data.shape), digest(data[()].tobytes())]
            for name, data in sorted(file["tensors"].items())
        ]
    assert model == fingerprint({"kind": "model", "config": config["model"], "arrays": entries})

    with h5py.File(GOLDEN / "v1" / "centroids.h5") as file:
        data = file["arrays/centroids"]
        entry = ["centroids", "<f4", list(data.shape), digest(data[()].tobytes())]
        assert file.attrs["fingerprint"].decode() == fingerprint({"kind": "centroids", "arrays": [entry]})

    folder = GOLDEN / "v1" / "index"
    with h5py.File(folder / "manifest.h5") as file:
        config = json.loads(file.attrs["config"])
        said, front = file.attrs["fingerprint"].decode(), json.loads(bytes(file["front"][()]))
        entries = [[n, a.dtype.str, list(a.shape), digest(a[()].tobytes())] for n, a in sorted(file["arrays"].items())]
    assert front == {"points": FRONT}
    assert said == fingerprint({"kind": "index", "config": config, "arrays": entries})
    for entry in config["files"].values():
        raw = (folder / entry["name"]).read_bytes()
        if "shape" in entry:
            array = np.load(io.BytesIO(raw))
            assert (list(array.shape), array.dtype.str) == (entry["shape"], entry["dtype"])
            raw = array.tobytes()
        else:
            assert len(raw) == entry["bytes"]
        assert digest(raw) == entry["digest"]

    for name in ("codes", "lists"):
        with h5py.File(GOLDEN / "v1" / f"{name}.h5") as file:
            config, codes, ids = json.loads(file.attrs["config"]), file["codes"][()], file["ids"][()]
            stream = int.from_bytes(file["lists"][()].tobytes() if name == "lists" else b"", "little")
            found = [bytes(mark).hex() for mark in file["digests"]]
            fingerprinted = file.attrs["fingerprint"].decode()
        content = {"count": len(codes), "codes": digest(codes.tobytes()), "ids": digest(ids.tobytes())}
        sizes = {size: config[size] for size in ("model", "M", "K", "ivf_K") if size in config}
        packed = [b""] * 3
        if name == "lists":
            lists = [stream >> (5 * row) & 31 for row in range(25)]
            content["lists"] = digest(np.array(lists, "<i4").tobytes())
            raw = stream.to_bytes(16, "little")  # 25 numbers of 5 bits
            packed = [raw[:5], raw[5:10], raw[10:15], raw[15:]]
        starts = range(0, 25, config["chunk_rows"])
        rows = [slice(at, at + config["chunk_rows"]) for at in starts]
        assert found == [
            digest(codes[part].tobytes() + ids[part].tobytes() + more) for part, more in zip(rows, packed, strict=True)
        ]
        assert config["model"] == model
        assert fingerprinted == fingerprint({"kind": "codes"} | sizes | content)

        reader = pa.ipc.open_stream((GOLDEN / "v1" / f"{name}.arrow").read_bytes())
        metadata = {key.decode(): value.decode() for key, value in reader.schema.metadata.items()}
        *_, (last, closing) = reader.iter_batches_with_custom_metadata()
        assert last.num_rows == 0 and closing[b"qinco.count"] == b"25"
        assert closing[b"qinco.checksum"].decode() == fingerprint({"metadata": metadata} | content)


if __name__ == "__main__":
    write(GOLDEN / f"v{FORMAT_VERSION}")
