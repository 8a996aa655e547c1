from pathlib import Path

import pytest

from qinco_core.errors import UsageError
from qinco_core.store import Store, training_files


def test_option_then_environment_then_default(monkeypatch):
    monkeypatch.setenv("QINCO_STORE", "from-environment")
    assert Store.locate("given").root == Path("given")
    assert Store.locate(None).root == Path("from-environment")
    monkeypatch.delenv("QINCO_STORE")
    assert Store.locate().root == Path("qinco.store")


def test_names_are_stable():
    store = Store(Path("s"))
    assert [str(p) for p in (store.model, *training_files(store.model), store.codes("base.v2"))] == [
        "s/model.h5",
        "s/model.training.h5",
        "s/model.training.jsonl",
        "s/codes/base.v2.h5",
    ]


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a\n"])
def test_a_name_stays_in_the_store(name):
    with pytest.raises(UsageError, match="cannot name codes"):
        Store(Path("s")).codes(name)
