"""Session files. Right means: every value is the one the page docs/session-file.md gives the bytes, and saving what was read gives the file again."""

import json
import struct
from pathlib import Path
from random import Random

import forge
import kit
import numpy as np
import tiny_model
from mutate import mutate_bytes, mutate_json, mutate_tree, pick

from lm2.models.errors import LM2Error
from lm2.runtime.session import Session
from lm2.runtime.statefile import Record, read_session, write_session

from . import Target


def target(place: Path) -> Target:
    model = tiny_model.load_tiny(tiny_model.make(place / "model"))
    file, again = place / "fuzzed.lm2s", place / "again.lm2s"
    session = Session(model, "Be brief.", seed=3)
    seeds = []
    for message in ("Hello", "My name is Ada. " * 4, "And now?"):
        session.say(message, max_tokens=20)
        session.save(file)
        seeds.append(file.read_bytes())
    write_session(file, forge.record())
    seeds.append(file.read_bytes())

    def check(data: bytes) -> str:
        file.write_bytes(data)
        try:
            record = read_session(file, None)
        except LM2Error as error:
            return kit.check_refusal(error, file) + f": {error}"
        _is_what_the_bytes_say(record, data)
        if record.version > 1:  # what version 1 counts in chunks can be said in tokens only with the model
            write_session(again, record)
            want = forge.with_text(data, _in_order)
            kit.need(again.read_bytes() == want, "saved again it is another file")
        try:
            opened = Session.restore(model, file)
        except LM2Error as error:
            kit.check_refusal(error, file)
            return ""
        opened.save(again)
        back = read_session(again, None)
        old, new = [record.now, *record.snapshots], [back.now, *back.snapshots]
        kit.equal("moments", len(new), len(old))
        for a, b in zip(old, new, strict=True):
            unit = 1 if record.version > 1 else model.config.memory.chunk
            kept = a.bank.tobytes() == b.bank.tobytes() and (a.written * unit, a.tokens) == (b.written, b.tokens)
            kit.need(kept and (a.carried, a.folds) == (b.carried, b.folds), f"a moment changed in a session: {a} {b}")
            kit.need(all(b.notes[k] == a.notes[k] for k in b.notes if k in a.notes), "notes changed in a session")
        for key in ("system", "forgotten_turns", "overlap", *(("window",) if record.version > 1 else ())):
            kit.equal(key, back.document[key], record.document[key])
        said = [(m["role"], m["content"]) for m in record.document["transcript"]]
        kit.equal("transcript", [(m["role"], m["content"]) for m in back.document["transcript"]], said)
        for key in ("seed", "created", "fingerprint", "tokenizer"):
            kit.equal(key, getattr(back.meta, key), getattr(record.meta, key))
        return ""

    return Target("session", seeds, mutate, check)


def _in_order(text: str) -> str:
    """The same JSON with lm2's order of names and no blanks."""
    content = json.loads(text)
    names = ("bank", "written", "tokens", "carried", "folds", "notes")
    content["snapshots"] = [{k: row[k] for k in names} for row in content["snapshots"]]
    content["window"] = {k: content["window"][k] for k in ("carried", "folds")}
    return forge.dumps({k: content[k] for k in ("document", "notes", "window", "snapshots")})


def mutate(rng: Random, data: bytes) -> bytes:
    kind = rng.random()
    try:
        if kind < 0.2:
            return mutate_bytes(rng, data)
        if kind < 0.5:
            return forge.with_text(data, lambda text: mutate_json(rng, text.encode(), forge.dumps).decode("utf-8", "surrogatepass"))
        header, arrays = forge.split(data)
        if kind < 0.65:
            name = rng.choice(["memory.bank", "snapshots.banks", "chunk.tokens", "snapshots.tokens"])
            values = bytearray(arrays[name])
            if values:
                at = rng.randrange(len(values)) & ~3
                values[at : at + 4] = rng.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\1\0\0\0", rng.randbytes(4)))
            arrays[name] = bytes(values)
            return forge.seal(header, arrays)
        if kind < 0.8:
            where, key = pick(rng, header["__metadata__"])
            text = where[key]
            where[key] = rng.choice((text + "0", text[:-1], "", "0", "1", "-1", "00", " " + text, text.upper(), "9" * 25, "é", "2025-13-01T00:00:00Z", "\n"))
        else:
            mutate_tree(rng, header)
        return forge.seal(header, arrays)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, struct.error, IndexError):
        return mutate_bytes(rng, data)


def _is_what_the_bytes_say(record: Record, data: bytes) -> None:
    """An own reading of the bytes, with json and struct, against the record."""
    header, arrays = forge.split(data)
    content = json.loads(arrays["session.json"])
    meta = header["__metadata__"]
    bank = np.frombuffer(arrays["memory.bank"], "<f4").reshape(header["memory.bank"]["shape"])
    kit.need(np.array_equal(record.now.bank, bank) and np.isfinite(bank).all(), "the bank is not the file's, or not finite")
    ids = np.frombuffer(arrays["chunk.tokens"], "<i4").tolist()
    kit.equal("tokens", list(record.now.tokens), ids)
    kit.need(all(i >= 0 for i in ids), "a token id below 0")
    kit.equal("document", record.document, content["document"])
    kit.equal("notes", record.now.notes, content["notes"])
    counted = "chunks" if meta["version"] == "1" else "written"
    kit.equal(counted, record.now.written, int(meta[counted]))
    window = content.get("window", {"carried": 0, "folds": []})
    kit.equal("window", (record.now.carried, list(record.now.folds)), (window["carried"], window["folds"]))
    kit.need(all(window["carried"] < f <= len(ids) for f in window["folds"]), "a fold outside of its window")
    banks = np.frombuffer(arrays["snapshots.banks"], "<f4").reshape(header["snapshots.banks"]["shape"])
    later = np.frombuffer(arrays["snapshots.tokens"], "<i4").tolist()
    at = 0
    kit.equal("snapshots", len(record.snapshots), len(content["snapshots"]))
    for moment, row in zip(record.snapshots, content["snapshots"], strict=True):
        kit.need(np.array_equal(moment.bank, bank if row["bank"] == -1 else banks[row["bank"]]), "a snapshot has another bank")
        kit.equal("snapshot tokens", list(moment.tokens), later[at : at + row["tokens"]])
        kit.equal("snapshot", (moment.written, moment.notes), (row[counted], row["notes"]))
        kit.equal("snapshot window", (moment.carried, list(moment.folds)), (row.get("carried", 0), row.get("folds", [])))
        at += row["tokens"]
    for key, value in vars(record.meta).items():
        kit.equal(key, str(value), meta[key])
