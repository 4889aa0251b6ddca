"""Data sets that bring pickles or code of their own: nothing of it is run."""

import pickle

import pytest

from rlhf_bench.core.errors import BadInput
from rlhf_bench.tasks.loading.data_source import Place, rows_at
from tests.support.hostile import Bomb


def a_script(folder, marker):
    (folder / f"{folder.name}.py").write_text(f"open({str(marker)!r}, 'w')\n")


def a_pickle(folder, marker):
    (folder / "train.pkl").write_bytes(pickle.dumps(Bomb(marker)))


def a_pickle_by_its_card(folder, marker):
    a_pickle(folder, marker)
    card = "configs:\n- config_name: default\n  data_files: train.pkl\nbuilder_name: pandas\n"
    (folder / "README.md").write_text(f"---\n{card}---\n")


@pytest.mark.parametrize("put", [a_script, a_pickle, a_pickle_by_its_card])
def test_a_data_sets_own_code_is_not_run_nor_its_pickles_read(put, tmp_path):
    folder, marker = tmp_path / "brings", tmp_path / "marker"
    folder.mkdir()
    put(folder, marker)
    with pytest.raises(BadInput, match="task.prompts: .* cannot be read as a data set"):
        list(rows_at(Place(source=str(folder)), "task.prompts"))
    assert not marker.exists()
