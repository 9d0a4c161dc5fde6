"""config.json of a model folder. Right means: a strict second reading of the same JSON gives the same value for every field."""

import json
from pathlib import Path
from random import Random

import kit
import oracle_config
import tiny
from mutate import mutate_bytes, mutate_json

from lm2.models.config import LM2Config, read_config
from lm2.models.errors import LM2Error

from . import Target


def target(place: Path) -> Target:
    file = place / "config.json"
    seeds = [json.dumps(c.to_dict()).encode() for c in tiny.CELLS.values()]
    scaled = {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    seeds += [json.dumps(tiny.config(backbone=b).to_dict()).encode() for b in tiny.BACKBONES.values()]
    yarn = {"rope_theta": 500.0, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16, "truncate": False}
    for block in (scaled, {"rope_theta": 500.0, "rope_type": "linear", "factor": 2.0}, yarn):
        d = tiny.CELLS["gated"].to_dict() | {"rope_parameters": block, "rope_scaling": None, "rope_theta": block["rope_theta"], "eos_token_id": 2}
        seeds.append(json.dumps(d).encode())

    def check(data: bytes) -> str:
        file.write_bytes(data)
        try:
            config = read_config(file)
        except LM2Error as error:
            return kit.check_refusal(error, file) + f": {error}"
        d = json.loads(data.decode("utf-8-sig"))
        try:
            want = oracle_config.lm2(d)
        except oracle_config.Bad as bad:
            raise kit.Wrong(f"accepted with {bad}") from None
        problem = oracle_config.compare(config, want)
        kit.need(not problem, problem)
        again = LM2Config.from_dict(json.loads(json.dumps(config.to_dict())))
        kit.need(again == config, f"written and read again it is another: {again} {config}")
        return ""

    return Target("config", seeds, mutate, check)


def mutate(rng: Random, data: bytes) -> bytes:
    return mutate_bytes(rng, data) if rng.random() < 0.1 else mutate_json(rng, data)
