# SPDX-License-Identifier: Apache-2.0
# A real file with one thing changed is refused, with the reason, and nothing is written.
import re

import pytest

from e2e import near_misses, tool
from models import archives

NO_MOE = 4


@pytest.mark.parametrize("miss", near_misses.ALL, ids=str)
def test_a_near_miss_is_refused_with_its_reason(miss, models, tmp_path):
    changed = miss.make(models[miss.model], tmp_path / "changed.pt")
    sentence = tool.fails(NO_MOE, "convert", changed, "--ep-size", 2, "-o", tmp_path / "out")
    assert re.search(miss.reason, sentence), sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", dict.fromkeys(miss.model for miss in near_misses.ALL))
def test_the_same_file_without_the_change_is_taken(model, models, tmp_path):
    same = archives.write(archives.read(models[model]), tmp_path / "same.pt")
    tool.succeed("convert", same, "--ep-size", 2, "-o", tmp_path / "out")
