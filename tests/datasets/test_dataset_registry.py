"""The registry: what is in it, what users may write, and what is refused."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import Surroundings

from qinco_core.datasets.registry import (
    PUBLISHED,
    FileSpec,
    check_part,
    find_entry,
    load_registry,
    read_registry,
    similar,
)
from qinco_core.errors import InputNotFoundError, QincoError, UsageError

MODELS = "https://dl.fbaipublicfiles.com/QINCo/qinco2-models/"
DATA = "https://dl.fbaipublicfiles.com/QINCo/datasets/"


@pytest.fixture(autouse=True)
def alone(here: Surroundings) -> None:
    """Without the user's own registry."""


def test_the_published_names() -> None:
    entries = load_registry()
    kinds = {name: entry.kind for name, entry in entries.items()}
    sets = {name for name, kind in kinds.items() if kind == "data set"}
    assert sets == {"bigann1M", "bigann1B", "deep1M", "deep1B", "contriever1M", "fb-ssnpp1M"}
    assert sum(kind == "model" for kind in kinds.values()) == 8 + 8 + 12
    for name in ("qinco2_L-bigann1M-8x8", "IVF-qinco2_S-bigann1B-16x8", "qinco1-FB_ssnpp1M-8x8"):
        assert kinds[name] == "model"
        assert entries[name].files["file"].source == f"{MODELS}{name}.pt"
    for name in ("ivf_centroids_bigann1B_1048576", "ivf_centroids_deep1B_1048576"):
        assert kinds[name] == "centroids"
        assert entries[name].files["file"].source == f"{MODELS}{name}.npy"


def test_the_published_sets() -> None:
    entries = load_registry()
    for name in ("bigann1M", "bigann1B", "deep1M", "deep1B", "contriever1M", "fb-ssnpp1M"):
        spec = entries[name].spec
        assert spec is not None
        assert list(entries[name].files) == ["train", "base", "queries", "groundtruth"]
        assert spec.limit == (1_000_000_000 if name.endswith("1B") else 1_000_000)
        guessed = name in ("bigann1B", "contriever1M", "fb-ssnpp1M")
        assert (entries[name].files["train"].count is None) == guessed
        assert spec.mse_scale == (1e-4 if name.startswith(("bigann", "fb-")) else 1)
    bigann = entries["bigann1M"].files
    assert bigann["train"].source == f"{DATA}bigann/bigann_learn_10M10k.bvecs"
    assert bigann["queries"].source == "ftp://ftp.irisa.fr/local/texmex/corpus/bigann_query.bvecs.gz"
    assert bigann["queries"].unpacked_name == "bigann_query.bvecs"
    assert entries["bigann1B"].files["groundtruth"].unpacked_name == "idx_1000M.ivecs"


@pytest.mark.parametrize(
    ("file", "size"),
    [
        ({"source": "x.fvecs", "count": 10, "dim": 4}, 10 * 20),
        ({"source": "x.bvecs", "count": 10, "dim": 4}, 10 * 8),
        ({"source": "http://h/x.bvecs.gz", "count": 10, "dim": 4}, 10 * 8),
        ({"source": "x.fbin", "count": 10, "dim": 4}, 8 + 10 * 16),
        ({"source": "x.npy", "count": 10, "dim": 4, "dtype": "float16"}, 128 + 10 * 8),
        ({"source": "x.bin", "format": "u8bin", "count": 10, "dim": 4}, 8 + 40),
        ({"source": "x.npy", "count": 10, "dim": 4}, None),
        ({"source": "x.fvecs", "dim": 4}, None),
        ({"source": "x.hdf5", "count": 10, "dim": 4, "dtype": "float32"}, None),
    ],
)
def test_sizes_follow_from_what_is_known(file: dict, size: int | None) -> None:
    assert FileSpec.parse(file).bytes == size


def test_sizes_are_those_of_files_that_are_written(tmp_path: Path) -> None:
    import numpy as np

    from qinco_core.vectors import write_vectors

    for name, dtype in (("fvecs", "float32"), ("bvecs", "uint8"), ("fbin", "float32"), ("npy", "float16")):
        path = tmp_path / f"x.{name}"
        write_vectors(path, np.zeros((7, 5), dtype))
        spec = FileSpec.parse({"source": str(path), "count": 7, "dim": 5, "dtype": dtype})
        assert spec.bytes == path.stat().st_size


def test_paths_are_relative_to_the_file_and_a_string_will_do(here: Surroundings, tmp_path: Path) -> None:
    here.register('[datasets.mine]\ndim = 4\nbase = "vectors/base.fvecs"\ntrain = "/data/train.npy"\n')
    files = find_entry("mine").files
    assert files["base"].source == str(tmp_path / "vectors" / "base.fvecs")
    assert files["train"].source == "/data/train.npy"
    assert files["base"].dim == 4


def test_the_users_own_file_in_the_configuration_folder(here: Surroundings, tmp_path: Path) -> None:
    folder = tmp_path / "config" / "qinco"
    folder.mkdir(parents=True)
    (folder / "datasets.toml").write_text('[datasets.mine]\ndim = 4\nbase = "b.fvecs"\n')
    assert find_entry("mine").origin == folder / "datasets.toml"
    here.register('[datasets.mine]\ndim = 4\nbase = "b.fvecs"\n')
    with pytest.raises(UsageError, match=r"config/qinco/datasets.toml: mine is defined in .*/datasets.toml already"):
        load_registry()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 3 4", r"is no TOML file that can be read: .*line 1, column 7"),
        ('[datasets.a]\nbase="b.fvecs"', r"datasets.a.dim: Field required"),
        ("[datasets.a]\ndim=4", r"datasets.a.base: Field required"),
        ('[datasets.a]\ndim="4"\nbase="b.fvecs"', r"datasets.a.dim: Input should be a valid integer"),
        ('[datasets.a]\ndim=4\nbase="b.fvecs"\nquerys="q.fvecs"', r"datasets.a.querys: Extra inputs"),
        ('[datasets.a]\ndim=4\nmetric="L2"\nbase="b.fvecs"', r"datasets.a.metric: Input should be 'l2'"),
        ("[datasets.a]\ndim=4\nbase={source='b.fvecs', cuont=3}", r"datasets.a.base.cuont: Extra inputs"),
        (
            "[datasets.a]\ndim=4\nbase={source='b.fvecs', limit=0}",
            r"datasets.a.base.limit: .* greater than or equal to 1",
        ),
        ("[datasets.a]\ndim=4\nbase={source='b.fvecs', sha256='12'}", r"datasets.a.base.sha256: "),
        ("[datasets.a]\ndim=4\nbase='sftp://h/b.fvecs'", r"datasets.a.base: source: sftp.* there are http, https, ftp"),
        ("[datasets.a]\ndim=4\nbase='http://h/'", r"datasets.a.base: source: http://h/ names no file on a server"),
        ("[datasets.a]\ndim=4\nbase='http://h/b.tar.gz'", r"datasets.a.base: member: say which file"),
        ("[datasets.a]\ndim=4\nbase={source='http://h/b.fvecs', member='x'}", r"base: member: only of a tar archive"),
        ("[datasets.a]\ndim=4\nbase='b.fvecs.gz'", r"datasets.a.base: source: b.fvecs.gz is packed; unpack your own"),
        ("[datasets.a]\ndim=4\nmse_scale=inf\nbase='b.fvecs'", r"datasets.a.mse_scale: "),
        ("[datasets.'a/b']\ndim=4\nbase='b.fvecs'", r"'a/b' is no name"),
        ("[datasets.a]\ndim=4\nbase='b.fvecs'\n[datasets.a]\ndim=4", r"is no TOML file .*Cannot declare"),
        ("[datasets.bigann1M]\ndim=4\nbase='b.fvecs'", r"bigann1M is defined in .*published.toml already"),
        ("[[files]]\nname='a-{x}'\nkind='model'\nsource='http://h/{name}'", r"files.0: values: the name a-{x}"),
        ("[[files]]\nname='a'\nkind='model'\nsource='http://h/{y}'", r"files.0: source: {y} is no field"),
        ("[[files]]\nname='a'\nkind='thing'\nsource='http://h/a'", r"files.0.kind: "),
        ("[[files]]\nname='a'\nkind='codes'\nsource='http://h/a.npz'", r"files.0.kind: "),
        (
            "[[files]]\nname='a-{x}'\nkind='model'\nsource='http://h/{x}'\nvalues={x=['1']}\nsha256='" + 64 * "0" + "'",
            r"files.0: sha256: is of one file",
        ),
        ("[[files]]\nname='{x}'\nkind='model'\nsource='http://h/{x}'\nvalues={x=['1', '1']}", r"1 is defined twice"),
        (
            "[datasets.a]\ndim=4\nbase={source='http://h/b.h5', key='x', sha256='" + 64 * "0" + "'}\n"
            "queries={source='http://h/b.h5', key='y', sha256='" + 64 * "1" + "'}",
            r"datasets.a.queries.sha256: another part gives another one for http://h/b.h5",
        ),
        ("[datasets.a]\ndim=4\nbase='~nouser/x.npy'", r"datasets.a.base: source: ~nouser/x.npy: there is no such user"),
        ("[datasets.a]\ndim=4\nbase='x.h5::train'", r"datasets.a.base: source: x.h5::train: name .* with key"),
        ("[datasets.a]\ndim=4\nbase='ftp://h/a%0d%0aDELE b.npy'", r"base: source: .* has control characters"),
        (
            "[datasets.a]\ndim=4\nbase='ftp://h:99999/b.npy'",
            r"base: source: ftp://h:99999/b.npy names no file on a server",
        ),
        ("[datasets.a]\ndim=4\nbase='http://h/..'", r"base: source: files in the cache cannot be called \.\."),
        ("[datasets.a]\ndim=4\nbase='http://h/%2e%2E'", r"base: source: files in the cache cannot be called \.\."),
        ("[datasets.a]\ndim=4\nbase={source='http://h/b.tar', member='..'}", r"cannot be called \.\."),
        ("[datasets.a]\ndim=4\nbase={source='http://h/b.tar', member='x/..'}", r"member: \. is no file of an archive"),
        ("[datasets.a]\ndim=4\nbase={source='http://h/b.tar', member='/'}", r"member: / is no file of an archive"),
        ("[datasets.a]\ndim=4\nbase={source='http://h/b.tar', member='.lock'}", r"cannot be called .lock"),
        ("[datasets.a]\ndim=4\nbase='http://h/checksums.json'", r"cannot be called checksums.json, which is kept"),
        ("[datasets.a]\ndim=4\nbase='http://h/checksums.json.gz'", r"cannot be called checksums.json"),
        ("[datasets.a]\ndim=4\nbase='http://h/b.npy.partial'", r"cannot be called b.npy.partial"),
        ("[datasets.a]\ndim=4\nbase='http://h/b.npy.partial.json'", r"cannot be called b.npy.partial.json"),
        ("[datasets.a]\ndim=4\nbase='http://h/b.npy.download'", r"cannot be called b.npy.download"),
        ("[datasets.a]\ndim=4\nbase='http://h/b.npy.damaged'", r"cannot be called b.npy.damaged"),
        ("datasets = 3", r"datasets: Input should be a valid dictionary"),
    ],
)
def test_errors_name_file_and_field(text: str, message: str, here: Surroundings) -> None:
    path = here.register(text)
    with pytest.raises(UsageError, match=re.escape(str(path)) + ".*" + message) as e:
        load_registry()
    assert e.value.exit_code == 2


def test_a_registry_that_is_not_there(here: Surroundings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QINCO_DATASETS", str(tmp_path / "none.toml"))
    with pytest.raises(InputNotFoundError, match=r"none.toml does not exist"):
        load_registry()


def test_unknown_names_and_parts() -> None:
    with pytest.raises(UsageError, match="nothing is called 'BigANN1M': did you mean bigann1M or"):
        find_entry("BigANN1M")
    with pytest.raises(UsageError, match="nothing is called 'elephant': qinco fetch --list shows"):
        find_entry("elephant")
    assert similar("qinco2-L-bigann1M-8x8", load_registry())[0] == "qinco2_L-bigann1M-8x8"
    with pytest.raises(UsageError, match="no part 'learn' of a data set; there are train, base"):
        check_part("learn", find_entry("deep1M"))
    with pytest.raises(UsageError, match="a file of the kind model, not a data set: it has no parts"):
        check_part("base", find_entry("qinco2_L-deep1M-8x8"))


def test_a_missing_part_says_where_to_add_it(here: Surroundings) -> None:
    path = here.register("[datasets.a]\ndim=4\nbase='b.fvecs'")
    with pytest.raises(UsageError, match=rf"the data set a has no part 'train': .*add datasets.a.train to {path}"):
        check_part("train", find_entry("a"))


def toml(value: object) -> str:
    """A value as TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + "}"
    return f"'{value}'" if isinstance(value, str) else str(value)


NAMES = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8)
FILES = st.fixed_dictionaries(
    {
        "source": st.builds(
            "{}{}".format, st.sampled_from(["", "http://h/", "ftp://h/d/"]), NAMES.map("{}.fvecs".format)
        )
    },
    optional={
        "skip": st.integers(0, 9),
        "limit": st.integers(1, 9),
        "count": st.integers(1, 9),
        "sha256": st.text("0123456789abcdef", min_size=64, max_size=64),
    },
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.dictionaries(NAMES, FILES, min_size=1, max_size=4), dim=st.integers(1, 4096))
def test_what_is_written_is_read(files: dict[str, dict], dim: int, here: Surroundings) -> None:
    path = here.register("\n".join(f"[datasets.{name}]\ndim = {dim}\nbase = {toml(f)}" for name, f in files.items()))
    entries = {entry.name: entry for entry in read_registry(path)}
    assert entries.keys() == files.keys()
    for name, fields in files.items():
        file = entries[name].files["base"]
        assert file.model_dump(include=fields.keys() - {"source"}) == {k: v for k, v in fields.items() if k != "source"}
        assert file.dim == dim
        assert file.source.endswith(fields["source"])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.text(max_size=80), st.builds(PUBLISHED.read_text("utf-8")[:600].replace, NAMES, NAMES)))
def test_anything_else_is_refused_in_one_way(text: str, tmp_path: Path) -> None:
    path = tmp_path / "any.toml"
    path.write_text(text, "utf-8", errors="surrogatepass")
    try:
        read_registry(path)
    except QincoError as error:
        assert str(path) in str(error)
