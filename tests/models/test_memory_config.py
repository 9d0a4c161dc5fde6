"""What a memory block may not say about topics, each in one line that names the field and its value."""

from dataclasses import replace

import pytest
import tiny

from lm2.models.config import LM2Config
from lm2.models.errors import ConfigError

WRONG = {
    "values of topics that are not there": ({"topics": ()}, r"memory.values 'topics' needs memory.topics"),
    "another kind of values": ({"values": "both"}, r"memory.values 'both' must be one of row, topics"),
    "topics above a memory": ({"topics": (0, 2)}, r"memory.topics \[0, 2\] must be ascending layers below the first memory layer, 2"),
    "topics that begin with something": ({"init": "eye"}, r"memory.init 'eye' must be zeros with memory.topics"),
    "rows that are near twice": ({"topic_around": 16}, r"memory.topic_around 16 must be at most 15, so that no row of 32 is near twice"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_refused(what):
    fields, message = WRONG[what]
    config = tiny.CELLS["gated-topics"]
    with pytest.raises(ConfigError, match=message):
        LM2Config.from_dict(replace(config, memory=replace(config.memory, **fields)).to_dict())


def test_cell_released_has_no_values_of_topics():
    config = tiny.CELLS["released-causal"]
    with pytest.raises(ConfigError, match="memory.values 'topics' is for cell gated: leave it out"):
        LM2Config.from_dict(replace(config, memory=replace(config.memory, values="topics")).to_dict())


def test_what_is_left_at_its_default_is_not_written():
    """Configs, and so fingerprints, of models from before there was a choice are as they were."""
    written = tiny.ALONE["gated-topics-alone"].to_dict()["memory"]
    assert "values" not in written and tiny.CELLS["gated-topics"].to_dict()["memory"]["values"] == "topics"
